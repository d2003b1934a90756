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

from cl_runner.errors import UserError, check, exhausted
from cl_runner.exporting.deployed import Deployed
from cl_runner.functional.fixed_point import PRODUCTS

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
    except UserError:
        raise
    except Exception as error:
        if exhausted(error):
            raise
        strategy, network = model.card["strategy"]["name"], model.card["model"]["name"]
        reason = " ".join(str(error).split())[:200]
        what = f"strategy={strategy} with model={network} cannot be exported --to {form}"
        raise UserError(f"{what}: torch cannot trace it ({reason})") from error


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
    weights it predicts with is gone: the network has those weights. All operations are torch's.
    """
    whole = traced(model, example(model))
    if any(node.target is PRODUCTS.default for node in whole.graph.nodes):
        whole = whole.run_decompositions({PRODUCTS.default: products})
    module = whole.module()
    graph: Any = module.graph
    graph.eliminate_dead_code()
    module.recompile()
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            path, _, own = name.rpartition(".")
            delattr(module.get_submodule(path), own)
    return module


def products(high: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """What our own operator of that name computes (`functional.fixed_point`), by torch's own.

    Whole numbers, which float64 adds up without an error.
    """
    return ((128 * high.double() + low.double()) @ b.double()).float()


def program(model: Deployed) -> bytes:
    """A torch.export program: `torch.export.load` gives it back, without this package."""
    file = io.BytesIO()
    whole = traced(needed(model), example(model))
    torch.export.save(whole, file, extra_files={CARD: json.dumps(model.card)})
    return file.getvalue()


def torchscript(model: Deployed) -> bytes:
    """A traced module: `torch.jit.load` gives it back, in Python or C++.

    Frozen: its tensors are constants of its graph.
    """
    file, module = io.BytesIO(), needed(model)
    keep_open(module)
    found = torch.jit.trace(module, (example(model),))
    torch.jit.save(
        torch.jit.freeze(found.eval(), optimize_numerics=False),
        file,
        _extra_files={CARD: json.dumps(model.card)},
    )
    return file.getvalue()


def keep_open(module: nn.Module) -> None:
    """Let a module ask for the number of images in a way that a trace keeps as a question.

    What takes that number is called as a method: of an operator, a trace would keep the number.
    """
    graph: Any = module.graph
    asked = [node for node in graph.nodes if isinstance(node.meta.get("val"), torch.SymInt)]
    for node in asked:
        if node.target is torch.ops.aten.sym_size.int:
            node.target = size_of
        for user in set(node.users) - set(asked):
            if user.op == "call_function":
                user.op, user.target = "call_method", user.target.overloadpacket.__name__
    module.recompile()  # type: ignore[operator]  # it is a GraphModule


def size_of(x: Tensor, dimension: int) -> int:
    """A tensor's size."""
    return x.shape[dimension]


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
    """The tensors that predictions need, by name, and no program.

    Those of the network are called as its own `state_dict` has them, what else there is of the
    strategy begins with `memory.`; what prepares an image is in the card.
    """
    import safetensors.torch

    module = needed(model)
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    held = {f"memory.{place}": f"memory.{name}" for name, place in model.held.items()}
    tensors = {
        held.get(name, name.removeprefix("network.")): v.detach().contiguous().clone()
        for name, v in own.items()
        if name in held or name.startswith("network.")
    }
    return safetensors.torch.save(tensors, {CARD: json.dumps(model.card), "format": "pt"})


WRITERS: dict[str, Callable[[Deployed], bytes]] = {
    "safetensors": safetensors,
    "pt": program,
    "onnx": onnx,
    "torchscript": torchscript,
}
