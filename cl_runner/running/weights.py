"""The weights of a network as a file of named tensors: written at a run's end, and started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from cl_runner.config.schema import Config
from cl_runner.config.weights import WEIGHTS, pinned, weights_file
from cl_runner.core import Stream, TrainState
from cl_runner.errors import UserError, check
from cl_runner.nn.adapters import merged
from cl_runner.nn.frozen import within
from cl_runner.nn.networks import factory
from cl_runner.results.files import write_bytes
from cl_runner.running.frame import kind, short
from cl_runner.training.env import Env

Tensors = Mapping[str, Tensor]
MakeNet = Callable[[], nn.Module]


def save(out: Path, s: TrainState, env: Env) -> None:
    """Write the network that is trained, as `state_dict` names it, BatchNorm's statistics too.

    Adapters are merged into the weights that they change, so that what is written is the model.
    """
    import safetensors.torch

    env.commit(s)
    named = merged(env.flat.module)
    tensors = {name: v.detach().cpu().contiguous().clone() for name, v in named.items()}
    write_bytes(out / WEIGHTS, safetensors.torch.save(tensors))


def configured(config: Config, stream: Stream) -> tuple[MakeNet, Tensors | None]:
    """What makes the configured network, and the weights that it starts from (`init_from`)."""
    new = factory(config.model, stream.input_shape, stream.num_classes, config.plugins)
    if config.init_from is None:
        return new, None
    return new, chosen(read(config.resolved["init_from"]), config.init_only)


def chosen(tensors: Tensors, only: Sequence[str] | None) -> Tensors:
    """The tensors of these parts of the model, or all. Raises UserError for a part without."""
    if only is None:
        return tensors
    for part in only:
        there = any(within(name, [part]) for name in tensors)
        known = ", ".join(sorted({name.partition(".")[0] for name in tensors}))
        check(there, f"init_only: init_from has no {short(part)}; it has {short(known)}")
    return {name: v for name, v in tensors.items() if within(name, only)}


def read(init_from: str) -> Tensors:
    """The tensors by name. Raises UserError unless they are what `init_from` says, and finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = weights_file(pinned(init_from))
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"init_from: {file} is no file of safetensors: {short(error)}") from None
    for name, v in tensors.items():
        finite = not v.is_floating_point() or bool(v.isfinite().all())
        check(finite, f"init_from: {short(name)} in {file} is not finite")
    return tensors


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
        own = {k: v for k, v in taken.items() if k not in anew}
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
    """Raise UserError naming the first tensor that only one side has, or of another shape."""
    for name in sorted(names | own.keys()):
        here, there = own.get(name), tensors.get(name)
        if here is None:
            known = f"those of the network are {', '.join(own)}"
            raise UserError(f"init_from: the network has no {short(name)}; {short(known)}")
        if there is None:
            raise UserError(f"init_from: {name} is missing; the network has it, {kind(here)}")
        same = there.shape == here.shape
        same = same and there.is_floating_point() == here.is_floating_point()
        check(same, f"init_from: {name} is {kind(there)} there, and {kind(here)} in the network")


def told(network: nn.Module, tensors: Tensors, only: Sequence[str] | None = None) -> str:
    """One line on what a network that started from these weights has of them."""
    if only is not None:
        count, parts = sum(v.numel() for v in tensors.values()), ", ".join(only)
        return f"init_from: starts from {count:,} trained numbers, {parts}; all else is new"
    anew = unfitting_head(network, tensors)
    own = network.state_dict()
    count = sum(v.numel() for name, v in own.items() if name not in anew)
    line = f"init_from: starts from {count:,} trained numbers"
    for name in sorted(anew & own.keys(), reverse=True)[:1]:
        there = kind(tensors.get(name))
        line += f"; the output layer is new: {name} is {there} there and {kind(own[name])} here"
    return line
