"""Exemplars: few samples that stand for their class, and the classifier by their means.

Rebuffi et al. 2017, arXiv 1611.07725 (iCaRL). Features are the activations before the output layer,
as vectors of length 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(features: Tensor) -> Tensor:
    """Features [B, ...] as vectors of length 1, [B, d]; a vector of zeros stays what it is."""
    return F.normalize(features.flatten(1), dim=1)


def herding(features: Tensor, k: int) -> Tensor:
    """The k rows of features [n, d], best first, whose mean stays closest to the mean of all.

    With mu the mean of all and S the sum of those chosen, the j-th is argmin_i |mu - (S + f_i) / j|
    = argmin_i |f_i|^2 - 2 f_i . (j mu - S), none twice (algorithm 4; Welling 2009). min(k, n) rows.
    """
    mean, squares = features.mean(0), features.square().sum(1)
    order = torch.empty(min(k, len(features)), dtype=torch.int64, device=features.device)
    missing = mean  # j mu - S
    for j in range(len(order)):
        best = (squares - 2 * (features @ missing)).argmin()
        order[j] = best
        squares[best] = torch.inf
        missing = missing + mean - features[best]
    return order


def class_means(features: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """The classes' means [K, d] of features [n, d] with labels y [n], of length 1.

    Zero for a class without samples.
    """
    member = torch.arange(num_classes, device=y.device)[:, None] == y
    return unit(member.to(features.dtype) @ features)


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """Scores [B, K] = -|f - mean_c|^2 of features [B, d] and means [K, d] (eq. 2)."""
    squares = features.square().sum(1, keepdim=True) + means.square().sum(1)
    return 2 * (features @ means.T) - squares
