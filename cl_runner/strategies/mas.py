"""Memory aware synapses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.importance import output_sensitivity
from cl_runner.strategies.parts.penalty import PENALTIES, Quadratic, descend, unstable
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class MAS(Strategy):
    """Loss + lambda sum_p Omega_p (theta_p - theta*_p)^2 (Aljundi et al. 2018, 1711.09601, eq. 3).

    There is no 1/2. Omega_p is the mean over samples, one by one, of |d |f(x)|^2 / d theta_p|, the
    sensitivity of the squared norm of the output; it needs no labels, and the tasks' sum is kept.
    - penalty `loss`: added to the loss, as the paper has it. With plain SGD the step on the penalty
      diverges once lr * lambda * max Omega > 1, and Omega has no bound: with lr 0.1 a lambda of 1
      does on every benchmark. `proximal`: the penalty's proximal step after the optimizer's own
      (`Quadratic.proximal_step`): the same minimum, and stable at any lambda.
    What is shown as the loss is without the penalty.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")

    lambda_: float = 0.1
    samples: int | None = None
    penalty: str = "proximal"

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        one_of("strategy.penalty", self.penalty, PENALTIES)
        check(
            self.samples is None or self.samples >= 1,
            f"strategy.samples must be at least 1, got {self.samples}",
        )

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        anchor = theta.detach().clone()
        return {"anchor": anchor, "importance": torch.zeros_like(anchor)}

    def quadratic(self, s: TrainState) -> Quadratic:
        """The penalty, lambda sum_p Omega_p (theta_p - theta*_p)^2."""
        return Quadratic(self.lambda_, s.memory["importance"], s.memory["anchor"])

    def remarks(self, s: TrainState, env: Env) -> Iterator[str]:
        return unstable(s, self.quadratic(s), self.penalty, env)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        s = descend(s, grad, self.quadratic(s), self.penalty, env)  # down loss + quadratic
        return s, {**aux, "loss": loss}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        new = output_sensitivity(s, task, env, samples=self.samples)
        importance = s.memory["importance"] + new
        return s._replace(memory={"anchor": s.theta.detach().clone(), "importance": importance})
