"""The training loop: steps over samples in random order, epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from cl_runner.core import Batch, TrainState, generator_for, seed_for
from cl_runner.env import Env
from cl_runner.errors import Diverged
from cl_runner.functional import optim

CPU = torch.device("cpu")
NOISE_BLOCK = 64  # steps whose uniforms are drawn at once
Samples = tuple[Tensor, int | Tensor]  # rows [n] of the training set; their task, or tasks [n]


class Learner(Protocol):
    """What takes the steps: a strategy, or a phase of one."""

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]: ...
    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, dict[str, Any]]: ...


def fit(
    s: TrainState,
    env: Env,
    learner: Learner,
    samples: Samples,
    *,
    times: int = 1,
    epochs: int | None = None,
    phase: str = "",
) -> TrainState:
    """The state after `learner` has taken its steps over the samples of the current task.

    Their number is that of `training.epochs` or `training.iterations`, `times` over, or that of
    `epochs`. An extra phase of a strategy (retraining after pruning, say) has a name, which gives
    it random orders of its own. Raises Diverged if the loss or theta is no longer finite.
    """
    t, (index, label) = int(s.t), samples
    per_epoch = -(-len(index) // env.training.batch_size)
    total = (epochs or env.training.epochs) * per_epoch
    if epochs is None and env.training.iterations is not None and per_epoch:
        total = env.training.iterations * times
    epochs = -(-total // per_epoch) if per_epoch else 0
    source = Source(env, s, t, index, label, learner, phase)
    env.meter.begin(t, epochs, total)
    env.flat.module.train()
    with torch.no_grad():
        for epoch in range(epochs):
            first = epoch * per_epoch
            losses = []
            for step, batch in enumerate(source.epoch(epoch, min(per_epoch, total - first))):
                if env.stochastic:
                    torch.manual_seed(seed_for(env.seed, f"dropout{phase}", t, epoch, step))
                if env.optimizer.schedule != "constant":
                    progress = (first + step) / total
                    rate = env.optimizer.lr * optim.rate_factor(env.optimizer, progress)
                    s = s._replace(opt=s.opt | {"lr": torch.full_like(s.opt["lr"], rate)})
                s, aux = learner.step(s, batch, env)
                s = env.commit(s)
                losses.append(aux["loss"])
                env.meter.step(epoch, len(batch.y), aux["loss"])
            check_finite(s.theta, torch.stack(losses), t, first)
    return s


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

    def epoch(self, epoch: int, steps: int) -> Iterator[Batch]:
        """The first `steps` batches of an epoch, in its own random order, with their noise."""
        env, n, size = self.env, len(self.index), self.env.training.batch_size
        key = (self.t, epoch)
        generator = generator_for(CPU, env.seed, f"order{self.phase}", *key)
        order = torch.randperm(n, generator=generator).to(env.device)
        index, y, tasks = self.index[order], self.y[order], self.tasks[order]
        shown = env.active(tasks[:1], self.seen) if isinstance(self.task, int) else None
        shapes = self.learner.noise(min(size, n))
        if env.training.augment != "none":
            shapes["augment"] = (size, 3)
        noise: dict[str, Tensor] = {}
        for step in range(steps):
            if step % NOISE_BLOCK == 0:
                noise = draw_noise(env, shapes, (*key, step // NOISE_BLOCK), self.phase)
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
    env: Env, shapes: dict[str, tuple[int, ...]], key: tuple[int, ...], phase: str = ""
) -> dict[str, Tensor]:
    """Uniforms [NOISE_BLOCK, *shape] for a block of steps, each name from a seed of its own."""
    return {
        name: torch.rand(
            NOISE_BLOCK, *shape, generator=generator_for(CPU, env.seed, name + phase, *key)
        ).to(env.device)
        for name, shape in shapes.items()
    }
