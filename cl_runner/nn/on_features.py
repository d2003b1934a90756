"""A network whose first stages are left out: its inputs are what these have made of the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.nn.network import Network, Stage


class OnFeatures(Network):
    """A network on the features that its first `left_out` stages give, of a shape [...] each.

    It has all tensors of the whole network, by the same names, and as many stages; those that are
    left out pass on what they get. Its class is one of this and of the network's own.
    """

    channels_last: ClassVar[bool] = False
    left_out: int
    shape: tuple[int, ...]

    def stages(self) -> Sequence[Stage]:
        rest = super().stages()[self.left_out :]
        return [self.shaped, *[same] * (self.left_out - 1), *rest]

    def shaped(self, x: Tensor) -> Tensor:
        """Features [B, 1, 1, D] in the shape in which the stages give them, [B, ...]."""
        return x.reshape(len(x), *self.shape)


def same(x: Tensor) -> Tensor:
    """What a stage that is left out does."""
    return x


def on_features(
    make_net: Callable[[], nn.Module], left_out: int, shape: tuple[int, ...]
) -> Callable[[], nn.Module]:
    """make_net, but its networks are on the features of their first `left_out` stages."""

    def made() -> nn.Module:
        network = make_net()
        network.__class__ = both(type(network))  # type: ignore[arg-type]  # it is hashable
        network.__dict__ |= {"left_out": left_out, "shape": shape}
        return network

    return made


@cache
def both(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of such a network."""
    return type(f"{kind.__name__}OnFeatures", (OnFeatures, kind), {})


def fixed_stages(network: Network, input_shape: tuple[int, int, int]) -> tuple[int, list[int]]:
    """How many of the first stages depend on nothing that is trained, and the shape after them."""
    x = next(network.parameters()).detach().new_zeros(1, *input_shape)
    training, shape = network.training, [*input_shape]
    network.eval()
    try:
        with torch.enable_grad():
            for i, stage in enumerate(network.stages()):
                x = stage(x)
                if x.requires_grad:
                    return i, shape
                shape = [*x.shape[1:]]
    finally:
        network.train(training)
    raise AssertionError("a network has something to train")
