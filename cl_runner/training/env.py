"""The frozen environment of a run: all that a strategy may use besides the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cl_runner.config.schema import Budget, Optimizer, Training
from cl_runner.core import Batch, Stream, Task, TrainState, generator_for, seed_for
from cl_runner.data.augment import AUGMENTATIONS, shift
from cl_runner.nn.dropout import draws_itself
from cl_runner.nn.flat import Flat
from cl_runner.nn.networks import activations, build, layout
from cl_runner.training import optim
from cl_runner.training.extractor import OnThem
from cl_runner.training.meter import Meter
from cl_runner.training.watch import Watch

T = TypeVar("T")
Loss = Callable[..., tuple[Tensor, dict[str, Any]]]
Gradient = Callable[..., tuple[Tensor, tuple[Tensor, dict[str, Any]]]]
FOLD_CHUNK = 1000  # samples per chunk of a pass that takes no steps


class Env:
    """Stream, network, optimizer and seeds of one run.

    Nothing in it changes during the run but the storage behind the live `theta` (see `Flat`), the
    meter, the watch and, once, the tasks of a stream that is chosen (see `run.edits`); before it,
    `renew` may.
    """

    def __init__(
        self,
        *,
        stream: Stream,
        make_net: Callable[[Env], nn.Module],
        optimizer: Optimizer,
        training: Training,
        seed: int,
        precision: str = "float32",
        budget: Budget | None = None,
        online: bool = False,
    ) -> None:
        self.stream = stream
        self.optimizer = optimizer
        self.training = training
        self.seed = seed
        self.precision = precision  # what kernels.choose set torch up for
        self.online = online  # whether steps also tell what they predict of their batches
        self.engine = "eager"  # how steps are executed: what steps.choose says
        self.meter = Meter(budget)
        self.watch: Watch | None = None  # where training.boundaries=detected
        self.on_features: OnThem | None = None  # where the stream holds features, of images
        self.device = stream.x.device
        self.num_tasks = len(stream)
        self.num_classes = stream.num_classes
        self.input_shape = stream.input_shape
        self.num_bins = self.num_classes * (self.num_tasks if stream.scenario == "domain" else 1)
        self.own_classes = own_classes(stream)  # [T, K] bool
        self.active_table = active_table(stream, training.active_classes)  # [T, K] bool, or None
        self.active_by_time = stream.scenario == "class" and training.active_classes == "seen"
        self.renew(make_net)
        network = self.flat.module
        self.layout = layout(network, self.input_shape, self.device, precision)
        self.activations = activations(network, self.input_shape)  # numbers that a sample takes
        # The network draws from torch's global generator, which is then seeded at each step.
        self.stochastic = draws_itself(network)

    # The network and its gradient.

    def renew(self, make_net: Callable[[Env], nn.Module]) -> None:
        """Let the live network, and all that are drawn from now on, be those that make_net makes.

        They are of the same shape as before.
        """
        self.make_net = make_net
        self.flat = Flat(self.network(), mixed=self.precision == "bfloat16")

    def network(self, *purpose: str | int) -> nn.Module:
        """The network before any training, on the run's device; each purpose has its own draw.

        The weights are drawn on the host: they are the same on every device.
        """
        seed = seed_for(self.seed, "init", *purpose)
        return build(lambda: self.make_net(self), seed).to(self.device)

    def net(
        self, theta: Tensor, x: Tensor, task: Tensor, *, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Logits [B, K] of the network with parameters theta [P].

        first, last: run only these stages (see `nn.networks.Network`), from the activations before
        stage `first` to those before stage `last`: last=-1 gives the features [B, ...] that the
        output layer sees.
        """
        if first == 0 and last is None:
            return self.flat.call(theta, x, task)
        return self.flat.call(theta, x, task, first=first, last=last)

    def answers(
        self,
        theta: Tensor,
        x: Tensor,
        task: Tensor,
        buffers: Mapping[str, Tensor] | None = None,
        *,
        first: int = 0,
        last: int | None = None,
    ) -> Tensor:
        """The outputs of `net` in evaluation mode, even within a step, as constants to learn from.

        buffers: the BatchNorm statistics that belong to theta; by default, the live ones. None are
        moved. An old network is kept with its statistics by `kept` and `statistics`.
        """
        options = {} if first == 0 and last is None else {"first": first, "last": last}
        return self.flat.answers(theta, x, task, buffers, **options)

    def still(self, theta: Tensor, x: Tensor, task: Tensor) -> Tensor:
        """The outputs of `net` in evaluation mode, even within a step, with a gradient in theta."""
        return self.flat.still(theta, x, task)

    def grad_and_value(self, loss: Loss) -> Gradient:
        """f(theta, ...) -> (gradient [P], (loss, aux)) for loss(theta, s, batch, env).

        With the live theta it is plain autograd, which costs what a hand-written loop costs, or
        less (`nn.by_hand`). With any other theta, under vmap for instance, it is torch.func's.
        """

        def moving(
            theta: Tensor, buffers: dict[str, Tensor], s: TrainState, batch: Batch, env: Env
        ) -> Any:
            with self.flat.standing_in(theta, buffers) as moved:
                value, aux = loss(theta, s, batch, env)
            return value, (aux, moved)

        def function(theta: Tensor, s: TrainState, batch: Batch, env: Env) -> Any:
            buffers = self.flat.buffers
            if buffers and self.flat.stands_in(theta):
                whole = torch.func.grad_and_value(moving, has_aux=True)
                grad, (value, (aux, moved)) = whole(theta, buffers, s, batch, env)
                buffers.update(moved)
                return grad, (value, aux)
            if theta is not self.flat.theta:
                return torch.func.grad_and_value(loss, has_aux=True)(theta, s, batch, env)
            with self.flat.descent():
                value, aux = loss(theta, s, batch, env)
                torch.autograd.backward(value)
            return self.flat.gradient(), (value.detach(), aux)

        return function

    def update(self, s: TrainState, grad: Tensor, *, spent: bool = False) -> TrainState:
        """The state after the optimizer's step along `grad` [P], whose memory it takes if spent."""
        spent = spent and s.theta is self.flat.theta
        theta, opt = optim.update(self.optimizer, s.theta.detach(), grad, s.opt, spent=spent)
        return s._replace(theta=theta, opt=opt)

    def step_size(self, s: TrainState) -> Tensor:
        """By how much one step moves theta for a gradient of 1 that does not change, 0-d or [P]."""
        return optim.step_size(self.optimizer, s.opt)

    def rate(self, t: int) -> float:
        """The learning rate at which task t begins."""
        return self.optimizer.lr * self.stream[t].lr_factor

    def restart(self, s: TrainState, theta: Tensor) -> TrainState:
        """The state with weights theta [P] and an optimizer that has taken no step yet."""
        return s._replace(theta=theta, opt=optim.init(self.optimizer, theta.detach()))

    def commit(self, s: TrainState) -> TrainState:
        """The state with its theta and buffers as the live ones, in the network's memory."""
        buffers = self.flat.settle(s.buffers)
        return s._replace(theta=self.flat.commit(s.theta), buffers=buffers)

    # Data.

    def on_device(self, values: Tensor) -> Tensor:
        """A tensor of the host, copied to the run's device without waiting for the device."""
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)

    def gather(
        self,
        index: Tensor,
        task: int | Tensor,
        t: Tensor,
        *,
        weight: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Batch:
        """Training rows `index` [B] as their tasks (one, or one each [B]) show them, as a batch.

        t: 0-d, for which classes count as seen. augment: uniforms [B, 3], used where the run
        augments; without them the samples are shown as they are.
        """
        x = self.inputs(self.stream.images(index, task), augment)
        y = self.stream.labels(index, task)
        tasks = torch.full_like(index, task) if isinstance(task, int) else task
        return Batch(x, y, tasks, self.active(tasks, t), weight, index, {}, {})

    def inputs(self, images: Tensor, augment: Tensor | None = None) -> Tensor:
        """Network inputs from images [B, C, H, W]; augmented with uniforms [B, 3] if the run is."""
        if self.training.augment != "none" and augment is not None:
            images = AUGMENTATIONS[self.training.augment](images, augment)
        x = self.stream.normalise(images)
        if self.layout == torch.channels_last:
            x = x.contiguous(memory_format=self.layout)
        return x

    def view(self, index: Tensor, task: Tensor, uniform: Tensor) -> Tensor:
        """Network inputs from the images of training rows `index` [B], by uniforms [B, 3].

        Augmented if the run is, else shifted a little (`data.augment.shift`) before the task does
        to them what it does.
        """
        if self.training.augment != "none":
            return self.inputs(self.stream.images(index, task), uniform)
        return self.inputs(self.stream.images(index, task, lambda x: shift(x, uniform)))

    def active(self, task: Tensor, t: Tensor) -> Tensor | None:
        """The classes [B, K] on which samples of tasks [B] are scored in training; None: all."""
        if self.active_table is None:
            return None
        if self.active_by_time:
            return self.active_table.index_select(0, t.view(1)).expand(len(task), -1)
        return self.active_table.index_select(0, task)

    def bins(self, y: Tensor, task: Tensor) -> Tensor:
        """The group of each sample over which buffers are balanced, [B] in [0, num_bins).

        It is the class, or in domain-incremental learning the pair of task and class.
        """
        return y + task * self.num_classes if self.num_bins > self.num_classes else y

    def fold(
        self,
        function: Callable[[T, Batch], T],
        carry: T,
        s: TrainState,
        task: Task,
        *,
        samples: int | None = None,
    ) -> tuple[T, int]:
        """One pass: carry <- function(carry, batch) over a task's training samples.

        Returns carry and the number of samples; `samples` asks for a random subset of that size.
        Each batch has a uniform per sample in noise["label"]. The network is in evaluation mode.
        """
        index, tasks = task.samples()
        generator = generator_for(torch.device("cpu"), self.seed, "fold", task.index)
        if samples is not None and samples < len(index):
            chosen = torch.randperm(len(index), generator=generator)[:samples].sort().values
            chosen = chosen.to(self.device)
            index, tasks = index[chosen], tasks if isinstance(tasks, int) else tasks[chosen]
        uniform = torch.rand(len(index), generator=generator).to(self.device)
        self.flat.module.eval()
        with self.meter.passing() as call:
            for at in range(0, len(index), FOLD_CHUNK):
                part = slice(at, at + FOLD_CHUNK)
                own = tasks if isinstance(tasks, int) else tasks[part]
                batch = self.gather(index[part], own, s.t)
                batch.noise["label"] = uniform[part]
                carry = call(len(batch.y), function, carry, batch)
        self.flat.module.train()
        return carry, len(index)


def kept(name: str, theta: Tensor, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network as it is now, to be held in a strategy's memory: `name` is its theta [P]."""
    copies = {f"{name}.{key}": value.clone() for key, value in buffers.items()}
    return {name: theta.detach().clone()} | copies


def statistics(memory: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The BatchNorm statistics of the network that `kept` has put into a memory as `name`."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): memory[k] for k in memory if k.startswith(prefix)}


def active_table(stream: Stream, active_classes: str) -> Tensor | None:
    """Classes active in training, [T, K] bool, by a sample's task or the current one; None: all.

    Task-incremental: those of the sample's own task. Domain-incremental: all. Class-incremental, by
    `active_classes`: `all`; `seen`, those of the tasks up to the current one; `current`, those of
    the sample's own task, replayed samples included.
    """
    if stream.scenario == "domain" or (stream.scenario == "class" and active_classes == "all"):
        return None
    own = own_classes(stream)
    by_time = stream.scenario == "class" and active_classes == "seen"
    return own.cumsum(0).bool() if by_time else own


def own_classes(stream: Stream) -> Tensor:
    """Which outputs are a task's own, [T, K] bool; in domain-incremental learning all are."""
    own = torch.zeros(len(stream), stream.num_classes, dtype=torch.bool)
    for task in stream:
        own[task.index, list(task.classes)] = True
    return own.to(stream.x.device)
