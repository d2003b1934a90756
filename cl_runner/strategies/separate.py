"""Separate networks: one for each task, trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cl_runner.core import Task, TrainState
from cl_runner.errors import check
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class Separate(Strategy):
    """One network per task: nothing is forgotten, nothing is transferred, and memory grows by T.

    Each network starts from the run's initial weights, with a fresh optimizer. This is for
    task-incremental learning only, since the task chooses the network.
    """

    scenarios = ("task",)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            not env.flat.buffers,
            f"strategy={self.name} needs a model without BatchNorm, whose statistics are shared",
        )
        initial = theta.detach().clone()
        return {"initial": initial, "networks": initial.repeat(env.num_tasks, 1)}  # [T, P]

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        return env.restart(s, s.memory["initial"])

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        networks = s.memory["networks"].clone()
        networks[task.index] = s.theta.detach()
        return s._replace(memory=s.memory | {"networks": networks})

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        return super().predict(s._replace(theta=s.memory["networks"][task]), x, task, env)
