"""Riemannian walk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.strategies.base import Aux, Strategy, without_meaning
from cl_runner.strategies.parts.penalty import PENALTIES, Quadratic, unstable
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class RWalk(Strategy):
    """Loss + lambda sum_p (F_p + s_p) (theta_p - theta*_p)^2 (Chaudhry et al. 2018, 1801.10112).

    There is no 1/2. Every `interval` steps, with g the gradient of the loss without the penalty:
    - s_p grows by max(0, -sum g_p (change of theta_p)) / (1/2 F_p Delta_p^2 + damping): what p
      contributed to the decrease of the loss along the interval's path, per distance between the
      models; Delta_p is p's change over the interval, F the Fisher information when it began.
    - F <- alpha (mean over the interval of g^2) + (1 - alpha) F, which is EWC++. As in the authors'
      code (github.com/facebookresearch/agem) g is that of the batch's mean loss on the data's
      labels; the scale this gives F falls away, because the penalty has both terms in [0, 1]:
      (v - min) / (max - min) over all parameters.
    At the end of a task its score is averaged with that of the tasks before, 1/2 each.
    - penalty `loss`: added to the loss, as the paper has it. With plain SGD the step on the penalty
      diverges once lr * lambda * max(F + s) > 1, and F + s <= 2. `proximal`: the penalty's proximal
      step after the optimizer's own (`Quadratic.proximal_step`): stable at any lambda. The change
      of theta_p along the path includes it.
    - variant `code`: as that code has it where it is not the paper's method. Its sum of g^2 begins
      anew with a task, not with an interval, so that F is one over all steps of the task; its
      distance is F_p Delta_p^2, without 1/2; and what it averages is added to the old score, so
      that the first tasks count most.
    - score `false`: without s, so that the running Fisher of the task just learnt is all; with
      variant `paper` it is what that code calls EWC. `damping` then has no meaning.
    The loss that is shown while it trains is without the penalty.

    Where we differ from that code in either variant: it closes an interval before its last step, so
    that the first has one step less, and drops one that a task's end cuts short (here it counts in
    proportion). The paper also trains on a few exemplars of old classes, this does not: expect
    little of it in class-incremental learning.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")

    lambda_: float = 1.0
    alpha: float = 0.9
    interval: int = 10
    damping: float = 0.001
    variant: str = "paper"
    score: bool = True
    penalty: str = "proximal"

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(0 < self.alpha <= 1, f"strategy.alpha must lie in (0, 1], got {self.alpha}")
        check(self.interval >= 1, f"strategy.interval must be at least 1 step, got {self.interval}")
        check(self.damping > 0, f"strategy.damping must be positive, got {self.damping}")
        one_of("strategy.variant", self.variant, ("paper", "code"))
        one_of("strategy.penalty", self.penalty, PENALTIES)
        if not self.score:
            without_meaning(self, "strategy.score=false", "damping")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        start = theta.detach().clone()
        zero = torch.zeros_like(start)
        memory = {
            "anchor": start.clone(),  # theta*
            "importance": zero,  # F + s of the penalty, both in [0, 1]
            "fisher": zero.clone(),
            "steps": torch.zeros((), dtype=torch.int64, device=env.device),  # of this interval
            "squares": zero.clone(),  # sum g^2 in it, or in the task
        }
        if self.score:
            memory |= {
                "score": zero.clone(),  # of this task so far
                "old_score": zero.clone(),  # of the tasks before
                "start": start,  # theta when the interval began
                "path": zero.clone(),  # -sum g (change of theta) in it
            }
        return memory

    def quadratic(self, s: TrainState) -> Quadratic:
        """The penalty, lambda sum_p (F_p + s_p) (theta_p - theta*_p)^2."""
        return Quadratic(self.lambda_, s.memory["importance"], s.memory["anchor"])

    def remarks(self, s: TrainState, env: Env) -> Iterator[str]:
        return unstable(s, self.quadratic(s), self.penalty, env)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        before, memory, penalty = s.theta.detach(), s.memory, self.quadratic(s)
        g, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        total = g
        if self.penalty == "loss":  # not in place: the path needs g
            pull = penalty.weight * penalty.importance * (before - penalty.anchor)
            total = torch.add(g, pull, alpha=2)
        s = env.update(s, total)
        if self.penalty == "proximal":
            s = penalty.proximal_step(s, env)
        memory = memory | {
            "squares": torch.addcmul(memory["squares"], g, g),
            "steps": memory["steps"] + 1,
        }
        if self.score:
            memory["path"] = torch.addcmul(memory["path"], g, s.theta - before, value=-1)
        memory |= self.close(memory, s.theta, memory["steps"] == self.interval)
        return s._replace(memory=memory), {**aux, "loss": loss}

    def close(self, memory: dict[str, Tensor], theta: Tensor, over: Tensor) -> dict[str, Tensor]:
        """The memory if the interval is over (0-d bool) at theta [P], maybe early; or as it was."""
        F, steps, squares = memory["fisher"], memory["steps"], memory["squares"]
        mean = squares / steps.clamp_min(1)
        closed = {
            "fisher": torch.lerp(F, mean, self.alpha * steps / self.interval * over),
            "squares": squares * ~over if self.variant == "paper" else squares,
            "steps": steps * ~over,
        }
        if self.score:
            start = memory["start"]
            gained = memory["path"].clamp_min(0) * over
            half = 0.5 if self.variant == "paper" else 1.0
            distance = half * F * (theta - start).square()
            closed |= {
                "score": memory["score"] + gained / (distance + self.damping),
                "start": torch.lerp(start, theta, over.float()),  # exactly the one or the other
                "path": memory["path"] * ~over,
            }
        return closed

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        theta = s.theta.detach().clone()
        memory = s.memory | self.close(s.memory, theta, torch.ones_like(s.t, dtype=torch.bool))
        importance = to_unit_range(memory["fisher"])
        if self.score:
            old, score = memory["old_score"], memory["score"]
            if task.index:
                score = (old + score) / 2 + (old if self.variant == "code" else 0)
            importance = importance + to_unit_range(score)
            memory |= {"score": torch.zeros_like(score), "old_score": score}
        zero = torch.zeros_like(theta)
        memory |= {"anchor": theta, "importance": importance, "squares": zero}
        return s._replace(memory=memory)


def to_unit_range(v: Tensor) -> Tensor:
    """(v - min) / (max - min); 0 where all are equal."""
    low, high = v.aminmax()
    return (v - low) / (high - low).clamp_min(torch.finfo(v.dtype).tiny)
