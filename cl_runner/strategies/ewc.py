"""Elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.functional.importance import merge_quadratics
from cl_runner.strategies.base import Aux, Strategy, without_meaning
from cl_runner.strategies.parts import kronecker
from cl_runner.strategies.parts.importance import check_fisher, fisher_diagonal
from cl_runner.strategies.parts.overlap import noted, overlap_table
from cl_runner.strategies.parts.penalty import PENALTIES, Penalty, Quadratic, descend, unstable
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class EWC(Strategy):
    """Loss + lambda / 2 sum_p F_p (theta_p - theta*_p)^2 (Kirkpatrick et al. 2017, eq. 3).

    arXiv 1612.00796. After each task, weights that it depends on are held near their values theta*
    by a quadratic penalty, the stronger the larger their importance F. F is the diagonal of the
    Fisher information: the mean over a task's samples of each sample's squared gradient
    (`functional.importance`), never the square of a batch's mean gradient.
    - mode `separate`: one penalty per past task, around that task's own weights (the paper). Their
      sum is one quadratic, F = sum_t F_t around the F-weighted mean of the theta*_t, which is what
      is kept: the gradient is the same and the cost does not grow with the number of tasks.
    - mode `online`: gamma F in the place of F, around the latest weights, and F <- gamma F + F_t at
      the end of a task (Schwarz et al. 2018, 1805.06370, eq. 8 and 9, there with a normalised F_t;
      Huszar 2018). In mode `separate` gamma has no meaning.
    - penalty `proximal`: the penalty's proximal step after the optimizer's own
      (`Quadratic.proximal_step`): the same minimum, and stable at any lambda. `loss`: added to the
      loss, as the paper has it. With plain SGD the step on the penalty diverges once
      lr * lambda * max F > 2, which a stream of many tasks reaches, since F is their sum.
    - curvature `kron`: in the place of the diagonal a matrix for each layer, the Kronecker product
      A (x) G of the second moments of its inputs, a 1 appended for the bias, and of its outputs'
      derivatives (Ritter et al. 2018, 1805.07810; of convolutions Grosse & Martens 2016,
      1602.01407). So the penalty is lambda / 2 sum_layers tr(D^T G D A), D the change of weights.
      It is exact for a sample alone, and where a layer's inputs are independent of its derivatives.
      The sum over tasks, of which each term is a product but not the sum, is kept as one: the
      product with the same partial traces. So memory and cost do not grow with the tasks. The
      anchor is the latest weights in mode `online`, the paper's; in mode `separate` the tasks' own
      weights stay the anchors, by a linear term. The penalty's gradient takes two products of
      matrices per layer, its proximal step four, and SGD: the closed form needs one step size for
      all parameters, and Adam is refused. So are models with BatchNorm, and those in which other
      layers than Linear and Conv2d have parameters.
    - overlap `true`: each task's own Fisher information is kept for `fisher_overlap.csv` (section
      4.3 and fig. 2C). It is no part of the method, and is not counted as its memory.

    The loss that is shown while it trains is without the penalty.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")
    uncounted: ClassVar[tuple[str, ...]] = ("task_fishers",)

    lambda_: float = 3.0
    curvature: str = "diagonal"
    mode: str = "separate"
    gamma: float = 1.0
    fisher_labels: str = "exact"
    fisher_samples: int | None = 5000
    penalty: str = "proximal"
    overlap: bool = False

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        one_of("strategy.mode", self.mode, ("separate", "online"))
        one_of("strategy.penalty", self.penalty, PENALTIES)
        check_fisher(self.fisher_labels, self.fisher_samples)
        check(0 < self.gamma <= 1, f"strategy.gamma must lie in (0, 1], got {self.gamma}")
        if self.mode == "separate":
            without_meaning(self, "strategy.mode=separate", "gamma")
        kronecker.check_curvature(self)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        anchor = theta.detach().clone()
        if self.curvature == "kron":
            return kronecker.begun(self, anchor, env)
        memory = {"fisher": torch.zeros_like(anchor), "anchor": anchor}
        if self.overlap:
            memory["task_fishers"] = anchor.new_zeros(env.num_tasks, len(anchor))  # [T, P]
        return memory

    def quadratic(self, s: TrainState) -> Quadratic:
        """The penalty of eq. 3, lambda / 2 sum_p F_p (theta_p - theta*_p)^2; `online`: gamma F."""
        F, anchor = s.memory["fisher"], s.memory["anchor"]
        return Quadratic(self.lambda_ / 2 * self.gamma, F, anchor)

    def penalty_of(self, s: TrainState, env: Env) -> Penalty:
        """The one of the two that the curvature asks for."""
        kron = self.curvature == "kron"
        return kronecker.penalty(self, s, env) if kron else self.quadratic(s)

    def notes(self, env: Env) -> Iterator[str]:
        return kronecker.notes(self, env)

    def remarks(self, s: TrainState, env: Env) -> Iterator[str]:
        return unstable(s, self.penalty_of(s, env), self.penalty, env)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        s = descend(s, grad, self.penalty_of(s, env), self.penalty, env)  # down loss + penalty
        return s, {**aux, "loss": loss}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if self.curvature == "kron":
            return kronecker.ended(self, s, task, env)
        old, theta = s.memory["fisher"], s.theta.detach().clone()
        new = fisher_diagonal(s, task, env, labels=self.fisher_labels, samples=self.fisher_samples)
        if self.mode == "online":
            memory = {"fisher": self.gamma * old + new, "anchor": theta}
        else:
            anchor = merge_quadratics(s.memory["anchor"], old, theta, new)
            memory = {"fisher": old + new, "anchor": anchor}
        if self.overlap:
            memory |= noted(s, task, new)
        return s._replace(memory=memory)

    def tables(self, s: TrainState, env: Env) -> dict[str, list[dict[str, Any]]]:
        return overlap_table(s, env) if self.overlap else {}
