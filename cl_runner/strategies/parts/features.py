"""Features of training samples, and exemplars by herding."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.core import Task, TrainState
from cl_runner.functional.buffers import Preference
from cl_runner.functional.exemplars import herding, unit
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
