"""Frozen features: after the first task only the output layer is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_runner.core import Batch, TrainState
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.frozen import only
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class FrozenFeatures(Strategy):
    """The trunk stays what the first task made of it, bit for bit ("feature extraction").

    After the first task only the output layer is trained (a baseline of Li & Hoiem 2017, arXiv
    1606.09282). In task-incremental learning, where each task has outputs of its own, nothing is
    forgotten and little is learnt. BatchNorm layers of the trunk keep adapting their running
    statistics to the current task.
    """

    uncounted = ("output",)  # follows from the architecture
    detectable = ("domain", "class")

    def needs_borders(self, scenario: str) -> str:
        return "it freezes the features when the first task ends"

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        every = torch.ones(env.num_classes, dtype=torch.bool, device=env.device)
        return {"output": env.flat.output_mask(every)}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = super().step(s, batch, env)
        return only(new, s, s.memory["output"] | (s.t == 0)), aux
