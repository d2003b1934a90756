"""Self-supervised learning: before the stream as a strategy of its own, beside it within any other.

What it learns is a pretext task (`functional.pretext`) on the activations below the network's
output layer, by a head of its own. The output layer takes no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cl_runner.config.schema import SSL, Adam
from cl_runner.core import Batch, Task, TrainState, generator_for
from cl_runner.errors import UserError, check
from cl_runner.functional.pretext import (
    Features,
    barlow_error,
    draw_head,
    hidden,
    masked_error,
    perceptron,
    rotation_error,
    shifted,
)
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.training import optim
from cl_runner.training.env import Env

OWN = "ssl."  # how the names in memory begin that are not the strategy's
CPU = torch.device("cpu")


class Pretext(NamedTuple):
    """A pretext task for a network: what `training.ssl` and the section `ssl` say."""

    name: str  # rotation | barlow | masked
    ssl: SSL

    def sizes(self, env: Env, units: int) -> list[int]:
        """The head's layers, on features of so many units."""
        hidden_sizes = self.ssl.hidden_sizes
        last = {"rotation": 4, "masked": math.prod(env.input_shape)}
        return [units, *hidden_sizes, last.get(self.name, [units, *hidden_sizes][-1])]

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the uniforms that the error needs, as of `Strategy.noise`."""
        _, height, width = env.input_shape
        patches = tuple(-(-side // self.ssl.patch_size) for side in (height, width))
        if self.name == "masked":
            return {"ssl.mask": (batch_size, 1, *patches)}
        if self.name == "barlow":
            return {"ssl.mask": (batch_size, 2, *patches), "ssl.shift": (batch_size, 2, 2)}
        return {}

    def error(
        self,
        features: Features,
        head: Tensor,
        x: Tensor,
        noise: dict[str, Tensor],
        env: Env,
    ) -> Tensor:
        """The loss, 0-d, of a network's features of inputs x [B, C, H, W] and a head."""

        def guess(z: Tensor) -> Tensor:
            return perceptron(head, self.sizes(env, z.shape[1]), z, normed=self.name == "barlow")

        if self.name == "rotation":
            return rotation_error(features, guess, x)
        uniform = noise["ssl.mask"][: len(x)]
        patch, ratio = self.ssl.patch_size, self.ssl.hidden_share(self.name)
        if self.name == "masked":
            return masked_error(features, guess, x, hidden(x, uniform[:, 0], ratio, patch))
        shift, most = noise["ssl.shift"][: len(x)], self.most_shift(env)
        views = []
        for i in range(2):
            view = shifted(x, shift[:, i], most)
            views.append(view.masked_fill(hidden(view, uniform[:, i], ratio, patch), 0.0))
        z1, z2 = guess(features(torch.cat(views))).chunk(2)
        return barlow_error(z1, z2, self.ssl.lambda_)

    def most_shift(self, env: Env) -> int:
        """The pixels by which a view is moved at most: an eighth of the shorter side."""
        return min(env.input_shape[1:]) // 8

    def draw(self, network: nn.Module, env: Env) -> Tensor:
        """The parameters of a network's head before any training; drawn on the host."""
        sizes = self.sizes(env, units_below_output(network, env.input_shape))
        return draw_head(sizes, generator_for(CPU, env.seed, "ssl head")).to(env.device)


@dataclass(frozen=True, kw_only=True)
class Pretraining(Strategy):
    """Learns a pretext task alone: a network's trunk and the head are its parameters.

    Labels are never looked at. The output layer stays as it is: no gradient reaches it, and Adam
    moves nothing that has none.
    """

    pretext: Pretext

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        network = make_net()
        return WithHead(network, self.pretext.draw(network, env))

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        return self.pretext.noise(batch_size, env)

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        features, head = features_of(theta, batch, env), theta[: env.flat.sizes[0]]
        return self.pretext.error(features, head, batch.x, batch.noise, env), {}


