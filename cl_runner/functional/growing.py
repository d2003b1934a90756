"""Networks whose units are in use or free: subnetworks, sparsity, drift and divided units.

A network is its layers from the bottom up, each a weight [out, in] and a bias [out]; the bias is
one of its unit's incoming weights. A set of units is a mask for each level: inputs, hidden layers,
outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

Layers = list[tuple[Tensor, Tensor]]
Units = list[Tensor]


def as_layers(parameters: Iterable[Tensor]) -> Layers:
    """Weight and bias of the first layer, weight and bias of the second, ... as pairs."""
    flat = list(parameters)
    return list(zip(flat[::2], flat[1::2], strict=True))


def as_vector(layers: Layers) -> Tensor:
    """The parameters of all layers, one after another, [P]."""
    return torch.cat([parameter.flatten() for layer in layers for parameter in layer])


def within(units: Units) -> Tensor:
    """Which parameters [P] have both of their ends among `units`, as bool."""
    return as_vector([(above[:, None] & below, above) for below, above in pairwise(units)])


def touching(units: Units) -> Tensor:
    """Which parameters [P] have an end among `units`, as bool."""
    return as_vector([(above[:, None] | below, above) for below, above in pairwise(units)])


def connected(layers: Layers, outputs: Tensor) -> Units:
    """The units from which a path of weights that are not 0 leads to one of `outputs` [K] bool.

    Breadth-first, from the outputs down to the inputs.
    """
    units = [outputs]
    for weight, _ in reversed(layers):
        units.append(((weight != 0) & units[-1][:, None]).any(0))
    return units[::-1]


def soft_threshold(theta: Tensor, threshold: Tensor) -> Tensor:
    """argmin_z 1/2 |z - theta|^2 + threshold |z|_1: exact zeros where |theta_p| <= threshold."""
    return theta.sign() * (theta.abs() - threshold).clamp_min(0)


def group_threshold(layers: Layers, members: Layers, threshold: Tensor) -> Layers:
    """argmin_z 1/2 |z - w|^2 + threshold sum_i |z_i|_2 over the incoming weights w_i of unit i.

    A unit's group is those of its weights that are `members` (bool, shaped like the layers); the
    others stay as they are. After soft_threshold it is the proximal step of both penalties' sum.
    """
    shrunk = []
    for (weight, bias), (of_weight, of_bias) in zip(layers, members, strict=True):
        square = (weight.square() * of_weight).sum(1) + bias.square() * of_bias
        scale = (1 - threshold / square.sqrt().clamp_min(1e-30)).clamp_min(0)
        shrunk.append(
            (
                torch.where(of_weight, weight * scale[:, None], weight),
                torch.where(of_bias, bias * scale, bias),
            )
        )
    return shrunk


def without_input(layers: Layers) -> list[Tensor]:
    """The units [out] of each layer whose incoming weights are all 0, as bool."""
    return [(weight == 0).all(1) & (bias == 0) for weight, bias in layers]


def drifted(new: Layers, old: Layers, sigma: float) -> list[Tensor]:
    """The units of each layer with |w_i - w_i^old|_2 > sigma, as indices, the farthest first."""
    result = []
    for (weight, bias), (old_weight, old_bias) in zip(new, old, strict=True):
        rho = ((weight - old_weight).square().sum(1) + (bias - old_bias).square()).sqrt()
        result.append(rho.argsort(descending=True, stable=True)[: int((rho > sigma).sum())])
    return result


def duplicate(
    layers: Layers, old: Layers, originals: list[Tensor], copies: list[Tensor], recent: Units
) -> Layers:
    """Divide hidden units: in layer n, copies[n], free till now, take over from originals[n].

    The copy gets its original's incoming weights, and the original its `old` ones. The copy feeds
    those `recent` units (a set, copies included) that the original fed; the others stay with it.
    """
    layers = [(weight.clone(), bias.clone()) for weight, bias in layers]
    for n, (i, copy) in enumerate(zip(originals, copies, strict=True)):
        for parameter, before in zip(layers[n], old[n], strict=True):
            parameter[copy] = parameter[i]
            parameter[i] = before[i]
    for n, (i, copy) in enumerate(zip(originals, copies, strict=True)):
        above, fed = layers[n + 1][0], recent[n + 2][:, None]
        above[:, copy], above[:, i] = above[:, i] * fed, above[:, i] * ~fed
    return layers


def linear_init(layers: Layers, generator: torch.Generator) -> Layers:
    """Layers of these shapes as torch's nn.Linear draws them: uniform in +-1 / sqrt(in)."""

    def draw(parameter: Tensor, inputs: int) -> Tensor:
        uniform = torch.rand(parameter.shape, generator=generator, device=parameter.device)
        return (uniform - 0.5) * (2 / math.sqrt(inputs))

    return [(draw(weight, weight.shape[1]), draw(bias, weight.shape[1])) for weight, bias in layers]
