"""Incremental moment matching: the networks of the tasks, averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Task, TrainState
from cl_runner.errors import one_of
from cl_runner.functional.importance import merge_quadratics
from cl_runner.strategies.base import Strategy, tasks_of, without_meaning
from cl_runner.strategies.parts.importance import check_fisher, fisher_diagonal
from cl_runner.training.env import Env, kept, statistics


@dataclass(frozen=True, kw_only=True)
class IMM(Strategy):
    """Predicts with the average of the weights after each task (Lee et al. 2017, 1703.08475).

    - merge `mean`: theta* = mean_k theta_k (mean-IMM).
    - merge `mode`: theta* = sum_k F_k theta_k / sum_k F_k with the diagonal Fisher information F_k
      of task k (mode-IMM). All tasks count alike.
    Training goes on from theta_k, not from the average (the paper's weight transfer; its L2 and
    drop transfer are not here). In task-incremental learning a task's own outputs are averaged from
    that task on, because before it they are untrained.
    The paper's networks have no BatchNorm. Where there is some, the merged network has the mean of
    the tasks' running statistics, all tasks alike, in either merge; no old data are needed for it.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")

    merge: str = "mode"
    fisher_labels: str = "exact"
    fisher_samples: int | None = 5000

    def __post_init__(self) -> None:
        one_of("strategy.merge", self.merge, ("mean", "mode"))
        check_fisher(self.fisher_labels, self.fisher_samples)
        if self.merge == "mean":
            without_meaning(self, "strategy.merge=mean", "fisher_labels", "fisher_samples")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        weight = torch.zeros_like(theta, requires_grad=False)
        if self.merge == "mean" and env.stream.scenario == "task":
            env.flat.output_mask(env.own_classes[0])  # refuses a model without
        return kept("merged", theta, env.flat.buffers) | {"weight": weight}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        theta, weight = s.theta.detach().clone(), s.memory["weight"]
        if self.merge == "mean":
            new = torch.ones_like(weight)
            if env.stream.scenario == "task":
                later = env.own_classes[task.index + 1 :].any(0)
                new = torch.where(env.flat.output_mask(later), 0.0, new)
        else:
            new = fisher_diagonal(
                s, task, env, labels=self.fisher_labels, samples=self.fisher_samples
            )
        merged = merge_quadratics(s.memory["merged"], weight, theta, new)
        old, share = statistics(s.memory, "merged"), 1 / (task.index + 1)
        mean = {
            k: torch.lerp(old[k], v, share) if v.is_floating_point() else v
            for k, v in s.buffers.items()
        }
        return s._replace(memory=kept("merged", merged, mean) | {"weight": weight + new})

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        return env.answers(s.memory["merged"], x, tasks_of(x, task), statistics(s.memory, "merged"))
