"""Streams whose tasks do not begin where one would count them to: fuzzy and random boundaries.

Such a stream comes in an order of its own and is passed once. A task's part of it, its segment, is
made of shuffled passes over the task's samples, one laid after the other; after each segment the
run is evaluated. Every sample carries its own task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from cl_runner.config.schema import Benchmark
from cl_runner.core import Stream, Task, generator_for
from cl_runner.data.streams import CPU

SHORTEST = 0.1  # of the mean length: no random segment is shorter


def ordered(stream: Stream, config: Benchmark, lengths: Sequence[int], seed: int) -> Stream:
    """The stream whose tasks' training samples come in the order of time.

    lengths: how many samples the segments have where the boundaries stay where they are; `random`
    moves them. seed: the run's, for the order; `benchmark.seed` is for the places.

    - `fuzzy`: around each boundary, w samples before it and w after, the probability that a sample
      is of the next task rises linearly from 0 to 1. w is half of `fuzzy_width` of the shorter of
      the two segments. Every sample comes as often as with sharp boundaries.
    - `random`: the boundaries are sharp, at places drawn uniformly, no segment being shorter than
      SHORTEST of the mean. A longer one shows its samples again, a shorter one not all of them.
    """
    if config.boundaries == "random":
        lengths = random_lengths(sum(lengths), len(lengths), config.seed)
    rows = [passes(task, n, seed) for task, n in zip(stream, lengths, strict=True)]
    segments = [(own, torch.full_like(own, t)) for t, own in enumerate(rows)]
    if config.boundaries == "fuzzy":
        for t in range(len(segments) - 1):
            w = mixed_samples(config.fuzzy_width, *lengths[t : t + 2])
            blend(segments, t, w, seed)
    tasks = (
        replace(task, train=rows, of=of) for task, (rows, of) in zip(stream, segments, strict=True)
    )
    return replace(stream, tasks=tuple(tasks), boundaries=config.boundaries)


def passes(task: Task, n: int, seed: int) -> Tensor:
    """Rows [n]: shuffled passes over a task's samples, one after the other.

    They are shuffled as the epochs are where the boundaries are sharp.
    """
    epochs = range(-(-n // len(task.train)))
    generators = (generator_for(CPU, seed, "order", task.index, epoch) for epoch in epochs)
    orders = [torch.randperm(len(task.train), generator=g) for g in generators]
    return task.train[torch.cat(orders)[:n].to(task.train.device)]


def random_lengths(total: int, tasks: int, seed: int) -> list[int]:
    """How many samples each segment has: SHORTEST of the mean, and uniform spacings of the rest."""
    least = max(1, int(SHORTEST * total / tasks))
    free = total - tasks * least
    places = torch.rand(tasks - 1, generator=generator_for(CPU, seed, "boundaries"))
    cuts = [0, *(places.double() * free).long().sort().values.tolist(), free]
    return [least + b - a for a, b in pairwise(cuts)]


def mixed_samples(width: float, before: int, after: int) -> int:
    """How many samples on each side of a boundary between segments of these lengths mix."""
    return int(width / 2 * min(before, after))


def blend(segments: list[tuple[Tensor, Tensor]], t: int, w: int, seed: int) -> None:
    """Mix, in place, the last w samples of segment t and the first w of the next.

    Over the time x in [0, 1] those of the old task are spread with the density 2 (1 - x), those of
    the new one with 2 x: together evenly, and the share of new ones at x is x. These are the
    densities of 1 - sqrt(u) and sqrt(u), u being uniform.
    """
    before, after = segments[t], segments[t + 1]
    u = torch.rand(2, w, generator=generator_for(CPU, seed, "fuzzy", t), dtype=torch.float64)
    times = torch.cat([1 - u[0].sqrt(), u[1].sqrt()])
    order = times.argsort(stable=True).to(before[0].device)
    both = [
        torch.cat([old[len(old) - w :], new[:w]])[order]
        for old, new in zip(before, after, strict=True)
    ]
    segments[t] = joined(
        (old[: len(old) - w], own[:w]) for old, own in zip(before, both, strict=True)
    )
    segments[t + 1] = joined((own[w:], new[w:]) for own, new in zip(both, after, strict=True))


def joined(parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Rows and tasks of two stretches of time, one after the other."""
    rows, of = (torch.cat(part) for part in parts)
    return rows, of