class WithHead(nn.Module):
    """A network, and the vector of its head's parameters, which comes first in theta."""

    def __init__(self, network: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Parameter(head)

    def forward(self, x: Tensor, task: Tensor, **options: Any) -> Tensor:
        output: Tensor = self.network(x, task, **options)
        return output


class Beside(Strategy):
    """A strategy with a self-supervised loss added: made by `assisted`."""

    pretext: ClassVar[Pretext]
    alone: ClassVar[Strategy]  # the strategy as it is without

    @property
    def adam(self) -> Adam:
        """The optimizer of the head."""
        return Adam(name="adam", lr=self.pretext.ssl.lr)

    def needs_borders(self, scenario: str) -> str:
        return self.alone.needs_borders(scenario)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        head = self.pretext.draw(env.flat.module, env)
        slots = {"head": head, **optim.init(self.adam, head)}
        return super().init(theta, env) | {OWN + k: v for k, v in slots.items()}

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        return super().noise(batch_size, env) | self.pretext.noise(batch_size, env)

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        s, own = apart(s)
        return with_memory(super().begin_task(s, task, env), own)

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        s, own = apart(s)
        return with_memory(super().end_task(s, task, env), own)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        s, own = apart(s)
        if not own:  # a step of a phase that the strategy has at a task's beginning or end
            return super().step(s, batch, env)
        slots = {k.removeprefix(OWN): v for k, v in own.items()}
        head = slots.pop("head")

        def error(theta: Tensor, head: Tensor) -> Tensor:
            features = features_of(theta, batch, env)
            return self.pretext.error(features, head, batch.x, batch.noise, env)

        pull, of_head = torch.func.grad(error, argnums=(0, 1))(s.theta.detach(), head)
        head, slots = optim.update(self.adam, head, of_head, slots)
        plan = batch.plan | {"ssl.pull": self.pretext.ssl.weight * pull}
        s, aux = super().step(s, batch._replace(plan=plan), env)
        return with_memory(s, {OWN + k: v for k, v in {"head": head, **slots}.items()}), aux

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(theta, s, batch, env)
        if "ssl.pull" not in batch.plan:
            return loss, aux
        along = (theta * batch.plan["ssl.pull"]).sum()  # its gradient is what counts
        return loss + along - along.detach(), aux


def assisted(strategy: Strategy, pretext: Pretext) -> Strategy:
    """The strategy, whose steps also go down weight * the pretext task's error on their batch.

    Its gradient in theta, at the weights before the step and of the stream's own samples, joins
    that of the strategy's loss wherever this is of the stream's batch; so what a strategy does with
    a gradient (a projection, a mask, a path integral) it does with the sum. What is shown as the
    loss is without it. The head takes a step of Adam with `ssl.lr` and lies in the memory: theta is
    the strategy's own. BatchNorm takes the batch's statistics in that pass, and moves none. Phases
    of training that a strategy has at the beginning or end of a task go without.
    Raises UserError for a strategy that passes no whole batch through its network.
    """
    cls = type(strategy)
    check(
        strategy.whole_batches,
        f"ssl.weight: strategy={strategy.name} passes no batch of the stream through the network "
        "as a whole; use ssl.weight=0, and ssl.epochs for the time before the stream",
    )
    over: Any = type(cls.__name__, (Beside, cls), {"pretext": pretext, "alone": strategy})
    result: Strategy = over(**{f.name: getattr(strategy, f.name) for f in fields(strategy)})
    return result


def apart(s: TrainState) -> tuple[TrainState, dict[str, Tensor]]:
    """The state with the strategy's memory alone, and what of the memory is the pretext task's."""
    own = {k: v for k, v in s.memory.items() if k.startswith(OWN)}
    return s._replace(memory={k: v for k, v in s.memory.items() if k not in own}), own


def with_head(s: TrainState, head: Tensor) -> TrainState:
    """The state with a trained head, where one is in use and has as many features.

    It has not where the strategy has widened the network.
    """
    name = f"{OWN}head"
    there = s.memory.get(name)
    fits = there is not None and there.shape == head.shape
    return with_memory(s, {name: head}) if fits else s


def with_memory(s: TrainState, more: dict[str, Tensor]) -> TrainState:
    """The state with more in its memory, or with other values of it."""
    return s._replace(memory=s.memory | more)


def features_of(theta: Tensor, batch: Batch, env: Env) -> Features:
    """The activations below the output layer of n times a batch's inputs, at theta [P]."""

    def features(x: Tensor) -> Tensor:
        task = batch.task.repeat(len(x) // len(batch.task))
        return env.net(theta, x, task, last=-1).flatten(1)

    return features


def units_below_output(network: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """How many activations a sample has below the output layer. Raises UserError if none show."""
    x = next(network.parameters()).detach().new_zeros(1, *input_shape)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            found: Tensor = network(x, torch.zeros(1, dtype=torch.int64, device=x.device), last=-1)
    except TypeError:
        raise UserError(
            "training.ssl trains what lies below the output layer, which this network does not "
            "show: it needs a cl_runner.nn.networks.Network, such as model=mlp or model=cnn; and "
            "with ssl.weight > 0 a strategy that trains the network itself, not a wider one of its "
            "own"
        ) from None
    finally:
        network.train(training)
    return found.flatten(1).shape[1]
