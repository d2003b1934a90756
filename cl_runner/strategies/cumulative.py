"""Cumulative training: each task is trained together with all that came before it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cl_runner.core import Stream, TrainState
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.joint import union
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class Cumulative(Strategy):
    """In task t trains on the shuffled union of tasks 1 .. t, going on from the weights of t - 1.

    The reference for intransigence: the diagonal of its matrix is the joint accuracy on task k.
    growing_batch: a step of task t takes t times `training.batch_size` samples, so that each task
    has as many in it on average as at first (the incremental joint training of De Lange et al.
    2023, arXiv 2205.13452, in which the old tasks' accuracy still falls for some steps).
    """

    growing_batch: bool = False

    def batch_size(self, t: int, env: Env) -> int:
        return env.training.batch_size * (t + 1 if self.growing_batch else 1)

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        return union(stream[: t + 1])
