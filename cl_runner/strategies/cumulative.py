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
    """

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        return union(stream[: t + 1])
