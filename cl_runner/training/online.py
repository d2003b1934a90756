"""Predictions made by the training steps themselves, before each learns (`eval.online`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_runner.core import Stream
from cl_runner.training.batches import Source

READ = 2**18  # bytes of logits that are read at once, of as many steps as that takes


class Predictions:
    """What steps predict of their batches: as evaluation reads it, the output of the best logit.

    In task-incremental learning only the task's own outputs count. The logits of several steps are
    read together, because reading a small batch's alone takes one or two percent of its step.
    They are held until they keep READ bytes of memory: with replayed samples, all rows' memory.
    """

    def __init__(self, stream: Stream, read: Sequence[Tensor] = ()) -> None:
        self.by_task = stream.scenario == "task"
        self.read = list(read)  # predictions [..., n], of one step or of several
        self.logits: list[Tensor] = []  # of the steps after those, [..., B, K] each
        self.active: list[Tensor] = []  # where by_task: their tasks' own outputs, [..., B, K] bool
        self.most = 0  # steps whose logits are held at once

    def add(self, logits: Tensor, active: Tensor | None) -> None:
        """Take those of one more step. active: the outputs on which its samples are scored."""
        if not self.logits:
            self.most = READ // max(1, logits.untyped_storage().nbytes())
        self.logits.append(logits)
        if self.by_task and active is not None:
            self.active.append(active)
        if len(self.logits) >= self.most:
            self.all()

    def all(self) -> tuple[Tensor, ...]:
        """The predictions so far, one part after another [..., n]."""
        if self.logits:
            scores = torch.cat(self.logits, -2)
            if self.active:
                scores = scores.masked_fill(~torch.cat(self.active, -2), float("-inf"))
            self.read.append(scores.argmax(-1))
            self.logits, self.active = [], []
        return tuple(self.read)


class Counted(NamedTuple):
    """Of a batch's first step, on samples that no earlier step has seen."""

    samples: int
    hits: int


def counted(source: Source, predictions: Sequence[Tensor]) -> list[Counted]:
    """The hits on each batch of a task's first epoch, from what its first step predicted.

    predictions: [n] each part. Samples of earlier tasks, which some strategies train on again, do
    not count. One transfer to the host.
    """
    if not predictions:
        return []
    found, size = torch.cat(list(predictions)), source.size
    n = len(found)
    y, task, index = (v[:n] for v in source.shuffled(0))
    sharp = source.env.stream.boundaries == "sharp"
    new = task >= source.t if sharp else first_seen(source, task, index)
    so_far = torch.stack([new, new & (found == y)]).cumsum(1)  # samples and hits, [2, n]
    ends = torch.arange(size, n + size, size, device=found.device).clamp_max(n) - 1
    each = torch.diff(so_far[:, ends], prepend=so_far.new_zeros(2, 1))
    return [*map(Counted, *each.tolist())]


def first_seen(source: Source, task: Tensor, index: Tensor) -> Tensor:
    """Which samples [n] of a stream in an order of its own, which repeats some, were not there yet.

    task, index: their tasks and rows [n], from the segment's beginning on.
    """
    stream = source.env.stream
    before = [own.train * len(stream) + own.of for own in stream[: source.t] if own.of is not None]
    sample = torch.cat([*before, index * len(stream) + task])
    place = torch.arange(len(sample), device=sample.device)
    _, which = sample.unique(return_inverse=True)
    first = torch.full_like(sample, len(sample)).scatter_reduce(0, which, place, "amin")
    return first[which][-len(index) :] == place[-len(index) :]


def row(task: int, step: int, samples: int, hits: int) -> dict[str, int | float | None]:
    """A row of online.csv: of task `task` (from 1), whose steps up to `step` it ends with."""
    accuracy = hits / samples if samples else None
    return {"task": task, "step": step, "samples": samples, "hits": hits, "accuracy": accuracy}


def rows(
    task: int, steps: Sequence[Counted], window: int | None, passes: int = 1
) -> list[dict[str, int | float | None]]:
    """The rows of online.csv of a task: one for each `window` steps, or for all of them.

    passes: steps on each batch, of which `steps` has the first.
    """
    size = window or max(1, len(steps))
    parts = [(at, steps[at : at + size]) for at in range(0, len(steps), size)]
    ends = [passes * (at + len(part) - 1) + 1 for at, part in parts]
    return [
        row(task, end, sum(s.samples for s in part), sum(s.hits for s in part))
        for end, (_, part) in zip(ends, parts, strict=True)
    ]
