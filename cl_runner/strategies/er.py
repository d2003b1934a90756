"""Experience replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState, Window, concatenate
from cl_runner.errors import one_of
from cl_runner.functional.buffers import Slots
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.replay import (
    REFILLED,
    check_buffer,
    check_room,
    drawn,
    empty_rows,
    offered,
    places,
    planned,
    refilled,
    store,
    why_borders,
    why_tasks,
)
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class ER(Strategy):
    """Each step trains on the incoming batch and on one drawn from a buffer of old samples.

    Chaudhry et al. 2019, arXiv 1902.10486 (reservoir and ring); Rolnick et al. 2019, 1811.11682.
    - policy `reservoir`: every sample of the stream is held with equal probability; `ring`: the
      latest of each class; `dual` (ours): a tenth of the places is a ring of the latest samples, of
      whatever class, and what it drops is offered to the rest, where each class has the same number
      of places and holds each of its samples with equal probability; fed after each step.
      `class_balanced`: at the end of each task all classes seen so far get equal random shares;
      `herding`: equal shares of the samples whose mean feature is closest to their class's, the
      best first, and of old classes the best stay (Rebuffi et al. 2017, 1611.07725, algorithms 4
      and 5). In domain-incremental learning, where the tasks share their classes, "class" means a
      task's class for all but reservoir.
    - per_class in the place of buffer_size: each class has that many places from its own task on,
      or one for each of its samples, and keeps what it holds (as in van de Ven et al. 2022, below);
      the buffer is as large as all classes need. For every policy but reservoir and dual.
    - weighting `concatenation`: one mean over the batch and the replayed samples; `task_share`:
      1/t and 1 - 1/t of their two means in task t (the weights of generative replay in van de Ven
      et al. 2022, Nature Machine Intelligence 4, 1185).
    The replayed samples are drawn uniformly, without replacement; from a buffer that holds fewer
    than the replay batch, all of them.

    A task of several epochs offers every sample once an epoch, as in the DER authors' code
    (aimagelab/mammoth): reservoir and ring may then hold a sample several times, each place of
    which counts in buffer_samples and buffer_bytes, and it is presentations of which each is held
    with equal probability. The steps on a batch that `training.passes` asks for offer it once.
    """

    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")

    buffer_size: int | None = 500
    replay_batch_size: int = 128
    policy: str = "reservoir"
    per_class: int | None = None
    weighting: str = "concatenation"

    def __post_init__(self) -> None:
        check_buffer(self.buffer_size, self.per_class, self.policy, self.replay_batch_size)
        one_of("strategy.weighting", self.weighting, ("concatenation", "task_share"))

    def needs_borders(self, scenario: str) -> str:
        return why_borders(self.policy, self.weighting, scenario)

    def needs_tasks(self, scenario: str) -> str:
        return why_tasks(self.policy, scenario) or super().needs_tasks(scenario)

    def places(self, env: Env) -> int:
        """How many samples the buffer has room for, K."""
        return places(self.buffer_size, self.per_class, env)

    def replayed(self, env: Env) -> int:
        """Samples drawn per step."""
        return min(self.replay_batch_size, self.places(env))

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        return {
            "draw": (self.places(env),),
            "replay_augment": (self.replayed(env), 3),
            "reservoir": (batch_size,),
        }

    def plan(self, memory: Slots, t: Tensor, window: Window, env: Env) -> tuple[Slots, Slots]:
        return planned(memory, t, window, self.policy, self.replayed(env), self.drawable, env)

    def drawable(self, held: Slots, t: Tensor) -> Tensor:
        """Which slots [..., K] may be drawn from, in task t."""
        return held["index"] >= 0

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check_room(self.places(env), self.policy, env)
        slots = empty_rows(self.places(env), env) | self.empty_slots(theta, env)
        seen = torch.zeros(env.num_bins, dtype=torch.int64, device=env.device)
        return store(slots) | {"seen": seen}

    def empty_slots(self, theta: Tensor, env: Env) -> Slots:
        """Empty tensors [K, ...] for what a variant stores with a sample besides row and task."""
        return {}

    def keep(self, s: TrainState, batch: Batch, aux: Aux, env: Env) -> Slots:
        """What a variant stores with the samples of a batch, [B, ...], such as their logits.

        aux is that of the step; at the end of a task there is none, and the network is to answer in
        evaluation mode.
        """
        return {}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        replay = self.draw(s, batch, env)
        both = self.join(s, batch, replay)
        s, aux = super().step(s, both, env)
        return self.remember(s, batch, aux, env), aux

    def draw(self, s: TrainState, batch: Batch, env: Env, which: str = "") -> Batch:
        """Samples of the buffer; weight 0 where it holds fewer than asked for.

        `which` names the noise of a second, independent draw; noise["slot"] tells the slots.
        """
        return drawn(s, batch, env, which)

    def join(self, s: TrainState, batch: Batch, replay: Batch) -> Batch:
        """One batch of both, weighted as `weighting` says."""
        assert replay.weight is not None
        new, old = torch.ones_like(batch.y, dtype=torch.float32), replay.weight
        if self.weighting == "task_share":
            share = 1 / (s.t + 1)
            new, old = new * share / len(new), old * (1 - share) / old.sum().clamp_min(1)
        return concatenate(batch._replace(weight=new), replay._replace(weight=old))

    def remember(self, s: TrainState, batch: Batch, aux: Aux, env: Env) -> TrainState:
        """The state after the batch's samples have been offered to the buffer."""
        if self.policy in REFILLED:
            return s
        return offered(s, batch.plan, self.keep(s, batch, aux, env), self.policy)

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if self.policy not in REFILLED:
            return s
        return refilled(s, task, self.policy, self.per_class, self.keep, env)
