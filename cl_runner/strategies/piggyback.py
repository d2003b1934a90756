"""Piggyback: each task masks the weights of one trained network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.functional.losses import cross_entropy
from cl_runner.functional.masks import straight_through
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.frozen import check_maskable, only
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class Piggyback(Strategy):
    """Each task learns which weights of a fixed backbone it uses, and outputs of its own.

    Mallya, Davis & Lazebnik 2018, arXiv 1801.06519. A task trains a real number r for each weight
    W of the hidden layers, theta there, from `mask_scale` on; the network is that of the weights
    W * (r > threshold), and the gradient passes the threshold straight through: d loss / d r is
    W * d loss / d weight. What is kept of a task is its mask, a byte a weight, and its own outputs,
    which are trained as they are: nothing is ever forgotten. Biases are the backbone's.
    - backbone `first_task`: the first task trains the network whole, and what it leaves is the
      backbone (the authors' comes from ImageNet); `initial`: the run's initial weights are, those
      of `model.weights` as a rule, and the first task masks them like the others.
    - Each task begins with a fresh optimizer, at one learning rate for masks and outputs. The
      authors take Adam at 1e-4; plain SGD moves an r by W's small gradient only, so that few masks
      change: see docs/limits.md.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    uncounted: ClassVar[tuple[str, ...]] = ("masked", "output", "own")  # follow from the model

    backbone: str = "first_task"
    threshold: float = 5e-3
    mask_scale: float = 1e-2

    def __post_init__(self) -> None:
        one_of("strategy.backbone", self.backbone, ("first_task", "initial"))
        check(
            self.mask_scale > self.threshold,
            "strategy.mask_scale must be more than strategy.threshold, so that a task begins with "
            f"all weights, got {self.mask_scale} and {self.threshold}",
        )

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check_maskable(self.name, env)
        every = torch.ones(env.num_classes, dtype=torch.bool, device=env.device)
        output = env.flat.output_mask(every)
        matrices = [
            torch.full_like(p, p.ndim > 1, dtype=torch.bool).flatten()
            for p in env.flat.views(theta.detach()).values()
        ]
        masks = torch.ones_like(output).repeat(env.num_tasks, 1)
        return {
            "backbone": theta.detach().clone(),
            "masks": masks,  # [T, P] True where a task keeps a weight; of a task to come: all
            "masked": torch.cat(matrices) & ~output,  # [P] the weights that have a mask
            "output": output,
            "own": output.clone(),  # [P] what the task trains as it is
        }

    def whole(self, t: Any) -> Any:
        """Whether task t, a number or 0-d, trains the network whole."""
        return (t == 0) & (self.backbone == "first_task")

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        theta, masked = s.theta.detach(), s.memory["masked"]
        own = env.flat.output_mask(env.own_classes[task.index])
        if self.whole(task.index):
            own = own | ~s.memory["output"]
        else:
            theta = theta.masked_fill(masked, self.mask_scale)
        return env.restart(s, theta)._replace(memory=s.memory | {"own": own})

    def weights(self, theta: Tensor, mask: Tensor, s: TrainState) -> Tensor:
        """The network's weights [P]: outputs of theta, all else of the masked backbone."""
        return torch.where(s.memory["output"], theta, s.memory["backbone"] * mask)

    def mask(self, theta: Tensor, s: TrainState) -> Tensor:
        """The mask [P] bool that theta [P] says; True for what has none."""
        return (theta > self.threshold) | ~s.memory["masked"]

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        kept = self.mask(theta.detach(), s).to(theta.dtype)
        masked = self.weights(theta, straight_through(kept, theta), s)
        weights = torch.where(self.whole(s.t), theta, masked)
        logits = env.net(weights, batch.x, batch.task)
        loss = cross_entropy(logits, batch.y, batch.active, batch.weight)
        return loss, {"logits": logits}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = super().step(s, batch, env)
        free = s.memory["own"] | (s.memory["masked"] & ~self.whole(s.t))
        return only(new, s, free), aux

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        theta, memory = s.theta.detach(), dict(s.memory)
        if self.whole(task.index):
            return s._replace(memory=memory | {"backbone": theta.clone()})
        masks = memory["masks"].clone()
        masks[task.index] = self.mask(theta, s)
        return s._replace(memory=memory | {"masks": masks})

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        theta, now = s.theta.detach(), s.t == task
        whole = now & self.whole(s.t)
        mask = torch.where(now & ~whole, self.mask(theta, s), s.memory["masks"][task])
        weights = torch.where(whole, theta, self.weights(theta, mask, s))
        return super().predict(s._replace(theta=weights), x, task, env)
