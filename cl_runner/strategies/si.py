"""Synaptic intelligence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.penalty import PENALTIES, Quadratic, unstable
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class SI(Strategy):
    """Loss + lambda sum_p Omega_p (theta_p - theta*_p)^2 (Zenke et al. 2017, 1703.04200, eq. 4).

    A weight is held near its old value theta* the more strongly, the more it did to lower the loss
    while earlier tasks were trained. lambda is the paper's c; there is no 1/2. Along the way,
    omega_p = -sum g_p (change of theta_p) is what parameter p contributed to the decrease of the
    loss (eq. 3), and at the end of a task Omega_p += omega_p / (Delta_p^2 + damping), Delta_p being
    p's change during the task (eq. 5; damping is the paper's xi).
    - gradient `task`: g is the gradient of the loss without the penalty (the paper); `total`: with
      it, as some implementations have it.
    - clip: negative omega_p, by which the loss grew, count as 0, in each task for itself, as the
      authors of A-GEM and of XdG have it. The paper's own code (github.com/ganguli-lab/pathint)
      clips the sum over tasks, Omega_p, which differs once a task has a negative omega_p.
    - penalty `loss`: added to the loss, as the paper has it. With plain SGD the step on the penalty
      diverges once lr * lambda * max Omega > 1. `proximal`: the penalty's proximal step after the
      optimizer's own (`Quadratic.proximal_step`): stable at any lambda, and part of the change of
      theta_p.
    The loss that is shown while it trains is without the penalty.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")

    lambda_: float = 10.0
    damping: float = 0.1
    gradient: str = "task"
    clip: bool = True
    penalty: str = "proximal"

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(self.damping > 0, f"strategy.damping must be positive, got {self.damping}")
        one_of("strategy.gradient", self.gradient, ("task", "total"))
        one_of("strategy.penalty", self.penalty, PENALTIES)
        check(
            self.gradient == "task" or self.penalty == "loss",
            "strategy.gradient=total needs strategy.penalty=loss: a proximal step has no gradient",
        )

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        anchor = theta.detach().clone()
        return {
            "anchor": anchor,
            "importance": torch.zeros_like(anchor),
            "path": torch.zeros_like(anchor),
        }

    def quadratic(self, s: TrainState) -> Quadratic:
        """The penalty, lambda sum_p Omega_p (theta_p - theta*_p)^2."""
        return Quadratic(self.lambda_, s.memory["importance"], s.memory["anchor"])

    def remarks(self, s: TrainState, env: Env) -> Iterator[str]:
        return unstable(s, self.quadratic(s), self.penalty, env)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        before, memory, penalty = s.theta.detach(), s.memory, self.quadratic(s)
        total, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        task = total
        if self.penalty == "loss":  # not in place: the path needs task
            pull = (before - penalty.anchor).mul_(penalty.strength)
            total = torch.addcmul(task, penalty.importance, pull)
        s = env.update(s, total)
        if self.penalty == "proximal":
            s = penalty.proximal_step(s, env)
        g = task if self.gradient == "task" else total
        path = torch.addcmul(memory["path"], g, s.theta - before, value=-1)
        return s._replace(memory=memory | {"path": path}), {**aux, "loss": loss}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        theta, path = s.theta.detach().clone(), s.memory["path"]
        moved = theta - s.memory["anchor"]
        gained = path.clamp_min(0) if self.clip else path
        importance = s.memory["importance"] + gained / (moved.square() + self.damping)
        memory = {"anchor": theta, "importance": importance, "path": torch.zeros_like(path)}
        return s._replace(memory=memory)
