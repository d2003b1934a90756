"""Greedy sampler and dumb learner: GDumb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cl_runner.core import Stream, Task, TrainState, generator_for
from cl_runner.errors import check
from cl_runner.functional import buffers
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.parts.replay import (
    LARGEST,
    arrived,
    bins_of,
    empty_rows,
    load,
    store,
)
from cl_runner.training.batches import CPU
from cl_runner.training.env import Env
from cl_runner.training.fit import fit


@dataclass(frozen=True, kw_only=True)
class GDumb(Strategy):
    """A network trained from scratch on a balanced buffer and nothing else (Prabhu et al. 2020).

    "GDumb: a simple approach that questions our progress in continual learning", ECCV 2020.
    - The samples of a task, in random order, pass the greedy sampler, which keeps the classes in
      balance (`functional.buffers.greedy`). In domain-incremental learning, where the tasks share
      their classes, "class" means a task's class, or the later tasks would find no room.
    - Then, at the end of each task, the run's initial weights are trained on the buffer for
      `epochs` passes with the run's optimizer; training.epochs and training.iterations have no
      meaning here. The authors use SGD with cosine restarts, batches of 16, clipped gradients and,
      but for MNIST, CutMix. They always train over all classes and mask at test alone; here a
      task-incremental run is masked in training too, as all are.
    """

    whole_batches: ClassVar[bool] = False  # those of the buffer may be smaller
    shown_once: ClassVar[str] = "which takes no step on the batches of the stream"

    buffer_size: int = 500
    epochs: int = 128

    def __post_init__(self) -> None:
        check(
            1 <= self.buffer_size <= LARGEST,
            f"strategy.buffer_size must lie between 1 and {LARGEST}, got {self.buffer_size}",
        )
        check(self.epochs >= 1, f"strategy.epochs must be at least 1, got {self.epochs}")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            self.buffer_size >= env.num_bins,
            f"strategy.buffer_size={self.buffer_size} is too small for strategy={self.name}, which "
            f"needs at least one place for each of {env.num_bins} classes",
        )
        return store(empty_rows(self.buffer_size, env)) | {"initial": theta.detach().clone()}

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        return stream[t].train[:0], t

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        slots = load(s.memory)
        generator = generator_for(CPU, env.seed, "buffer", task.index)
        keep = buffers.greedy(*bins_of(slots, task, env), generator)
        slots = buffers.refill(slots, arrived(slots, task, keep), keep)
        for module in env.flat.module.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()  # in place, in the state's own buffers
        s = env.commit(env.restart(s, s.memory["initial"]))
        held = slots["index"] >= 0
        samples = slots["index"][held], slots["task"][held]
        s = fit(s, env, self, samples, epochs=self.epochs, phase="buffer")
        return s._replace(memory=s.memory | store(slots))
