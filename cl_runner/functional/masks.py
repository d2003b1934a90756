"""Binary masks of weights, and gradients that pass them as if they were not there."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, exactly, with the gradient of `soft` (Bengio et al. 2013, 1308.3432)."""
    return hard + (soft - soft.detach())


def largest(values: Tensor, share: float) -> Tensor:
    """Which values are among the largest, a share of all rounded up, as bool of their shape.

    Those that equal the least of them are, too.
    """
    flat, count = values.flatten(), math.ceil(share * values.numel())
    if flat.is_cuda:  # where kthvalue, a ninth of the time on a CPU, warns of its indices
        return values >= flat.topk(count).values[-1]
    return values >= flat.kthvalue(len(flat) - count + 1).values


def signed_constants(layers: Iterable[Tensor]) -> Tensor:
    """Weights of one size per layer with the signs of the given ones, as one vector [P].

    The size is sqrt(2 / inputs of a unit), the deviation of He et al. 2015 (arXiv 1502.01852)
    before a ReLU; vectors, which are biases, become 0.
    """
    return torch.cat(
        [p.sign().mul(math.sqrt(2 / p[0].numel()) if p.ndim > 1 else 0.0).flatten() for p in layers]
    )
