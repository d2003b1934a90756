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
    y, task, _ = (v[:n] for v in source.shuffled(0))
    new = task >= source.t
    so_far = torch.stack([new, new & (found == y)]).cumsum(1)  # samples and hits, [2, n]
    ends = torch.arange(size, n + size, size, device=found.device).clamp_max(n) - 1
    each = torch.diff(so_far[:, ends], prepend=so_far.new_zeros(2, 1))
    return [Counted(*step) for step in each.T.tolist()]


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
