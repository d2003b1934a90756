"""Features of training samples, and exemplars by herding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.functional.buffers import Preference
from cl_runner.functional.exemplars import herding, unit
from cl_runner.nn.networks import activation_shapes
from cl_runner.training.env import Env

CHUNK = 1000  # samples per forward pass


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


def herded(s: TrainState, task: Task, env: Env, capacity: int) -> Preference:
    """Ranks a task's samples by herding; those in the `capacity` slots by their slot.

    `buffers.refill` writes a bin's samples in the order of their rank, so a smaller share later
    keeps the best of them (algorithm 5), and the slots need not say more.
    """

    def best(candidates: Tensor, k: int) -> Tensor:
        held, new = candidates[candidates < capacity], candidates[candidates >= capacity]
        if len(held) >= k:
            return held[:k]
        index, tasks = task.samples()
        own = tasks if isinstance(tasks, int) else tasks[new - capacity]
        features = features_of(s, index[new - capacity], own, env)
        return torch.cat([held, new[herding(features, k - len(held))]])

    return best


@torch.no_grad()
def mean_directions(s: TrainState, task: Task, env: Env) -> Tensor:
    """Each class's mean feature of length 1, of length 1 again, [K, D]; 0 without samples."""

    def add(total: Tensor, batch: Batch) -> Tensor:
        features = env.net(s.theta, batch.x, batch.task, last=-1)
        return total.index_add(0, batch.y, unit(features))

    total, _ = env.fold(add, torch.zeros(env.num_classes, width(env), device=env.device), s, task)
    return F.normalize(total)  # of the sum, which has the mean's direction


def width(env: Env) -> int:
    """The numbers of a sample's features, D."""
    shapes = activation_shapes(env.flat.module, env.input_shape)
    return math.prod((env.input_shape, *shapes)[-2])
