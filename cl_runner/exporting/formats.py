"""A deployed model as the bytes of a file, by format."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.errors import UserError, check
from cl_runner.exporting.deployed import Deployed

INPUT, OUTPUT = "images", "probabilities"  # what they are called in an ONNX file
CARD = "card"  # the key of a file's metadata under which the card lies, as JSON
EXAMPLES = 3  # images with which a model is traced; how many come later is open


def written(model: Deployed, form: str) -> bytes:
    """The file of a model in one of FORMATS. Raises UserError where the format cannot hold it."""
    try:
        with torch.no_grad(), quiet():
            return WRITERS[form](model)
    except ImportError as error:
        missing = f"{error.name or error} is not installed"
        raise UserError(f"--to onnx: {missing}: pip install 'cl_runner[onnx]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Within, torch's exporters keep what they tell their own developers to themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def example(model: Deployed) -> Tensor:
    """Images to trace a model with."""
    return torch.zeros(EXAMPLES, *model.input_shape, dtype=model.dtype)


def traced(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """A module's program for any number of images."""
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (x,), dynamic_shapes=shapes)


def needed(model: Deployed) -> nn.Module:
    """The model with the tensors, and the operations, that its probabilities depend on.

    Its tensors have the names that they have in the model. What a strategy computes to choose the
    weights it predicts with is gone: the network has those weights.
    """
    module = traced(model, example(model)).module()
    graph: Any = module.graph
    graph.eliminate_dead_code()
    module.recompile()  # type: ignore[operator]  # it is a GraphModule
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            path, _, own = name.rpartition(".")
            delattr(module.get_submodule(path), own)
    return module


def program(model: Deployed) -> bytes:
    """A torch.export program: `torch.export.load` gives it back, without this package."""
    file = io.BytesIO()
    whole = traced(needed(model), example(model))
    torch.export.save(whole, file, extra_files={CARD: json.dumps(model.card)})
    return file.getvalue()


def torchscript(model: Deployed) -> bytes:
    """A traced module: `torch.jit.load` gives it back, in Python or C++."""
    file = io.BytesIO()
    own = dict(needed(model).named_buffers())
    unused = [name for name, held in model.held.items() if f"memory.{held}" not in own]
    with without(model, unused):
        found = torch.jit.trace(model, (example(model),))
        torch.jit.save(found, file, _extra_files={CARD: json.dumps(model.card)})
    return file.getvalue()


@contextmanager
def without(model: Deployed, names: list[str]) -> Iterator[None]:
    """Within, these tensors of the strategy's memory are no part of the module's state."""
    kept = {name: getattr(model.memory, model.held[name]) for name in names}
    for name, v in kept.items():
        delattr(model.memory, model.held[name])
        object.__setattr__(model.memory, model.held[name], v)
    try:
        yield
    finally:
        for name, v in kept.items():
            object.__delattr__(model.memory, model.held[name])
            model.memory.register_buffer(model.held[name], v)


def onnx(model: Deployed) -> bytes:
    """An ONNX model with an open number of images."""
    import onnx as library
    import onnxscript  # noqa: F401 - torch needs it, and says so only in the midst of its work

    found: Any = torch.onnx.export(
        needed(model),
        (example(model),),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    proto: library.ModelProto = found.model_proto
    library.helper.set_model_props(proto, {CARD: json.dumps(model.card)})
    check(proto.ByteSize() < 2**31, "--to onnx: a file of ONNX holds less than 2 GiB; use --to pt")
    content: bytes = proto.SerializeToString()
    return content


def safetensors(model: Deployed) -> bytes:
    """The network's tensors by name, and what else of the strategy predictions need; no program."""
    import safetensors.torch

    own = dict(needed(model).named_buffers())
    tensors = dict(model.network.state_dict())
    for name, held in model.held.items():
        if f"memory.{held}" in own:
            tensors[f"memory.{name}"] = own[f"memory.{held}"]
    tensors = {name: v.detach().contiguous().clone() for name, v in tensors.items()}
    return safetensors.torch.save(tensors, {CARD: json.dumps(model.card), "format": "pt"})


WRITERS: dict[str, Callable[[Deployed], bytes]] = {
    "safetensors": safetensors,
    "pt": program,
    "onnx": onnx,
    "torchscript": torchscript,
}
