"""A task's training samples, cut into batches with their random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cl_runner.core import Batch, TrainState, generator_for
from cl_runner.data.augment import crop_flip
from cl_runner.training.engines import Learner
from cl_runner.training.env import Env

CPU = torch.device("cpu")
NOISE_WINDOW = 64  # steps whose uniforms are drawn at once
TrainingSet = tuple[Tensor, int | Tensor]  # rows [n] of the training set; their task, or tasks [n]


class Source:
    """A task's training samples, ready to be cut into batches."""

    def __init__(
        self,
        env: Env,
        s: TrainState,
        t: int,
        index: Tensor,
        task: int | Tensor,
        learner: Learner,
        phase: str = "",
    ) -> None:
        self.env, self.t, self.seen, self.index, self.task = env, t, s.t, index, task
        self.tasks = torch.full_like(index, task) if isinstance(task, int) else task
        self.y = env.stream.labels(index, task)
        self.learner, self.phase = learner, phase

    def epoch(self, epoch: int, steps: int, done: int = 0) -> Iterator[Batch]:
        """The first `steps` batches of an epoch, in its own random order, with their noise.

        Those that are `done` are left out, which changes nothing about the others.
        """
        env, n, size = self.env, len(self.index), self.env.training.batch_size
        index, y, tasks = self.shuffled(epoch)
        shown = env.active(tasks[:1], self.seen) if isinstance(self.task, int) else None
        noise: dict[str, Tensor] = {}
        for step in range(done, steps):
            if step % NOISE_WINDOW == 0 or step == done:
                noise = self.noise(epoch, step // NOISE_WINDOW)
            part = slice(step * size, min((step + 1) * size, n))
            B = part.stop - part.start
            uniforms = {name: values[step % NOISE_WINDOW] for name, values in noise.items()}
            augment = uniforms["augment"][:B] if "augment" in uniforms else None
            if isinstance(self.task, int):  # one task, as a rule: nothing is looked up per sample
                images = env.stream.images(index[part], self.task)
                active = None if shown is None else shown.expand(B, -1)
            else:
                images = env.stream.images(index[part], tasks[part])
                active = env.active(tasks[part], self.seen)
            x = env.inputs(images, augment)
            yield Batch(x, y[part], tasks[part], active, None, index[part], uniforms)

    def windows(
        self, epoch: int, steps: int, length: int, done: int = 0
    ) -> Iterator[dict[str, Any]]:
        """The same batches, up to `length` at once, as fields [steps, B, ...] without None.

        The images are raw: what remains to be done is Stream.normalise. The batches of a window are
        of one size.
        """
        env, n, size = self.env, len(self.index), self.env.training.batch_size
        index, y, tasks = self.shuffled(epoch)
        noise: dict[str, Tensor] = {}
        step = done
        while step < steps:
            B = min(size, n - step * size)
            count = min(length, steps - step, NOISE_WINDOW - step % NOISE_WINDOW)
            count = min(count, max(1, n // size - step))  # the last batch may be smaller
            if step % NOISE_WINDOW == 0 or step == done:
                noise = self.noise(epoch, step // NOISE_WINDOW)
            part = slice(step * size, step * size + count * B)
            at = slice(step % NOISE_WINDOW, step % NOISE_WINDOW + count)
            task = self.task if isinstance(self.task, int) else tasks[part]
            images = env.stream.images(index[part], task)
            if "augment" in noise:
                images = crop_flip(images, noise["augment"][at, :B].flatten(0, 1))
            fields = {"x": images, "y": y[part], "task": tasks[part], "index": index[part]}
            if (active := env.active(tasks[part], self.seen)) is not None:
                fields["active"] = active
            window: dict[str, Any] = {k: v.unflatten(0, (count, B)) for k, v in fields.items()}
            yield window | {"noise": {name: values[at] for name, values in noise.items()}}
            step += count

    def shuffled(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, classes and tasks [n] in the order of an epoch."""
        generator = generator_for(CPU, self.env.seed, f"order{self.phase}", self.t, epoch)
        order = self.env.on_device(torch.randperm(len(self.index), generator=generator))
        return self.index[order], self.y[order], self.tasks[order]

    def noise(self, epoch: int, window: int) -> dict[str, Tensor]:
        """Uniforms [NOISE_WINDOW, ...] for a window of steps, each name from a seed of its own."""
        size = self.env.training.batch_size
        shapes = self.learner.noise(min(size, len(self.index)), self.env)
        if self.env.training.augment != "none":
            shapes["augment"] = (size, 3)

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            key = (name + self.phase, self.t, epoch, window)
            generator = generator_for(CPU, self.env.seed, *key)
            return self.env.on_device(torch.rand(NOISE_WINDOW, *shape, generator=generator))

        return {name: draw(name, shape) for name, shape in shapes.items()}
