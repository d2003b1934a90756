"""L2: keep close to the weights of the last task, every weight alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.penalty import Quadratic
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class L2(Strategy):
    """Loss + lambda / 2 |theta - theta_{t-1}|^2 (the baseline of Kirkpatrick et al. 2017, fig. 2A).

    All weights are held near those of the end of the last task, each as strongly: EWC with every
    importance 1. There is no penalty in the first task. The loss that is shown while it trains
    includes the penalty.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")

    lambda_: float = 0.01

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        return {"anchor": theta.detach().clone(), "importance": torch.zeros((), device=env.device)}

    def quadratic(self, s: TrainState) -> Quadratic:
        """The penalty, lambda / 2 |theta - theta_{t-1}|^2; in the first task it is 0."""
        return Quadratic(self.lambda_ / 2, s.memory["importance"], s.memory["anchor"])

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(theta, s, batch, env)
        return loss + self.quadratic(s)(theta), aux

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        one = torch.ones_like(s.memory["importance"])
        return s._replace(memory={"anchor": s.theta.detach().clone(), "importance": one})
