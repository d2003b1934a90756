"""Exemplars: few samples that stand for their class, and the classifier by their means.

Rebuffi et al. 2017, arXiv 1611.07725 (iCaRL). Features are the activations before the output layer,
as vectors of length 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.core import Task, TrainState
from cl_runner.functional.buffers import Ranking

if TYPE_CHECKING:
    from cl_runner.env import Env

CHUNK = 1000  # samples per forward pass


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


def features_of(s: TrainState, index: Tensor, task: int | Tensor, env: Env) -> Tensor:
    """Features [n, d] of training rows `index` [n] of a task, or of tasks [n], in evaluation mode.

    Not augmented.
    """
    tasks = torch.full_like(index, task) if isinstance(task, int) else task
    parts = []
    for rows, own in zip(index.split(CHUNK), tasks.split(CHUNK), strict=True):
        batch = env.gather(rows, own, s.t)
        parts.append(unit(env.answers(s.theta, batch.x, batch.task, last=-1)))
    return torch.cat(parts)


def herded(s: TrainState, task: Task, env: Env, capacity: int) -> Ranking:
    """Ranks a task's samples by herding; those in the `capacity` slots by their slot.

    `buffers.refill` writes a bin's samples in the order of their rank, so a smaller share later
    keeps the best of them (algorithm 5), and the slots need not say more.
    """

    def best(candidates: Tensor, k: int) -> Tensor:
        held, new = candidates[candidates < capacity], candidates[candidates >= capacity]
        if len(held) >= k:
            return held[:k]
        features = features_of(s, task.train[new - capacity], task.index, env)
        return torch.cat([held, new[herding(features, k - len(held))]])

    return best
