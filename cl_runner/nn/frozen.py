"""Parts of a network that stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from torch import nn

from cl_runner.config.schema import ALL_BUT_HEAD
from cl_runner.errors import check


def within(name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter's or layer's name is one of the parts, or that of something in them."""
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def frozen(make_net: Callable[[], nn.Module], parts: Sequence[str]) -> Callable[[], nn.Module]:
    """make_net, but these parts are not trained, and stay in evaluation mode.

    ALL_BUT_HEAD as the only part: all but the output layer. So their BatchNorm takes its running
    statistics, which do not move, and nothing is dropped in them: they compute the same in training
    and in evaluation. It raises UserError for a part that
    has no parameters, and where none is left to train.
    """
    if not parts:
        return make_net

    def made() -> nn.Module:
        network = make_net()
        names = [name for name, _ in network.named_parameters()]
        if [*parts] == [ALL_BUT_HEAD]:
            return freeze(network, body(network, names))
        for part in parts:
            has = any(within(name, [part]) for name in names)
            top = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            check(has, f"model.freeze: the model has no {part}; it consists of {top}")
        return freeze(network, parts)

    return made


def body(network: nn.Module, names: Sequence[str]) -> list[str]:
    """All parts but the output layer, the last nn.Linear: layers, and parameters outside them.

    Raises UserError for a network without one.
    """
    layers = {name: layer for name, layer in network.named_modules() if name}
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    check(bool(linear), f"model.freeze={ALL_BUT_HEAD}: the model has no nn.Linear as output layer")
    head = linear[-1]
    around = [name for name in layers if within(head, [name])]
    others = [name for name in layers if not within(name, [head]) and name not in around]
    return [*others, *(name for name in names if not within(name, [head, *others]))]


def freeze(network: nn.Module, parts: Sequence[str]) -> nn.Module:
    """The network, whose parts are no longer trained. Raises UserError where nothing is left."""
    for name, p in network.named_parameters():
        p.requires_grad_(p.requires_grad and not within(name, parts))
    left = any(p.requires_grad for p in network.parameters())
    check(left, f"model.freeze={[*parts]} leaves no parameter to train")
    for name, layer in network.named_modules():
        if within(name, parts):
            layer.__class__ = in_evaluation(type(layer))  # type: ignore[arg-type]  # it is hashable
            layer.eval()
    return network


class InEvaluation(nn.Module):
    """A layer that is never in training mode."""

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)


@cache
def in_evaluation(kind: type[nn.Module]) -> type[nn.Module]:
    """The kind of layer that computes what `kind` does in evaluation mode."""
    return type(f"{kind.__name__}InEvaluation", (InEvaluation, kind), {})
