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
from cl_runner.training.unlabelled import read_rows, without_labels


@dataclass(frozen=True, kw_only=True)
class MAS(Strategy):
    """Loss + lambda sum_p Omega_p (theta_p - theta*_p)^2 (Aljundi et al. 2018, 1711.09601, eq. 3).

    A weight is held near its old value theta* the more strongly, the more the network's output
    depends on it. There is no 1/2. Omega_p is the mean over samples, one by one, of
    |d |f(x)|^2 / d theta_p|, the sensitivity of the squared norm of the output; it needs no labels,
    and the tasks' sum is kept.
    - gamma: what of the old Omega is kept at the end of a task, before the new one is added; with 0
      it is the last task's alone, as in the code of github.com/facebookresearch/agem.
    - penalty `loss`: added to the loss, as the paper has it. With plain SGD the step on the penalty
      diverges once lr * lambda * max Omega > 1, and Omega has no bound: with lr 0.1 a lambda of 1
      does on every benchmark. `proximal`: the penalty's proximal step after the optimizer's own
      (`Quadratic.proximal_step`): the same minimum, and stable at any lambda.
    - rows: the inputs over which Omega is the mean. `train`: the task's training rows. `test`: the
      task's test inputs, never their labels: the paper's case of a network that adapts what it must
      not forget to the unlabelled data it is used on. The method has then looked at the inputs on
      which it is judged, so ask for it only where that is meant. FILE.npz: inputs of your own
      (`training.unlabelled.read_rows`), all of them after each task, as the task shows images.
    The loss that is shown while it trains is without the penalty.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")

    lambda_: float = 0.1
    gamma: float = 1.0
    samples: int | None = None
    penalty: str = "proximal"
    rows: str = "train"

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(0 <= self.gamma <= 1, f"strategy.gamma must lie in [0, 1], got {self.gamma}")
        one_of("strategy.penalty", self.penalty, PENALTIES)
        check(
            self.samples is None or self.samples >= 1,
            f"strategy.samples must be at least 1, got {self.samples}",
        )
        right = self.rows in ("train", "test") or self.rows.endswith(".npz")
        check(
            right, f"strategy.rows must be train, test or the name of an .npz file, got {self.rows}"
        )

    def needs_tasks(self, scenario: str) -> str:
        reason = "strategy.rows=test is of the tasks of the stream"
        return reason if self.rows == "test" else super().needs_tasks(scenario)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        self.shown(env.stream[0], env)  # a file that does not fit is refused before any training
        anchor = theta.detach().clone()
        return {"anchor": anchor, "importance": torch.zeros_like(anchor)}

    def takes_features(self) -> bool:
        return self.rows in ("train", "test")  # those of a file are as the samples are

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
        shown, unlabelled = self.shown(task, env)
        new = output_sensitivity(s, shown, unlabelled, samples=self.samples)
        importance = self.gamma * s.memory["importance"] + new
        return s._replace(memory={"anchor": s.theta.detach().clone(), "importance": importance})

    def shown(self, task: Task, env: Env) -> tuple[Task, Env]:
        """The task whose training rows are what Omega is measured on, and where they lie."""
        if self.rows == "train":
            return task, env
        if self.rows == "test":
            return without_labels(task, env, env.stream.x_test[task.test])
        return without_labels(task, env, read_rows("strategy.rows", self.rows, env.stream))
