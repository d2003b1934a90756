"""The training loop of one task, and the evaluation of all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from cl_runner.config import Training
from cl_runner.core import Batch, Task, TrainState, generator_for, seed_for
from cl_runner.env import Env
from cl_runner.errors import Diverged
from cl_runner.functional import optim
from cl_runner.functional.losses import mask_logits
from cl_runner.strategies.base import Strategy

CPU = torch.device("cpu")
EVALUATION_CHUNK = 2000  # images per forward pass
NOISE_BLOCK = 64  # steps whose uniforms are drawn at once
Rows = dict[tuple[str, str], list[float]]  # (split, reading) -> accuracy on each task


class Display(Protocol):
    """What the training loop tells of its progress."""

    def begin_task(self, task: int, epochs: int, steps: int) -> None: ...
    def step(self, epoch: int, samples: int, loss: Tensor) -> None: ...


def initial_state(strategy: Strategy, env: Env) -> TrainState:
    """The state before the first task."""
    theta = env.flat.theta
    return TrainState(
        theta=theta,
        buffers=env.flat.buffers,
        opt=optim.init(env.optimizer, theta.detach()),
        memory=strategy.init(theta, env),
        t=torch.zeros((), dtype=torch.int64, device=env.device),
    )


def train_task(
    strategy: Strategy,
    s: TrainState,
    task: Task,
    env: Env,
    training: Training,
    display: Display | None = None,
    *,
    stochastic: bool = False,
) -> tuple[TrainState, int, int]:
    """Train on one task: (state, optimizer steps taken, samples of the stream seen).

    stochastic: the network draws from torch's global generator (dropout), which is then seeded at
    each step. Raises Diverged if the loss or the parameters are no longer finite.
    """
    s = s._replace(t=torch.full_like(s.t, task.index))
    if env.optimizer.reset:
        s = env.restart(s, s.theta)
    s = env.commit(strategy.begin_task(s, task, env))
    index, label = strategy.training_set(s, env.stream, task.index, env)
    per_epoch = -(-len(index) // training.batch_size)
    total = training.epochs * per_epoch
    if training.iterations is not None and per_epoch:
        total = training.iterations * (env.num_tasks if strategy.whole_sequence else 1)
    epochs = -(-total // per_epoch) if per_epoch else 0
    source = Source(env, s, task.index, index, label)
    samples = 0
    if display:
        display.begin_task(task.index, epochs, total)
    env.flat.module.train()
    with torch.no_grad():
        for epoch in range(epochs):
            first = epoch * per_epoch
            steps = min(per_epoch, total - first)
            losses = []
            for step, batch in enumerate(source.epoch(strategy, training, epoch, steps)):
                if stochastic:
                    torch.manual_seed(seed_for(env.seed, "dropout", task.index, epoch, step))
                if env.optimizer.schedule != "constant":
                    rate = env.optimizer.lr * optim.rate_factor(
                        env.optimizer, (first + step) / total
                    )
                    s = s._replace(opt=s.opt | {"lr": torch.full_like(s.opt["lr"], rate)})
                s, aux = strategy.step(s, batch, env)
                s = env.commit(s)
                losses.append(aux["loss"])
                samples += len(batch.y)
                if display:
                    display.step(epoch, len(batch.y), aux["loss"])
            check_finite(s.theta, torch.stack(losses), task.index, first)
        s = env.commit(strategy.end_task(s, task, env))
    return s, total, samples


def check_finite(theta: Tensor, losses: Tensor, t: int, first_step: int) -> None:
    """Raise Diverged, naming task and step, if a loss [steps] or theta [P] is not finite."""
    finite = torch.isfinite(losses)
    if bool(finite.all() & torch.isfinite(theta).all()):
        return
    bad = int((~finite).nonzero()[0]) if not bool(finite.all()) else len(losses) - 1
    what = "the loss became" if not bool(finite.all()) else "the parameters became"
    raise Diverged(
        f"{what} NaN or infinite in task {t + 1} at step {first_step + bad + 1}; a smaller "
        "optimizer.lr or strategy.lambda may help"
    )


class Source:
    """A task's training samples, ready to be cut into batches."""

    def __init__(self, env: Env, s: TrainState, t: int, index: Tensor, task: int | Tensor) -> None:
        self.env, self.t, self.seen, self.index, self.task = env, t, s.t, index, task
        self.tasks = torch.full_like(index, task) if isinstance(task, int) else task
        self.y = env.stream.labels(index, task)

    def epoch(
        self, strategy: Strategy, training: Training, epoch: int, steps: int
    ) -> Iterator[Batch]:
        """The first `steps` batches of an epoch, in its own random order, with their noise."""
        env, n, size = self.env, len(self.index), training.batch_size
        order = torch.randperm(n, generator=generator_for(CPU, env.seed, "order", self.t, epoch))
        order = order.to(env.device)
        index, y, tasks = self.index[order], self.y[order], self.tasks[order]
        shown = env.active(tasks[:1], self.seen) if isinstance(self.task, int) else None
        shapes = strategy.noise(min(size, n))
        if env.augment != "none":
            shapes["augment"] = (size, 3)
        noise: dict[str, Tensor] = {}
        for step in range(steps):
            if step % NOISE_BLOCK == 0:
                noise = draw_noise(env, shapes, (self.t, epoch, step // NOISE_BLOCK))
            part = slice(step * size, min((step + 1) * size, n))
            B = part.stop - part.start
            uniforms = {name: values[step % NOISE_BLOCK] for name, values in noise.items()}
            augment = uniforms["augment"][:B] if "augment" in uniforms else None
            if isinstance(self.task, int):  # one task, as a rule: nothing is looked up per sample
                images = env.stream.images(index[part], self.task)
                active = None if shown is None else shown.expand(B, -1)
            else:
                images = env.stream.images(index[part], tasks[part])
                active = env.active(tasks[part], self.seen)
            x = env.inputs(images, augment)
            yield Batch(x, y[part], tasks[part], active, None, index[part], uniforms)


def draw_noise(
    env: Env, shapes: dict[str, tuple[int, ...]], key: tuple[int, ...]
) -> dict[str, Tensor]:
    """Uniforms [NOISE_BLOCK, *shape] for a block of steps, each name from a seed of its own."""
    return {
        name: torch.rand(
            NOISE_BLOCK, *shape, generator=generator_for(CPU, env.seed, name, *key)
        ).to(env.device)
        for name, shape in shapes.items()
    }


def readings(scenario: str) -> tuple[str, ...]:
    """How a run's outputs are read, the scenario's own reading first.

    A class-incremental run is also read as task-incremental: scored on the task's own classes.
    """
    return ("class", "task") if scenario == "class" else (scenario,)


@torch.no_grad()
def evaluate(strategy: Strategy, s: TrainState, env: Env) -> Rows:
    """Accuracy on the held-out samples of every task, as fractions, by split and reading.

    The splits are `test` and, where there is one, `validation`. One transfer to the host in all.
    """
    env.flat.module.eval()
    stream, counts, keys, sizes = env.stream, [], [], []
    for split in ("test", "validation") if len(stream[0].validation) else ("test",):
        for task in stream:
            images, y = stream.held_out(split, task)
            own = env.own_classes[task.index]
            hits = torch.zeros(len(readings(stream.scenario)), dtype=torch.int64, device=env.device)
            for x, target in zip(
                images.split(EVALUATION_CHUNK), y.split(EVALUATION_CHUNK), strict=True
            ):
                logits = strategy.predict(s, stream.normalise(x), task.index, env)
                for i, reading in enumerate(readings(stream.scenario)):
                    scores = mask_logits(logits, own if reading == "task" else None)
                    hits[i] += (scores.argmax(1) == target).sum()
            counts.append(hits)
            keys.append(split)
            sizes.append(len(y))
    env.flat.module.train()
    rows: Rows = {}
    for split, size, hits_of_task in zip(keys, sizes, torch.stack(counts).tolist(), strict=True):
        for reading, hit in zip(readings(stream.scenario), hits_of_task, strict=True):
            rows.setdefault((split, reading), []).append(hit / size)
    return rows
