"""Learners without steps: they sum up what they see, and solve for an output layer at a task's end.

The network is fixed but for its output layer (`nn.readout`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.core import Stream, Task, TrainState, generator_for
from cl_runner.errors import UserError, check, one_of
from cl_runner.functional.closed_form import (
    Moments,
    Solution,
    add,
    add_whole,
    is_singular,
    no_moments,
)
from cl_runner.functional.fixed_point import whole
from cl_runner.nn.readout import ReadOut
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.parts.replay import by_task
from cl_runner.training.batches import CPU
from cl_runner.training.env import Env

INPUTS = ("pixels", "features")
CHUNK = 500  # samples per forward pass
TOGETHER = 2**23  # features of samples whose products are summed at once, about a byte each


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Strategy):
    """A linear classifier solved for after each task from the sums over all samples so far.

    The sums (`functional.closed_form`) are the memory; no sample is stored, and the result is that
    of all tasks' samples at once, in whatever order they came. No step is taken: training.epochs,
    training.batch_size, training.active_classes and optimizer.* have no meaning. A task's samples
    are passed once, which counts as samples and FLOPs, and to which budgets apply (then in batches
    of training.batch_size, in random order).

    input: `pixels`, the inputs as they are; `features`, the activations of the configured network
    after its first `layer` stages (None: before the output layer). It never moves: start it from
    trained weights by model.weights. features: so many random ReLU units on top of either, drawn
    from the run's seed, in whole numbers of few bits (`nn.readout`); 0: none.
    """

    whole_batches: ClassVar[bool] = False  # it predicts none before it learns from it
    shown_once: ClassVar[str] = "which takes no step on the batches of the stream"
    gram: ClassVar[bool] = True  # whether the Gram matrix is needed
    float64: ClassVar[bool] = True

    input: str = "pixels"
    layer: int | None = None
    features: int = 0

    def __post_init__(self) -> None:
        one_of("strategy.input", self.input, INPUTS)
        if self.layer is not None:
            check(self.layer >= 1, f"strategy.layer must be at least 1, got {self.layer}")
            check(
                self.input == "features",
                f"strategy.layer={self.layer} has no meaning with strategy.input=pixels: leave it "
                "out, or use strategy.input=features",
            )
        check(self.features >= 0, f"strategy.features must be at least 0, got {self.features}")

    # What makes the learner.

    def solution(self, moments: Moments) -> Solution:
        """Weights [K, d] and biases [K] from the moments of all samples so far."""
        raise NotImplementedError

    def unregularised(self) -> str:
        """The setting that leaves the system without regularisation; "": none does."""
        return ""

    def system(self, moments: Moments) -> Tensor:
        """What is inverted, without regularisation, [d, d]; its lower triangle."""
        raise NotImplementedError

    # The same for all.

    def without_model(self) -> str:
        return "strategy.input=pixels" if self.input == "pixels" else ""

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        body = make_net() if self.input == "features" else None
        check(
            body is None or untouched(body),
            f"strategy={self.name} trains no weights of the model: use adapter=none and "
            "model.freeze=[] or all_but_head",
        )
        return ReadOut(body, env.input_shape, self.layer, self.features, env.num_classes)

    def takes_features(self) -> bool:
        return self.input == "features" and self.layer is None

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        augment = env.training.augment
        check(
            augment == "none",
            f"training.augment={augment} has no meaning for strategy={self.name}, which passes "
            "each sample once as it is: use training.augment=none",
        )
        if key := self.unregularised():
            self.check_regular(key, theta, env)
        return self.nothing(env)

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        return stream[t].train[:0], t

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        meter, size = env.meter, env.training.batch_size if env.meter.limits else CHUNK
        count = size if env.meter.limits else together(env)
        moments = {name: value.clone() for name, value in s.memory.items()}
        with meter.suspended():
            for batch in passed(task, count, env):
                n = len(batch[0])
                if meter.exhausted(n):
                    break
                moments = meter.counted(n, added, moments, s.theta, *batch, size, s.t, env)
                meter.samples += n
        self.check_finite(moments, task)
        if not bool(moments["count"].any()):  # the budget allows nothing
            return s
        try:
            weights, biases = self.solution(moments)
        except ArithmeticError:
            raise UserError(
                f"strategy={self.name}: the system of {task.title} is singular in float64: "
                "regularise it more"
            ) from None
        theta = s.theta.detach().clone()
        own = env.flat.views(theta)
        own["output.weight"].copy_(weights)
        own["output.bias"].copy_(biases)
        return s._replace(theta=theta, memory=moments)

    def nothing(self, env: Env) -> Moments:
        """The moments of no samples."""
        d = read_out(env).output.in_features
        return no_moments(env.num_classes, d, env.device, gram=self.gram)

    @torch.no_grad()
    def check_regular(self, key: str, theta: Tensor, env: Env) -> None:
        """Refuse a first task that leaves the system singular. What comes later cannot do that."""
        moments, task = self.nothing(env), env.stream[0]
        d, n = moments["sum"].shape[1], len(task.train)
        t = torch.zeros((), dtype=torch.int64, device=env.device)
        why = f"it has {n} samples for {d} features"
        singular = n <= d
        if not singular:
            for batch in passed(task, together(env), env):
                moments = added(moments, theta, *batch, CHUNK, t, env)
            system = self.system(moments)
            spread = system.diagonal()
            constant = int((spread <= spread.max() * n * torch.finfo(spread.dtype).eps).sum())
            dependent = "its features depend on each other linearly"
            why = f"{constant} of its {d} features are constant" if constant else dependent
            singular = constant > 0 or is_singular(system)
        check(
            not singular,
            f"{key} leaves the system of the first task singular: {why}; use a positive value",
        )

    def check_finite(self, moments: Moments, task: Task) -> None:
        """Refuse features that are not finite; one of them is enough for a sum that is not."""
        check(
            bool(moments["sum"].isfinite().all()),
            f"strategy.input={self.input}: the features of {task.title} are not finite",
        )


def untouched(network: nn.Module) -> bool:
    """Whether all of a network is trained, or only its output layer, the last nn.Linear."""
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    head = {name for name in trained if layers and name.startswith(f"{layers[-1]}.")}
    return trained == head or len(trained) == len([*network.parameters()])


def read_out(env: Env) -> ReadOut:
    """The run's network."""
    module = env.flat.module
    assert isinstance(module, ReadOut)
    return module


