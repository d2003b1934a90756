"""Experience replay with the penalty of EWC: an example of how two strategies combine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.functional.importance import merge_quadratics
from cl_runner.strategies.base import Aux
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.importance import check_fisher, fisher_diagonal
from cl_runner.strategies.parts.penalty import PENALTIES, Quadratic, unstable
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class EREWC(ER):
    """ER's loss + lambda / 2 sum_p F_p (theta_p - theta*_p)^2: replay and EWC at once.

    This is no paper's method but an example of how to combine two strategies: one is the base
    class, and the other comes in through the functions that it is made of. Here ER draws, joins and
    remembers; EWC adds two vectors of memory, a term of the loss, and the Fisher information at the
    end of a task. The penalties of the tasks are merged into one, as strategy=ewc does in its mode
    `separate`; the Fisher is that of the task's own samples, not of the buffer's. The keys mean
    what they mean for strategy=er and strategy=ewc. penalty `proximal`, stable at any lambda, takes
    its step after the optimizer's own; `loss` adds the penalty to the loss.
    """

    lambda_: float = 3.0
    fisher_labels: str = "exact"
    fisher_samples: int | None = 5000
    penalty: str = "proximal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        one_of("strategy.penalty", self.penalty, PENALTIES)
        check_fisher(self.fisher_labels, self.fisher_samples)

    def needs_borders(self, scenario: str) -> str:
        return "it measures the Fisher information when a task ends"

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        anchor = theta.detach().clone()
        return super().init(theta, env) | {
            "fisher": anchor.new_zeros(len(anchor)),
            "anchor": anchor,
        }

    def quadratic(self, s: TrainState) -> Quadratic:
        """The penalty, lambda / 2 sum_p F_p (theta_p - theta*_p)^2."""
        return Quadratic(self.lambda_ / 2, s.memory["fisher"], s.memory["anchor"])

    def remarks(self, s: TrainState, env: Env) -> Iterator[str]:
        return unstable(s, self.quadratic(s), self.penalty, env)

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(theta, s, batch, env)  # batch: the incoming and the replayed
        if self.penalty == "loss":
            loss = loss + self.quadratic(s)(theta)
        return loss, aux

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        s, aux = super().step(s, batch, env)
        if self.penalty == "proximal":
            s = self.quadratic(s).proximal_step(s, env)
        return s, aux

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        s = super().end_task(s, task, env)
        old, theta = s.memory["fisher"], s.theta.detach().clone()
        new = fisher_diagonal(s, task, env, labels=self.fisher_labels, samples=self.fisher_samples)
        anchor = merge_quadratics(s.memory["anchor"], old, theta, new)
        return s._replace(memory=s.memory | {"fisher": old + new, "anchor": anchor})
