"""Memory aware synapses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.env import Env
from cl_runner.errors import check
from cl_runner.functional.importance import output_sensitivity
from cl_runner.functional.losses import pulled
from cl_runner.strategies.base import Aux, Strategy


@dataclass(frozen=True, kw_only=True)
class MAS(Strategy):
    """Loss + lambda sum_p Omega_p (theta_p - theta*_p)^2 (Aljundi et al. 2018, 1711.09601, eq. 3).

    There is no 1/2. Omega_p is the mean over samples, one by one, of |d |f(x)|^2 / d theta_p|, the
    sensitivity of the squared norm of the output; it needs no labels, and the tasks' sum is kept.
    What is shown as the loss is without the penalty, whose gradient is added by hand.
    """

    regulariser: ClassVar[bool] = True

    lambda_: float = 1.0
    samples: int | None = None

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(
            self.samples is None or self.samples >= 1,
            f"strategy.samples must be at least 1, got {self.samples}",
        )

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        anchor = theta.detach().clone()
        return {"anchor": anchor, "importance": torch.zeros_like(anchor)}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        anchor, importance = s.memory["anchor"], s.memory["importance"]
        grad = pulled(grad, s.theta, anchor, importance, 2 * self.lambda_)  # 2: there is no 1/2
        return env.update(s, grad), {**aux, "loss": loss}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        new = output_sensitivity(s, task, env, samples=self.samples)
        importance = s.memory["importance"] + new
        return s._replace(memory={"anchor": s.theta.detach().clone(), "importance": importance})
