"""A task's training samples, cut into batches with their random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cl_runner.core import Batch, TrainState, Window, generator_for
from cl_runner.nn.dropout import KEY
from cl_runner.training.engines import AUGMENT, DROPOUT, Learner
from cl_runner.training.env import Env

CPU = torch.device("cpu")
NOISE_WINDOW = 64  # steps whose uniforms are drawn at once
LARGEST_PLAN = 2**20  # elements of one of its tensors: of a large buffer fewer steps are planned
PREPARED_BYTES = 2**22  # of inputs that lie ready for the coming steps: a CPU has them in its cache
LARGEST_PREPARED = 2**26  # elsewhere, where each preparation costs some launches
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
        self.size = learner.batch_size(t, env)
        self.passes = 1 if phase else env.training.passes  # steps on each batch, in a row
        self.memory = s.memory  # as plans go on from it
        self.order: tuple[Tensor, Tensor, Tensor]  # of the epoch whose batches come, see `shuffled`

    def epoch(self, epoch: int, steps: int, done: int = 0, *, raw: bool = False) -> Iterator[Batch]:
        """The first `steps` batches of an epoch, in its own random order, with noise and plan.

        Those that are `done` are left out, which changes nothing about the others. raw: with images
        as the stream has them, which a step makes into inputs (`engines.shown`).
        """
        for window, plan in self.windows(epoch, steps, NOISE_WINDOW, done):
            noise, plans = by_step(window.noise), by_step(plan)
            active = self.env.active(window.task.flatten(), self.seen)
            shown = None if active is None else active.unflatten(0, window.y.shape).unbind()
            fields = (v.unbind() for v in (window.y, window.task, window.index))
            batches = zip(self.inputs(window, raw=raw), *fields, strict=True)
            for i, (x, y, task, index) in enumerate(batches):
                yield Batch(
                    x=x,
                    y=y,
                    task=task,
                    active=shown[i] if shown else None,
                    weight=None,
                    index=index,
                    noise=noise[i] if noise else {},
                    plan=plans[i] if plans else {},
                )

    def inputs(self, window: Window, *, raw: bool) -> Iterator[Tensor]:
        """The inputs [B, C, H, W] of a window's steps, or raw images; several prepared at once."""
        env, B = self.env, window.y.shape[1]
        sample = env.stream.x[0]
        each = sample.nbytes if raw else 4 * sample.numel()
        most = PREPARED_BYTES if env.device.type == "cpu" else LARGEST_PREPARED
        for at in range(0, len(window.y), several := max(1, most // (B * each))):
            part = slice(at, at + several)
            x = self.images(window, part)
            if not raw:
                augment = window.noise.get(AUGMENT)
                x = env.inputs(x, None if augment is None else augment[part, :B].flatten(0, 1))
            yield from x.unflatten(0, (-1, B)).unbind()

    def images(self, window: Window, part: slice = slice(None)) -> Tensor:
        """The images [steps * B, C, H, W] of some of a window's steps, raw."""
        task = self.task if isinstance(self.task, int) else window.task[part].flatten()
        return self.env.stream.images(window.index[part].flatten(), task)

    def stackable(
        self, epoch: int, steps: int, length: int, done: int = 0
    ) -> Iterator[dict[str, Any]]:
        """The same batches, up to `length` at once, as fields [steps, B, ...] without None.

        The images are raw: what remains to be done is `engines.shown`.
        """
        env = self.env
        for window, plan in self.windows(epoch, steps, length, done):
            W, B = window.y.shape
            images = self.images(window).unflatten(0, (W, B))
            fields = window._asdict() | {"x": images, "plan": plan}
            del fields["leaving"]  # of which the plan has been made
            if (active := env.active(window.task.flatten(), self.seen)) is not None:
                fields["active"] = active.unflatten(0, (W, B))
            yield fields

    def windows(
        self, epoch: int, steps: int, length: int, done: int
    ) -> Iterator[tuple[Window, dict[str, Tensor]]]:
        """Up to `length` steps at once, their batches of one size, and what is planned for them.

        With several passes a batch comes in as many steps, each with noise of its own.
        """
        env, n, size, passes = self.env, len(self.index), self.size, self.passes
        self.order = order = self.shuffled(epoch)
        noise: dict[str, Tensor] = {}
        step = done
        while step < steps:
            if step % NOISE_WINDOW == 0 or step == done:
                noise = self.noise(epoch, step // NOISE_WINDOW)
                largest = max((v[0].numel() for v in noise.values()), default=1)
            first, done_of_it = divmod(step, passes)  # its batch, whose first steps may be done
            whole = n // size - first  # batches that are left; the last one may be smaller
            B = min(size, n - first * size)
            count = min(length, steps - step, NOISE_WINDOW - step % NOISE_WINDOW)
            count = min(count, max(1, whole) * passes - done_of_it)
            count = min(count, max(1, LARGEST_PLAN // largest))
            several = -(-(done_of_it + count) // passes)
            part = slice(first * size, first * size + several * B)
            at = slice(step % NOISE_WINDOW, step % NOISE_WINDOW + count)
            y, task, index = (v[part].view(several, B) for v in order)
            if passes > 1:
                shown = slice(done_of_it, done_of_it + count)
                y, task, index = (v.repeat_interleave(passes, 0)[shown] for v in (y, task, index))
            uniforms = {name: values[at] for name, values in noise.items()}
            leaving = slice(passes - 1 - done_of_it, None, passes)
            window = Window(y, task, index, uniforms, leaving)
            plan, after = self.learner.plan(self.memory, self.seen, window, env)
            self.memory = self.memory | after
            yield window, plan
            step += count

    def shuffled(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Classes, tasks and rows [n] in the order of an epoch.

        A stream whose boundaries are not sharp comes in its own order.
        """
        if self.env.stream.boundaries != "sharp" and not self.phase:
            return self.y, self.tasks, self.index
        generator = generator_for(CPU, self.env.seed, f"order{self.phase}", self.t, epoch)
        order = self.env.on_device(torch.randperm(len(self.index), generator=generator))
        return self.y[order], self.tasks[order], self.index[order]

    def noise(self, epoch: int, window: int) -> dict[str, Tensor]:
        """Uniforms [NOISE_WINDOW, ...] for a window of steps, each name from a seed of its own."""
        shapes = self.learner.noise(min(self.size, len(self.index)), self.env)
        if self.env.training.augment != "none":
            shapes[AUGMENT] = (self.size, 3)
        if self.env.flat.dropouts:
            shapes[DROPOUT] = (KEY,)

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            key = (name + self.phase, self.t, epoch, window)
            generator = generator_for(CPU, self.env.seed, *key)
            return self.env.on_device(torch.rand(NOISE_WINDOW, *shape, generator=generator))

        return {name: draw(name, shape) for name, shape in shapes.items()}


def by_step(values: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Tensors [W, ...] by name as those of each step; nothing, if there are none."""
    steps = zip(*(v.unbind() for v in values.values()), strict=True)
    return [dict(zip(values, own, strict=True)) for own in steps]
