"""Training from scratch: new weights for each task, and all data so far."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cl_runner.core import Stream, Task, TrainState
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.joint import union
from cl_runner.strategies.parts.restart import restarted
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class FromScratch(Strategy):
    """In task t trains a newly initialised network on the shuffled union of tasks 1 .. t.

    This is what is mostly done in practice with a model that is trained again each month, so every
    other way has to be held against it. Nothing depends on what was trained before, and the cost
    grows with the data. Each task has an initialisation of its own; the first has the run's. With
    model.weights those weights take the place of new ones, each time. It is the same as
    strategy=cumulative with restart=scratch.
    """

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        return restarted(s, task, env)

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        return union(stream[: t + 1])
