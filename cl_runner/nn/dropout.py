"""Dropout whose random numbers follow from a number that a step is given.

So a step with dropout draws nothing: it is one graph, the same on every device, and members that
are stacked have numbers of their own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

KEY = 2  # uniforms that make the key of a step
BITS = 24  # of a float32 in [0, 1)
LOW = 0xFFFFFFFF


class Dropout(nn.Module):
    """Sets each element to 0 with probability p in training, and divides the others by 1 - p.

    Srivastava et al. 2014, JMLR 15. channels: whole channels of [B, C, ...] instead of elements.
    Where no step has given a key it draws as nn.Dropout does.
    """

    def __init__(self, p: float, *, channels: bool = False) -> None:
        super().__init__()
        self.p, self.channels = p, channels
        self.key: Tensor | None = None  # [KEY] uniforms of the step
        self.calls = 0  # in the step, from a number of the layer's own on; each draws anew

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not (self.training and self.p):
            return x
        shape = (*x.shape[:2], *[1] * (x.dim() - 2)) if self.channels else x.shape
        if self.key is None:
            kept = torch.rand(shape, device=x.device) >= self.p
        else:
            self.calls += 1
            kept = uniform_bits(self.key, self.calls, shape) >= round(self.p * (LOW + 1))
        return torch.where(kept, x, 0.0) / max(1 - self.p, 1 / (LOW + 1))


def uniform_bits(key: Tensor, call: int, shape: Iterable[int]) -> Tensor:
    """Whole numbers in [0, 2^32), int64, that follow from a key [KEY] of uniforms and a call.

    They are got by counting (Salmon et al. 2011, doi 10.1145/2063384.2063405): element i has what
    two rounds of shifts and products make of i and the two halves of the key. No product is larger
    than 2^63, so that all devices agree.
    """
    size = torch.Size(shape)
    halves = (key * 2**BITS).long() << (32 - BITS)
    first, second = (halves ^ (call * 0x9E3779B1 & LOW)).unbind(-1)
    x: Tensor = torch.arange(size.numel(), device=key.device) ^ first
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & LOW
    x = x ^ second
    x = x ^ (x >> 15)
    x = (x * 0x297A2D39) & LOW
    x = x ^ (x >> 16)
    return x.view(size)


def keyed(network: nn.Module) -> nn.Module:
    """The network with Dropout in the places of torch's dropout layers."""
    kinds = {
        nn.Dropout: False,
        nn.Dropout1d: True,
        nn.Dropout2d: True,
        nn.Dropout3d: True,
    }
    ours: dict[nn.Module, Dropout] = {}
    for name, layer in [*network.named_modules(remove_duplicate=False)]:
        if name and (channels := kinds.get(type(layer))) is not None:
            assert isinstance(layer, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
            own = Dropout(layer.p, channels=channels).train(layer.training)
            network.set_submodule(name, ours.setdefault(layer, own))
    return network


def draws_itself(network: nn.Module) -> bool:
    """Whether training passes draw from torch's generator: by a `dropout` rate or a torch layer."""
    drawing = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)
    rates = [getattr(layer, "dropout", 0.0) for layer in network.modules()]
    return any(isinstance(layer, drawing) for layer in network.modules()) or any(
        isinstance(rate, int | float) and rate > 0 for rate in rates
    )
