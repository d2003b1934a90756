"""Cumulative training: each task is trained together with all that came before it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cl_runner.core import Stream, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.strategies.base import Strategy, without_meaning
from cl_runner.strategies.joint import union
from cl_runner.strategies.parts.restart import restarted
from cl_runner.training.env import Env

RESTARTS = ("never", "scratch", "shrink_perturb")


@dataclass(frozen=True, kw_only=True)
class Cumulative(Strategy):
    """In task t trains on the shuffled union of tasks 1 .. t, going on from the weights of t - 1.

    The reference for intransigence: the diagonal of its matrix is the joint accuracy on task k.

    Weights that go on may generalise worse than new ones trained on the same data (Ash & Adams
    2020, "On warm-starting neural network training", arXiv 1910.08475). `restart` says where the
    second task and the later ones begin:
    - never: at the weights as they are, a warm start;
    - scratch: at new ones, as strategy=from_scratch;
    - shrink_perturb: at shrink * theta + perturb * theta', theta' a network initialised anew. The
      authors' code (JordanAsh/warm_start, run.py) does so in the place of noise of one scale for
      all parameters, and so before the first task, too, which here begins at the run's initial
      weights.
    With new weights, optimizer and BatchNorm statistics start anew.

    growing_batch: a step of task t takes t times `training.batch_size` samples, so that each task
    has as many in it on average as at first (the incremental joint training of De Lange et al.
    2023, arXiv 2205.13452, in which the old tasks' accuracy still falls for some steps).
    """

    restart: str = "never"
    shrink: float = 0.4
    perturb: float = 0.1
    growing_batch: bool = False

    def __post_init__(self) -> None:
        one_of("strategy.restart", self.restart, RESTARTS)
        check(0 <= self.shrink <= 1, f"strategy.shrink must lie in [0, 1], got {self.shrink}")
        check(self.perturb >= 0, f"strategy.perturb must be at least 0, got {self.perturb}")
        if self.restart != "shrink_perturb":
            without_meaning(self, f"strategy.restart={self.restart}", "shrink", "perturb")

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if self.restart == "never":
            return s
        if self.restart == "scratch":
            return restarted(s, task, env)
        return restarted(s, task, env, shrink=self.shrink, perturb=self.perturb)

    def batch_size(self, t: int, env: Env) -> int:
        return env.training.batch_size * (t + 1 if self.growing_batch else 1)

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        return union(stream[: t + 1])
