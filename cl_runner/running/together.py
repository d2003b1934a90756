"""The steps of several runs as one stacked state, and what they end with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cl_runner.core import TrainState
from cl_runner.errors import Diverged
from cl_runner.machine.ram import available
from cl_runner.running.stacked import StackedStep, stack, unstack
from cl_runner.running.tasks import Member, Observer, begin_task, end_task, length, unobserved
from cl_runner.training import optim
from cl_runner.training.batches import Source
from cl_runner.training.fit import Progress, Snapshot, check_finite, take_steps
from cl_runner.training.online import Counted, Predictions, counted

WINDOW_BYTES = 2**26  # of images that lie ready for the coming steps, at least
LARGEST_WINDOW = 2**31  # the same on a GPU, where each window costs some launches for each member


class Together:
    """The steps of several members in one phase of training (see training.fit.Steps).

    A member that diverges, or whose budget is used up, leaves the others.
    """

    def __init__(
        self,
        members: Sequence[Member],
        states: Sequence[TrainState],
        progress: Sequence[Progress],
        t: int,
        step: StackedStep,
    ) -> None:
        self.members, self.env, self.t = list(members), members[0].env, t
        self.places = list(range(len(members)))  # of those that are still together
        self.left: dict[int, TrainState | Diverged] = {}  # what the others ended with, by place
        self.released: dict[int, TrainState] = {}  # of these, those that were let go
        self.samples = [p.samples for p in progress]  # by place
        self.sources = [
            Source(m.env, s, t, *p.samples, m.strategy)
            for m, s, p in zip(members, states, progress, strict=True)
        ]
        losses = zip(*(p.losses for p in progress), strict=True)
        self.pending = [torch.stack(own) for own in losses]  # of the epoch under way, [M] each
        predictions = zip(*(p.predictions for p in progress), strict=True)
        read = [torch.stack(own) for own in predictions]  # in the first one, [M, n] each
        self.predictions = Predictions(self.env.stream, read)
        self.counted: dict[int, list[Counted]] = {}  # of those that left, by place
        self.rows: Tensor | None = None  # of the batches, those of the members still together
        self.step = step
        step.begin(stack(states))

    def batches(self, epoch: int, steps: int, done: int) -> Iterator[dict[str, Any]]:
        """The members' batches, stacked [M, B, ...], the images raw (see Steps)."""
        self.rows = None
        return stacked_batches(self.sources, epoch, steps, done)

    def affordable(self, batch: dict[str, Any], first: int) -> dict[str, Any] | None:
        """See Steps."""
        size = batch["y"].shape[1]
        limited = self.members if self.env.meter.budget else ()
        if over := [i for i, m in enumerate(limited) if m.env.meter.exhausted(size)]:
            lost = self.lost(first, over) if self.pending else {}
            self.leave({i: lost.get(i) for i in over})
        if not self.members:
            return None
        return batch if self.rows is None else tree_map(lambda v: v[self.rows], batch)

    def anneal(self, share: float) -> None:
        """See Steps."""
        rates = [
            m.env.rate(self.t)
            * optim.rate_factor(m.env.optimizer, max(share, m.env.meter.progress()))
            for m in self.members
        ]
        self.step.set_rates(torch.tensor(rates, device=self.env.device))

    def take(self, batch: dict[str, Any], epoch: int, i: int) -> None:
        """See Steps."""
        (losses, *logits), size = self.step(batch), batch["y"].shape[1]
        self.pending.append(losses)
        if logits and epoch == 0 and i % self.env.training.passes == 0:
            self.predictions.add(logits[0], batch.get("active"))
        first = losses[0]
        for at, m in enumerate(self.members):
            meter = m.env.meter
            meter.known.setdefault(size, self.step.flops)
            meter.flops += self.step.flops
            meter.step(epoch, size, losses[at] if at and meter.displays else first)

    def check(self, first: int) -> None:
        """Take members whose losses or weights are not finite out of the stack."""
        if lost := self.lost(first, range(len(self.members))):
            self.leave(lost)
        self.pending = []

    def lost(self, first: int, among: Iterable[int]) -> dict[int, TrainState | Diverged | None]:
        """Those of some members whose losses since step `first`, or theta, are not finite."""
        theta, losses = self.step.states().theta, torch.stack(self.pending, 1)
        found: dict[int, TrainState | Diverged | None] = {}
        for i in among:
            try:
                check_finite(theta[i], losses[i], self.t, first)
            except Diverged as error:
                found[i] = error
        return found

    def leave(self, gone: Mapping[int, TrainState | Diverged | None]) -> None:
        """Take members out of the stack, each with its final state or exception; None: as it is."""
        states = unstack(self.step.states(), len(self.members))
        for i, end in gone.items():
            self.left[self.places[i]] = end or states[i]
            if end is None:
                self.counted |= self.counted_of(i)
        kept = [i for i in range(len(self.members)) if i not in gone]
        index = torch.tensor(kept, dtype=torch.int64, device=self.env.device)
        self.rows = index if self.rows is None else self.rows[index]
        self.members = [self.members[i] for i in kept]
        self.sources = [self.sources[i] for i in kept]
        self.places = [self.places[i] for i in kept]
        self.pending = [losses[index] for losses in self.pending]
        read = [own[index] for own in self.predictions.all()]
        self.predictions = Predictions(self.env.stream, read)
        if kept:
            self.step = StackedStep(self.members, self.step.record)
            self.step.begin(stack([states[i] for i in kept]))

    def snapshots(self, step: int) -> dict[int, Snapshot]:
        """See Steps."""
        found = {}
        states = unstack(self.step.states(), len(self.members)) if self.members else []
        for i, (place, m, s) in enumerate(zip(self.places, self.members, states, strict=True)):
            losses = tuple(own[i] for own in self.pending)
            predictions = tuple(own[i] for own in self.predictions.all())
            progress = Progress(self.samples[place], step, losses, predictions)
            found[place] = m.env.commit(s), progress
        none = (torch.zeros((), device=self.env.device),) * len(self.pending)
        for place, s in self.released.items():  # at the others' step, to go on beside them
            found[place] = s, Progress(self.samples[place], step, none)
        return found

    def online(self) -> dict[int, list[Counted]]:
        """See Steps."""
        there = [self.counted_of(i) for i in range(len(self.members))]
        return {place: own for found in (self.counted, *there) for place, own in found.items()}

    def counted_of(self, i: int) -> dict[int, list[Counted]]:
        """What the i-th of those still together has predicted right, by its place."""
        return {
            self.places[i]: counted(self.sources[i], [own[i] for own in self.predictions.all()])
        }

    def release(self, ends: Mapping[int, TrainState | None]) -> None:
        """See Steps."""
        if gone := {i: ends[place] for i, place in enumerate(self.places) if place in ends}:
            self.leave(gone)
        for place, s in ends.items():
            now = s or self.left[place]
            assert isinstance(now, TrainState)
            self.left[place] = self.released[place] = now

    def ends(self) -> list[TrainState | Diverged]:
        """See Steps."""
        states = unstack(self.step.states(), len(self.members)) if self.members else []
        ends = self.left | dict(zip(self.places, states, strict=True))
        return [ends[place] for place in range(len(self.samples))]


