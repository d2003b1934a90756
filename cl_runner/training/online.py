"""What the steps themselves predict of the stream, each before it learns (`eval.online`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_runner.training.batches import Source


class Counted(NamedTuple):
    """Of one step, on samples that no earlier step has seen."""

    samples: int
    hits: int


def counted(source: Source, predictions: Sequence[Tensor]) -> list[Counted]:
    """The hits of each step of a task's first epoch, from what these steps predicted [B] each.

    Samples of earlier tasks, which some strategies train on again, do not count. One transfer to
    the host.
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
    return [Counted(*step) for step in each.T.tolist()]


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
    task: int, steps: Sequence[Counted], window: int | None
) -> list[dict[str, int | float | None]]:
    """The rows of online.csv of a task: one for each `window` steps, or for all of them."""
    size = window or max(1, len(steps))
    parts = [(at, steps[at : at + size]) for at in range(0, len(steps), size)]
    return [
        row(task, at + len(part), sum(s.samples for s in part), sum(s.hits for s in part))
        for at, part in parts
    ]
