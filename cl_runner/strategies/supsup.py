"""Supermasks in superposition: SupSup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.losses import cross_entropy
from cl_runner.functional.masks import largest, signed_constants, straight_through
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.frozen import check_maskable
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class SupSup(Strategy):
    """Each task finds a mask on random weights that are never trained (Wortsman et al. 2020).

    arXiv 2006.14769, its scenario GG: the task is known in training and in the test. Every weight
    is +c or -c by a random sign, c = sqrt(2 / inputs) in each layer (the paper's signed constants).
    A task trains a score s for each weight, theta; its mask M_t takes, in each layer, the share
    `density` of the weights whose |s| is largest (edge-popup, Ramanujan et al. 2020, 1911.13299),
    and the network is that of the weights W * M. The gradient passes the mask straight through:
    d loss / d |s| is what d loss / d M would be. What is kept of a task is M_t, a byte a weight, so
    nothing is ever forgotten and no task takes room from another.
    - Each task starts from scores of its own, drawn as the network's weights are, and a fresh
      optimizer. Biases are 0, as the authors' layers have none.
    - The output layer is masked like any other. Each task has outputs of its own in it, whereas the
      authors' tasks share as many as one has; the mask's share is of all of them.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    uncounted: ClassVar[tuple[str, ...]] = ("weights",)  # the seed tells them

    density: float = 0.5

    def __post_init__(self) -> None:
        check(0 < self.density < 1, f"strategy.density must lie in (0, 1), got {self.density}")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check_maskable(self.name, env)
        start = theta.detach()
        masks = self.mask(start, env).repeat(env.num_tasks, 1)  # of a task to come: any
        return {"weights": signed_constants(env.flat.views(start).values()), "masks": masks}

    def mask(self, theta: Tensor, env: Env) -> Tensor:
        """The weights [P] bool that scores theta [P] choose; all of the biases."""
        parts = [
            largest(s.abs(), self.density) if s.ndim > 1 else torch.ones_like(s, dtype=torch.bool)
            for s in env.flat.views(theta).values()
        ]
        return torch.cat([part.flatten() for part in parts])

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        with env.meter.suspended():
            network = env.network("scores", task.index)
        return env.restart(s, torch.cat([p.detach().flatten() for p in network.parameters()]))

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        chosen = self.mask(theta.detach(), env).to(theta.dtype)
        weights = s.memory["weights"] * straight_through(chosen, theta.abs())
        logits = env.net(weights, batch.x, batch.task)
        loss = cross_entropy(logits, batch.y, batch.active, batch.weight)
        return loss, {"logits": logits}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        masks = s.memory["masks"].clone()
        masks[task.index] = self.mask(s.theta.detach(), env)
        return s._replace(memory=s.memory | {"masks": masks})

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        own = torch.where(s.t == task, self.mask(s.theta.detach(), env), s.memory["masks"][task])
        return super().predict(s._replace(theta=s.memory["weights"] * own), x, task, env)
