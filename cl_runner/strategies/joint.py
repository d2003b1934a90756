"""Joint training: all tasks at once. The upper bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_runner.core import Stream, Task, TrainState
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env


def union(tasks: tuple[Task, ...]) -> tuple[Tensor, Tensor]:
    """The training rows [n] of several tasks together, and their tasks [n]."""
    index = torch.cat([task.train for task in tasks])
    return index, torch.cat([torch.full_like(task.train, task.index) for task in tasks])


@dataclass(frozen=True, kw_only=True)
class Joint(Strategy):
    """Trains once, while the first task lasts, on the shuffled union of all tasks.

    This is the upper bound: what could be reached if nothing were forgotten. It takes as many steps
    as the whole sequence would: `training.epochs` over all data, or T times `training.iterations`.
    Later tasks train nothing, so the rows 1 .. T of the accuracy matrix are equal.
    """

    whole_sequence = True

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        return s._replace(t=torch.full_like(s.t, len(env.stream) - 1))  # all classes are seen

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        return union(stream[:]) if t == 0 else (stream[t].train[:0], t)
