"""Soft parameter sharing: all tasks at once, a network for each, pulled together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, TrainState
from cl_runner.errors import check, one_of
from cl_runner.nn.columns import Copies
from cl_runner.strategies.base import Aux
from cl_runner.strategies.joint import Joint
from cl_runner.strategies.parts.penalty import PENALTIES, Quadratic
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class SoftSharing(Joint):
    """Joint loss + lambda / 2 sum_t |theta_t - mean_u theta_u|^2 over the hidden layers.

    Multi-task training with one network per task, for task-incremental learning (an upper bound
    beside strategy=joint, whose hidden layers are shared: hard sharing; Ruder 2017, arXiv
    1706.05098). Duong et al. 2015 (ACL, P15-2139) pull two networks together by the L2 distance of
    their weights; the distance to the mean of T is that of Evgeniou & Pontil 2004 (KDD) for linear
    models. The output layers, of which each task has its own outputs, are not pulled. The networks
    start alike (ours): the mean of different starts would be too small by sqrt(T).
    - lambda 0: networks that share nothing, trained at once (every one takes a step per batch, more
      often and on fewer samples than in strategy=separate). Large: hidden layers in common.
    - penalty `loss`: added to the loss; plain SGD diverges once lr * lambda > 2. `proximal`: the
      penalty's proximal step after the optimizer's own (`Quadratic.proximal_step`), around the mean
      that this step leads to: with plain SGD theta_t - mean shrinks by 1 / (1 + lr lambda), at any
      lambda. What is shown as the loss is with it in the first case, without in the second.

    Batches mix the tasks; the loss is the mean over the batch, so that network t gets the gradient
    of its own samples over B. A step costs T times that of `joint`, and so does the memory.
    """

    scenarios = ("task",)
    uncounted = ("hidden",)  # follows from the architecture

    lambda_: float = 0.001
    penalty: str = "loss"

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        one_of("strategy.penalty", self.penalty, PENALTIES)

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        return Copies(make_net(), env.num_tasks)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            not env.flat.buffers,
            f"strategy={self.name} needs a model without BatchNorm, whose statistics are shared",
        )
        every = torch.ones(env.num_classes, dtype=torch.bool, device=env.device)
        return {"hidden": ~env.flat.output_mask(every)}

    def quadratic(self, theta: Tensor, s: TrainState, env: Env) -> Quadratic:
        """The penalty at theta [P], lambda / 2 sum_t |theta_t - mean_u theta_u|^2."""
        return Quadratic(self.lambda_ / 2, s.memory["hidden"], mean(theta, env))

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(theta, s, batch, env)
        if self.penalty == "loss":
            loss = loss + self.quadratic(theta, s, env)(theta)
        return loss, aux

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        s, aux = super().step(s, batch, env)
        if self.penalty == "proximal":
            s = self.quadratic(s.theta, s, env).proximal_step(s, env)
        return s, aux

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        return env.flat.call(s.theta, x, task)


def mean(theta: Tensor, env: Env) -> Tensor:
    """The mean of the T networks, in the place of each, [P]."""
    views = env.flat.views(theta).values()  # [T, ...] each
    return torch.cat([v.mean(0, keepdim=True).expand_as(v).flatten() for v in views])
