"""Expandable head: the output layer grows with the classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import one_of
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.features import mean_directions
from cl_runner.strategies.parts.outputs import (
    check_growing,
    output_units,
    unseen_last,
    with_output_units,
)
from cl_runner.strategies.parts.replay import check_features
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class ExpandableHead(Strategy):
    """Naive fine-tuning with an output unit for each class seen so far: the textbook baseline.

    For class-incremental learning. Training and prediction score the classes seen and no other; a
    class's unit begins when its task does. Until then it ranks below all others (among themselves
    the unseen keep their order, so that a later task read on its own classes is still defined);
    before the first task, when no class was seen, all take part.
    - new_units, what weights and bias begin as: `initial`: those of the network's initialisation;
      `zero`; `mean`: the mean of the units there are (ours); `imprinted`: the weights are the mean
      of the class's L2-normalised features, normalised again (Qi, Brown & Lowe 2018, arXiv
      1712.07136). Their layer is a cosine with one learnt scale and no bias; this one has lengths
      and biases, and a new unit gets the mean length and the mean bias of the units there are
      (ours). In the first task "the units there are" are those of the initialisation.
    """

    scenarios = ("class",)

    new_units: str = "initial"

    def __post_init__(self) -> None:
        one_of("strategy.new_units", self.new_units, ("initial", "zero", "mean", "imprinted"))

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check_growing(f"strategy={self.name}", env)
        if self.new_units == "imprinted":
            check_features("strategy.new_units=imprinted", env)
        seen = torch.zeros(env.num_classes, dtype=torch.bool, device=env.device)
        return {"seen": seen, "initial": output_units(theta.detach(), env).clone()}  # [K, D + 1]

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        seen, theta = s.memory["seen"], s.theta.detach()
        new = env.own_classes[task.index] & ~seen
        units = torch.where(new[:, None], self.fresh_units(s, task, env), output_units(theta, env))
        s = s._replace(theta=with_output_units(theta, units, env))
        return s._replace(memory=s.memory | {"seen": seen | new})

    def fresh_units(self, s: TrainState, task: Task, env: Env) -> Tensor:
        """Initial weights of the new task's output units, [K, D + 1] with the bias last."""
        initial = s.memory["initial"]
        if self.new_units == "initial":
            return initial
        if self.new_units == "zero":
            return torch.zeros_like(initial)
        there = output_units(s.theta.detach(), env)[shown(s)]
        mean = there.mean(0).expand_as(initial)
        if self.new_units == "mean":
            return mean
        length = there[:, :-1].norm(dim=1).mean()
        return torch.cat([length * mean_directions(s, task, env), mean[:, -1:]], 1)

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        active = shown(s).expand(len(batch.y), -1)
        return super().loss(theta, s, batch._replace(active=active), env)

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        return unseen_last(super().predict(s, x, task, env), shown(s))


def shown(s: TrainState) -> Tensor:
    """The classes that have an output unit, [K] bool."""
    seen = s.memory["seen"]
    return seen | ~seen.any()
