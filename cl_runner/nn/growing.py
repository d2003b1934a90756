"""Networks with room to grow: fully connected, all their units allocated, some not yet in use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_runner.functional.growing import Layers, Units, as_layers
from cl_runner.nn.flat import Flat
from cl_runner.nn.networks import MLP


def with_reserve(net: MLP, reserve: int) -> MLP:
    """The network with `reserve` more units in each hidden layer, all of whose weights are 0.

    It computes what the network computes, and no gradient reaches such a unit.
    """
    first, *middle = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    hidden = [layer.in_features + reserve for layer in middle]
    large = MLP(first.in_features, hidden, middle[-1].out_features, "default", net.dropout.p)
    with torch.no_grad():
        for name, small in net.named_parameters():
            parameter = large.get_parameter(name).zero_()
            parameter[tuple(slice(extent) for extent in small.shape)] = small
    return large


def layers(flat: Flat, vector: Tensor) -> Layers:
    """A vector [P] as the network's layers."""
    return as_layers(flat.views(vector).values())


def hidden_sizes(flat: Flat) -> list[int]:
    """The number of units of each hidden layer, H in all."""
    return [len(bias) for _, bias in layers(flat, flat.theta)[:-1]]


def units(flat: Flat, hidden: Tensor, outputs: Tensor) -> Units:
    """All inputs, the hidden units of a mask [H], and the outputs of a mask [K]."""
    inputs = torch.ones_like(hidden[:1]).expand(flat.shapes[0][1])
    return [inputs, *hidden.split(hidden_sizes(flat)), outputs]


def indices(flat: Flat, hidden: Tensor, most: int) -> list[Tensor]:
    """The first `most` units of each hidden layer that are in a mask [H], as indices by layer."""
    return [mask.nonzero()[:most, 0] for mask in hidden.split(hidden_sizes(flat))]


def stamped(flat: Flat, stamp: Tensor, chosen: list[Tensor], t: int) -> Tensor:
    """The stamps [H] with those of the `chosen` units, indices by layer, at t."""
    stamp = stamp.clone()
    for layer, index in zip(stamp.split(hidden_sizes(flat)), chosen, strict=True):
        layer[index] = t
    return stamp