def train_task(
    members: Sequence[Member],
    states: Sequence[TrainState],
    t: int,
    step: StackedStep,
    progress: Sequence[Progress | None] | None = None,
    observe: Observer = unobserved,
) -> list[TrainState | Diverged]:
    """The members' states after training on task t; an exception for one that became infinite.

    progress: how far each has come in the task, all as far; None: it is before its beginning.
    """
    begun = [
        begin_task(m.strategy, s, m.env.stream[t], m.env) if p is None else (s, p)
        for m, s, p in zip(members, states, progress or [None] * len(members), strict=True)
    ]
    first = begun[0][1]
    together = Together(members, [s for s, _ in begun], [p for _, p in begun], t, step)
    plan, done = length(*members[0], first, t), first.step
    for m in members:
        m.env.meter.begin(t, plan.epochs, plan.steps - done, resumed=done > 0)
    with observe(together) as after, torch.no_grad():
        take_steps(together, plan, done, after)
    return [
        end if isinstance(end, Diverged) else ended(m, end, t)
        for m, end in zip(members, together.ends(), strict=True)
    ]


def ended(member: Member, s: TrainState, t: int) -> TrainState:
    """A member's state after what its strategy does at the end of task t."""
    strategy, env = member
    return end_task(strategy, env.commit(s), env.stream[t], env)


def stacked_batches(
    sources: Sequence[Source], epoch: int, steps: int, done: int = 0
) -> Iterator[dict[str, Any]]:
    """The members' batches of an epoch, stacked [M, B, ...], the images raw.

    Those that are `done` are left out.
    """
    env, ready = sources[0].env, WINDOW_BYTES
    if env.device.type == "cuda":
        ready = max(ready, min(LARGEST_WINDOW, (available(env.device) or 0) // 16))
    images = len(sources) * env.training.batch_size * env.stream.x[0].nbytes
    most = max(1, ready // images)
    for parts in zip(
        *(source.stackable(epoch, steps, most, done) for source in sources), strict=True
    ):
        whole = stack(parts)  # [M, steps, B, ...]
        for i in range(whole["y"].shape[1]):
            yield tree_map(lambda v, i=i: v[:, i], whole)
