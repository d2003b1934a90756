"""Pretext tasks: what a network may learn of inputs without labels; and the small head for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.functional.losses import cross_entropy

Features = Callable[[Tensor], Tensor]  # inputs [n B, C, H, W], n times those of a batch -> [n B, d]
Head = Callable[[Tensor], Tensor]  # [n, d] -> [n, outputs]
EPS = 1e-5  # added to variances, as torch's BatchNorm does


# The head: a perceptron whose parameters are one vector.


def draw_head(sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Parameters of a perceptron with layers of these sizes, uniform as torch's nn.Linear's."""
    bounds = [torch.full(((a + 1) * b,), a**-0.5) for a, b in pairwise(sizes)]
    bound = torch.cat(bounds)
    return bound * (2 * torch.rand(len(bound), generator=generator) - 1)


def perceptron(head: Tensor, sizes: Sequence[int], x: Tensor, *, normed: bool = False) -> Tensor:
    """The perceptron's outputs [n, sizes[-1]] for x [n, sizes[0]]; a ReLU after each hidden layer.

    normed: hidden units are standardised over the batch before that.
    """
    at = 0
    for i, (a, b) in enumerate(pairwise(sizes), 1):
        weight, bias = head[at : at + a * b].view(b, a), head[at + a * b : at + (a + 1) * b]
        at += (a + 1) * b
        x = F.linear(x, weight, bias)
        if i < len(sizes) - 1:
            x = F.relu(standardised(x) if normed else x)
    return x


def standardised(x: Tensor) -> Tensor:
    """The columns of x [n, d] with mean 0 and variance 1, as by BatchNorm without weights."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + EPS).sqrt()


# What becomes of the inputs.


def rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Square images x [B, C, H, H] turned by 0, 90, 180, 270 degrees: [4 B, ...], and which [4 B].

    All four of each image are in one batch (Gidaris et al. 2018, section 4.1).
    """
    turned = torch.cat([x.rot90(k, (2, 3)) for k in range(4)])
    return turned, torch.arange(4, device=x.device).repeat_interleave(len(x))


def hidden(x: Tensor, uniform: Tensor, ratio: float, patch: int) -> Tensor:
    """Which values of x [B, C, H, W] are hidden, [B, 1, H, W] bool: whole patches, with p = ratio.

    uniform: [B, rows, columns], one for each patch of `patch` by `patch` pixels.
    """
    mask = (uniform < ratio).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return mask[:, None, : x.shape[2], : x.shape[3]]


def shifted(x: Tensor, uniform: Tensor, most: int) -> Tensor:
    """Images x [B, C, H, W], each moved by up to `most` pixels down and right, by uniforms [B, 2].

    What moves in are the pixels of the border, again and again.
    """
    B, C, H, W = x.shape
    moved = (uniform * (2 * most + 1)).long() - most
    rows = (torch.arange(H, device=x.device) - moved[:, :1]).clamp(0, H - 1)
    columns = (torch.arange(W, device=x.device) - moved[:, 1:]).clamp(0, W - 1)
    x = x.gather(2, rows[:, None, :, None].expand(B, C, H, W))
    return x.gather(3, columns[:, None, None, :].expand(B, C, H, W))


# The losses.


def rotation_error(features: Features, head: Head, x: Tensor) -> Tensor:
    """Cross-entropy of the four rotations (Gidaris et al. 2018, arXiv 1803.07728, eq. 2 and 3)."""
    turned, which = rotations(x)
    return cross_entropy(head(features(turned)), which)


def masked_error(features: Features, head: Head, x: Tensor, mask: Tensor) -> Tensor:
    """Mean square of (x - head(features of what is not masked)) over the masked values.

    mask: [B, 1, H, W] bool. Masked values are 0 for the network (He et al. 2022, arXiv 2111.06377,
    section 3, whose encoder never sees them).
    """
    guessed = head(features(x.masked_fill(mask, 0.0)))
    error = (guessed - x.flatten(1)).square() * mask.expand_as(x).flatten(1)
    return error.sum() / (mask.sum() * x.shape[1]).clamp_min(1)


def barlow_error(z1: Tensor, z2: Tensor, weight: float) -> Tensor:
    """sum_i (1 - C_ii)^2 + weight * sum_{i != j} C_ij^2 of two views' embeddings [B, e].

    C is the cross-correlation matrix over the batch (Zbontar et al. 2021, arXiv 2103.03230, eq. 1).
    """
    C = standardised(z1).T @ standardised(z2) / len(z1)
    on = C.diagonal()
    return (1 - on).square().sum() + weight * (C.square().sum() - on.square().sum())
