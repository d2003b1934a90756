"""The weights of a network as a file of named tensors: written at a run's end, and started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.config.libraries import default_weights
from cl_runner.config.schema import DEFAULT, Config, Library
from cl_runner.config.weights import WEIGHTS, pinned, weights_file
from cl_runner.core import Stream, TrainState
from cl_runner.errors import UserError, check, exhausted
from cl_runner.nn.adapters import merged
from cl_runner.nn.frozen import within
from cl_runner.nn.networks import factory
from cl_runner.results.files import write_bytes
from cl_runner.running.frame import kind, short
from cl_runner.training.env import Env

Tensors = Mapping[str, Tensor]
MakeNet = Callable[[], nn.Module]
COUNT = "num_batches_tracked"  # of BatchNorm


def save(out: Path, s: TrainState, env: Env) -> None:
    """Write the network that is trained, as `state_dict` names it, BatchNorm's statistics too.

    Adapters are merged into the weights that they change, so that what is written is the model.
    """
    import safetensors.torch

    env.commit(s)
    named = merged(env.flat.module)
    tensors = {name: v.detach().cpu().contiguous().clone() for name, v in named.items()}
    write_bytes(out / WEIGHTS, safetensors.torch.save(tensors))


def configured(
    config: Config, stream: Stream, size: int | None = None
) -> tuple[MakeNet, Tensors | None]:
    """What makes the configured network, and the weights that it starts from (`model.weights`).

    size: what the stream's images are still to be brought to; None: they have their size.
    """
    channels, height, width = stream.input_shape
    shape = (channels, size or height, size or width)
    new = factory(config.model, shape, stream.num_classes, config.plugins)
    if config.model.weights is None:
        return new, None
    name, model = config.resolved["model"]["weights"], config.model
    if isinstance(model, Library) and model.weights.startswith(DEFAULT):  # type: ignore[union-attr]
        return new, chosen(default_weights(model.name, model.arch), model.weights_for)
    return new, chosen(read(name), model.weights_for)


def chosen(tensors: Tensors, only: Sequence[str] | None) -> Tensors:
    """The tensors of these parts of the model, or all. Raises UserError for a part without."""
    if only is None:
        return tensors
    for part in only:
        there = any(within(name, [part]) for name in tensors)
        known = short(", ".join(sorted({name.partition(".")[0] for name in tensors})))
        check(there, f"model.weights_for: the weights have no {short(part)}; they have {known}")
    return {name: v for name, v in tensors.items() if within(name, only)}


def read(weights: str) -> Tensors:
    """The tensors by name. Raises UserError unless they are what `weights` says, and finite."""
    file = weights_file(pinned(weights))
    tensors = of_safetensors(file) if file.suffix == ".safetensors" else of_torch(file)
    for name, v in tensors.items():
        finite = not v.is_floating_point() or bool(v.isfinite().all())
        check(finite, f"model.weights: {short(name)} in {file} is not finite")
    return tensors


def of_safetensors(file: Path) -> Tensors:
    """The tensors of a file of safetensors. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        reason = short(error)
        raise UserError(f"model.weights: {file} is no file of safetensors: {reason}") from None


def of_torch(file: Path) -> Tensors:
    """The tensors of a file that torch.save has written; nothing but tensors is unpickled.

    Also those below "state_dict" or "model", and without the "module." of a DataParallel. Raises
    UserError for a file that is damaged, and for one that holds what might execute.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if exhausted(error):
            raise
        hint = "it must hold tensors alone, as torch.save(model.state_dict(), FILE) writes them"
        raise UserError(f"model.weights: cannot read {file} ({reason(error)}): {hint}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    named = isinstance(found, Mapping) and bool(found)
    odd = [k for k, v in found.items() if not isinstance(v, Tensor)] if named else []
    check(named and not odd, f"model.weights: {file} holds no named tensors{what_else(odd)}")
    prefix = "module." if all(str(name).startswith("module.") for name in found) else ""
    return {str(name).removeprefix(prefix): v.detach() for name, v in found.items()}


def what_else(names: Sequence[Any]) -> str:
    """What a file holds in the place of tensors, for a message."""
    return f", but {short(', '.join(map(str, names)))}" if names else ""


def reason(error: Exception) -> str:
    """An error of torch's in a few words: the first sentence that says why."""
    text = " ".join(str(error).split())
    if "Unsupported" in text or "weights_only" in text.lower():
        return "it is a pickle of more than tensors"
    return short(f"{type(error).__name__}: {text}")


def starting_from(
    make_net: MakeNet, tensors: Tensors, only: Sequence[str] | None = None
) -> MakeNet:
    """make_net, but with these weights; an output layer that does not fit stays as it was drawn.

    only: the parts of the model that they are of; what else there is stays as it was drawn. It
    raises UserError if anything does not fit.
    """

    def loaded() -> nn.Module:
        network = make_net()
        anew = unfitting_head(network, tensors) if only is None else set()
        taken = {k: v for k, v in network.state_dict().items() if only is None or within(k, only)}
        uncounted = {k for k in taken if k.endswith(COUNT) and k not in tensors}
        own = {k: v for k, v in taken.items() if k not in anew | uncounted}
        check_fit(tensors.keys() - anew, own, tensors)
        for name, v in own.items():
            v.copy_(tensors[name])
        return network

    return loaded


def unfitting_head(network: nn.Module, tensors: Tensors) -> set[str]:
    """The names of the output layer's tensors if one is missing or of another shape, else none."""
    names, own = output_layer(network), network.state_dict()
    shapes = [(tensors[k].shape if k in tensors else None, own[k].shape) for k in names & {*own}]
    return names if any(there != here for there, here in shapes) else set()


def output_layer(network: nn.Module) -> set[str]:
    """The names of the output layer's tensors. It is the last nn.Linear."""
    layers = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    return {f"{layers[-1]}.{part}" for part in ("weight", "bias")} if layers else set()


def check_fit(names: set[str], own: Tensors, tensors: Tensors) -> None:
    """Raise UserError naming the first tensor that one side lacks, or of another shape.

    And how many others there are. A count of BatchNorm's batches, which nothing depends on and
    which old files lack, is not missed.
    """
    differing = []
    for name in sorted(names | own.keys()):
        here, there = own.get(name), tensors.get(name)
        if here is None:
            known = short(f"those of the network are {', '.join(own)}")
            differing.append(f"the network has no {short(name)}; {known}")
        elif there is None:
            differing.append(f"{name} is missing; the network has it, {kind(here)}")
        elif (there.shape, there.is_floating_point()) != (here.shape, here.is_floating_point()):
            differing.append(f"{name} is {kind(there)} there, and {kind(here)} in the network")
    others = f"; {len(differing) - 1} more tensors do not fit" if len(differing) > 1 else ""
    check(not differing, f"model.weights: {differing[0] if differing else ''}{others}")


def told(network: nn.Module, tensors: Tensors, only: Sequence[str] | None = None) -> str:
    """One line on what a network that started from these weights has of them."""
    if only is not None:
        count, parts = sum(v.numel() for v in tensors.values()), ", ".join(only)
        return f"model.weights: starts from {count:,} trained numbers, {parts}; all else is new"
    anew = unfitting_head(network, tensors)
    own = network.state_dict()
    count = sum(v.numel() for name, v in own.items() if name not in anew)
    line = f"model.weights: starts from {count:,} trained numbers"
    for name in sorted(anew & own.keys(), reverse=True)[:1]:
        there = kind(tensors.get(name))
        line += f"; the output layer is new: {name} is {there} there and {kind(own[name])} here"
    return line
