"""Learning without forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.functional.losses import distillation
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.frozen import only
from cl_runner.training.env import Env, kept, statistics


@dataclass(frozen=True, kw_only=True)
class LwF(Strategy):
    """Loss + weight * distillation of the old network's answers (Li & Hoiem 2017, 1606.09282).

    The old network is the one at the end of the last task; it answers the new task's inputs, and
    -sum_c p_c log q_c at the temperature T (eq. 2 to 4) keeps these answers: in task-incremental
    learning for each old task's outputs apart (the mean over tasks), in class-incremental learning
    over all old classes together, in domain-incremental learning over all outputs.
    - weight `growing`: lambda (t - 1) in task t, so that every task counts alike. In
      task-incremental learning this is the sum over old tasks, which the paper takes (section 3),
      with lambda its lambda_o; van de Ven et al. 2022 (Nature Machine Intelligence 4, 1185) have it
      in all scenarios. `fixed`: lambda, however many old tasks there are.
    - max_weight: what loss and distillation weigh together, 1 + lambda (t - 1) with weight
      `growing`; beyond it both shrink alike (ours), or SGD's steps become too long on dozens of
      tasks (to Adam a loss's scale means nothing). None: no limit.
    - squared_temperature: times T^2 (Hinton et al. 2015, 1503.02531), which the paper has not.
    - over: the classes among which the new network answers, in class-incremental learning: `old`,
      as the paper has it for each old task, or `seen`: the new task's too, whose target is 0 (van
      de Ven et al. 2022), so that the new classes are also pushed down.
    - warm_up: so many steps at the beginning of a task, from the second on, train nothing but the
      new task's outputs (the paper trains them to convergence first).
    The loss that is shown while it trains includes the distillation. The old network answers in
    evaluation mode: without dropout, and with the BatchNorm statistics of when it was kept.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ("domain",)  # else it must know old classes
    uncounted: ClassVar[tuple[str, ...]] = ("free",)  # follows from the task

    lambda_: float = 1.0
    temperature: float = 2.0
    weight: str = "growing"
    squared_temperature: bool = False
    max_weight: float | None = 10.0
    over: str = "old"
    warm_up: int = 0

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(
            self.temperature > 0, f"strategy.temperature must be positive, got {self.temperature}"
        )
        one_of("strategy.weight", self.weight, ("fixed", "growing"))
        check(
            self.max_weight is None or self.max_weight > 0,
            f"strategy.max_weight must be positive, or null, got {self.max_weight}",
        )
        one_of("strategy.over", self.over, ("old", "seen"))
        check(self.warm_up >= 0, f"strategy.warm_up must be at least 0 steps, got {self.warm_up}")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            self.over == "old" or env.stream.scenario == "class",
            f"strategy.over=seen is for scenario=class, got scenario={env.stream.scenario}",
        )
        env.flat.output_mask(env.own_classes[0])  # refuses a model without
        return kept("old", theta, env.flat.buffers) | {
            "free": torch.ones_like(
                theta.detach(), dtype=torch.bool
            ),  # what a warm-up step may change
            "steps": torch.zeros((), dtype=torch.int64, device=env.device),  # of this task
        }

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        free = env.flat.output_mask(env.own_classes[task.index])
        steps = torch.zeros_like(s.memory["steps"])
        return s._replace(
            memory=kept("old", s.theta, s.buffers)
            | {
                "free": free if task.index else torch.ones_like(free),
                "steps": steps,
            }
        )

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(theta, s, batch, env)
        past = torch.arange(env.num_tasks, device=s.t.device) < s.t  # [T]
        if env.stream.scenario == "task":
            heads = env.own_classes[:, None]  # [T, 1, K]
            weight = past.float() / s.t.clamp_min(1)
        else:
            heads = (env.own_classes & past[:, None]).any(0)[None, None]  # [1, 1, K]
            weight = past[:1].float()  # 0 in the first task
        scored = None
        if self.over == "seen":
            seen = past | (torch.arange(env.num_tasks, device=s.t.device) == s.t)
            scored = (env.own_classes & seen[:, None]).any(0)[None, None]
        of_old = statistics(s.memory, "old")
        answers = env.answers(s.memory["old"], batch.x, batch.task, of_old)
        changed = distillation(aux["logits"], answers, heads, self.temperature, scored).mean(-1)
        factor = self.lambda_ * (s.t if self.weight == "growing" else 1)
        if self.squared_temperature:
            factor = factor * self.temperature**2
        loss = loss + factor * (weight * changed).sum()
        if self.max_weight is not None:
            loss = loss * (self.max_weight / (1 + factor * weight.sum())).clamp_max(1)
        return loss, aux

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = super().step(s, batch, env)
        if not self.warm_up:
            return new, aux
        free = s.memory["free"] | (s.memory["steps"] >= self.warm_up)
        memory = s.memory | {"steps": s.memory["steps"] + 1}
        return only(new._replace(memory=memory), s, free), aux
