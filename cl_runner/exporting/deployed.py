"""A model that is used: images in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.core import TrainState
from cl_runner.errors import check
from cl_runner.exporting.preparation import Preparation
from cl_runner.nn.flat import Flat
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env


@dataclass(frozen=True)
class Asked:
    """Parameters and statistics that a network was asked with."""

    theta: Tensor  # [P]
    buffers: Mapping[str, Tensor]

    def same(self, other: Asked) -> bool:
        """Whether both are the same network."""
        own, theirs = self.buffers, other.buffers
        same = own.keys() == theirs.keys() and torch.equal(self.theta, other.theta)
        return same and all(torch.equal(v, theirs[name]) for name, v in own.items())


class Asking(Flat):
    """The same network, which notes with what it is asked."""

    def __init__(self, flat: Flat) -> None:
        self.__dict__.update(vars(flat))
        self.asked: list[Asked] = []

    def call(self, theta: Tensor, x: Tensor, task: Tensor | int, **options: Any) -> Tensor:
        """As Flat's."""
        self.asked.append(Asked(theta.detach(), self.buffers))
        return super().call(theta, x, task, **options)

    def still(
        self,
        theta: Tensor,
        x: Tensor,
        task: Tensor | int,
        buffers: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """As Flat's."""
        self.asked.append(Asked(theta.detach(), self.buffers | dict(buffers or {})))
        return super().still(theta, x, task, buffers, **options)


class Given(Flat):
    """Another network in the place of one's own, which answers whatever theta it is asked with.

    It has the one theta that predictions ask with already.
    """

    def __init__(self, flat: Flat, network: nn.Module) -> None:
        self.__dict__.update(vars(flat))
        self.given = network

    def call(self, theta: Tensor, x: Tensor, task: Tensor | int, **options: Any) -> Tensor:
        """What the other network gives."""
        output: Tensor = self.given(x, task, **options)
        return output

    def still(
        self,
        theta: Tensor,
        x: Tensor,
        task: Tensor | int,
        buffers: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """What the other network gives."""
        return self.call(theta, x, task, **options)


@torch.no_grad()
def effective(strategy: Strategy, s: TrainState, task: int, env: Env) -> Asked:
    """The parameters with which predictions for a task ask the network.

    Raises UserError for a strategy that asks several networks.
    """
    own, env.flat = env.flat, Asking(env.flat)
    try:
        x = env.inputs(env.stream.x[:1])
        strategy.predict(s, x, task, env)
        asked = env.flat.asked
    finally:
        env.flat = own
    first = asked[0] if asked else Asked(s.theta.detach(), s.buffers)
    check(
        all(first.same(other) for other in asked),
        f"strategy={strategy.name} cannot be exported: its predictions ask several networks",
    )
    return first


class Deployed(nn.Module):
    """A run's model: images [B, ...] as the data set gives them -> probabilities [B, K].

    The columns are the `classes`, in their order. It is in evaluation mode, and needs no data.
    """

    columns: Tensor  # [K] which of the network's outputs they are

    def __init__(
        self,
        *,
        preparation: Preparation,
        network: nn.Module,
        strategy: Strategy,
        s: TrainState,
        task: int,
        env: Env,
        columns: Tensor,
        about: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.preparation = preparation
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("columns", columns)
        self.memory = nn.Module()
        self.held = {name: name.replace(".", "_") for name in s.memory}
        for name, held in self.held.items():
            self.memory.register_buffer(held, s.memory[name])
        env.flat = Given(env.flat, network)
        self.predict = answering(strategy, s, task, env)
        self.classes: tuple[str, ...] = about["classes"]  # names of the columns
        self.tasks: tuple[str, ...] = about["tasks"]  # names
        self.task: str | None = about["task"]  # the one that it answers for; None: any
        self.input_shape: tuple[int, ...] = about["input_shape"]  # of one image, as it is handed in
        self.dtype: torch.dtype = preparation.dtype
        self.card: dict[str, Any] = about["card"]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities [B, K] of images [B, ...]. Raises ValueError for another shape or type."""
        self.preparation.check(images)
        memory = {name: getattr(self.memory, held) for name, held in self.held.items()}
        scores = self.predict(memory, self.preparation(images))
        return scores.index_select(1, self.columns).softmax(1)


Answering = Callable[[dict[str, Tensor], Tensor], Tensor]  # memory, inputs [B, ...] -> [B, K]


def answering(strategy: Strategy, s: TrainState, task: int, env: Env) -> Answering:
    """The strategy's predictions for a task, by its memory and inputs."""

    def predict(memory: dict[str, Tensor], x: Tensor) -> Tensor:
        return strategy.predict(s._replace(memory=memory), x, task, env)

    return predict
