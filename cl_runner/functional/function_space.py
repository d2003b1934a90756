"""A network as a Gaussian process on some samples: its variances there, and their kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.functional.losses import mask_logits


def probabilities(logits: Tensor, active: Tensor | None) -> Tensor:
    """The softmax of logits [B, K] over the active classes [B, K] (None: all), 0 elsewhere."""
    return mask_logits(logits, active).softmax(1)


def uncertainty(p: Tensor) -> Tensor:
    """sum_c p_c (1 - p_c) [B] of probabilities [B, K]: 0 where one of them is 1."""
    return (p * (1 - p)).sum(1)


def inverse_kernel(J: Tensor, variance: Tensor, jitter: float) -> Tensor:
    """(J diag(variance) J^T + jitter I)^-1, [n, n], of gradients J [n, P] and variances [P].

    What a network with weights N(theta, diag(variance)) says of n samples varies by this kernel, to
    first order. By eigenvalues, so that rounding makes none smaller than the jitter.
    """
    A = J * variance.sqrt()
    values, U = torch.linalg.eigh((A @ A.T).double())
    inverse: Tensor = U / (values.clamp_min(0) + jitter) @ U.T
    return inverse.to(J.dtype)


def half_square(v: Tensor, K: Tensor) -> Tensor:
    """1/2 sum v^T K v, 0-d, of v [..., n] and symmetric constants K [..., n, n].

    The gradient, K v, comes of the same product as the value.
    """
    pull = (K @ v.detach()[..., None])[..., 0]
    return (v * pull).sum() - (v.detach() * pull).sum() / 2