def together(env: Env) -> int:
    """How many samples are summed up at once, some passes of CHUNK."""
    return max(1, TOGETHER // read_out(env).output.in_features // CHUNK) * CHUNK


def passed(task: Task, count: int, env: Env) -> Iterator[tuple[Tensor, Tensor]]:
    """A task's samples in random order, `count` at once: rows [B] and the task of each [B]."""
    index, tasks = by_task(task)
    generator = generator_for(CPU, env.seed, "order", task.index, 0)
    order = env.on_device(torch.randperm(len(index), generator=generator))
    return zip(index[order].split(count), tasks[order].split(count), strict=True)


def added(
    moments: Moments, theta: Tensor, rows: Tensor, tasks: Tensor, size: int, t: Tensor, env: Env
) -> Moments:
    """The moments after the features of rows [B] of tasks [B] were added, in passes of `size`.

    As many samples as `size` go through the network, in the last pass some of them again: by how
    many it is asked for, a product's last digits may change, and a sample's features must not.
    Random units, which are rounded, add up exactly, and faster.
    """
    rounded = read_out(env).random is not None
    parts = []
    env.flat.module.eval()
    for part, own in zip(rows.split(size), tasks.split(size), strict=True):
        n = len(part)
        again = torch.arange(size, device=rows.device) % n
        batch = env.gather(part[again], own[again], t)
        features = env.answers(theta, batch.x, batch.task, last=-1)[:n].flatten(1)
        if rounded:
            parts.append((*whole(features), batch.y[:n]))
        else:
            moments = add(moments, features, batch.y[:n])
    env.flat.module.train()
    if rounded:
        moments = add_whole(moments, *map(torch.cat, zip(*parts, strict=True)))
    return moments
