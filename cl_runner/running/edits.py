"""What a run that edits its model decides and reads: which samples, and what each edit changes.

After the first task the samples of the pool that its model gets wrong become the tasks that are
left, in the order of the pool, which is a random one. A checkpoint holds their places.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.core import Stream, TrainState, generator_for
from cl_runner.data.kinds.edits import chosen
from cl_runner.errors import check
from cl_runner.functional.metrics import Matrix
from cl_runner.results.columns import EDIT_READINGS
from cl_runner.running.evaluation import evaluation_chunk
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env

CPU = torch.device("cpu")
COPIES = 8  # of each edited sample, which differ a little from it
NOISE = 0.3  # of the noisy ones, in standard deviations of the values in the pool
KNOWN = 1000  # samples of the pool, which tell this deviation


class Edits(NamedTuple):
    """What is known of E edits of n samples each, beside m test samples that nothing trains on."""

    places: Tensor  # [E, n] the edited samples in the pool
    taken: Tensor  # [E, n] the class that the unedited model takes them for
    before: Tensor  # [m] and the test samples
    locality: Tensor  # [E] share of the test samples that are taken for the same after the edit
    generality: Tensor  # [E] share of the edited samples' copies that are right; NaN: not yet read


def decide(strategy: Strategy, s: TrainState, env: Env) -> Edits:
    """The edits that the model of the first task needs. Raises UserError if they are too few."""
    stream, pool = env.stream, env.stream.pool
    assert pool is not None
    (E, n), size = (len(stream) - 1, len(stream[1].train)), len(pool)
    found = predicted(strategy, s, stream.images(pool, 0), 0, env)
    wrong = (found != stream.labels(pool, 0).cpu()).nonzero().squeeze(1)
    check(
        len(wrong) >= E * n,
        f"benchmark.num_tasks={len(stream)} with benchmark.per_edit={n} asks for {E * n} samples to"
        f" edit, and of the {size} of the pool the model of the first task gets {len(wrong)} wrong:"
        " raise benchmark.pool_fraction, or ask for fewer",
    )
    places = wrong[: E * n].view(E, n)
    unread = torch.full((E,), torch.nan, dtype=torch.float64)
    before = predicted(strategy, s, untouched(stream), 0, env)
    return Edits(places, found[places], before, unread, unread)


def read(edits: Edits, t: int, strategy: Strategy, s: TrainState, env: Env) -> Edits:
    """What is known after task t, an edit: its locality and its generality."""
    stream, task = env.stream, env.stream[t]
    now = predicted(strategy, s, untouched(stream), t, env)
    x = copies(stream.images(task.train, t), deviation(stream), env.seed, t)
    right = predicted(strategy, s, x, t, env) == stream.labels(task.train, t).cpu().repeat(COPIES)
    locality, generality = edits.locality.clone(), edits.generality.clone()
    locality[t - 1] = (now == edits.before).double().mean()
    generality[t - 1] = right.double().mean()
    return edits._replace(locality=locality, generality=generality)


def sizes(stream: Stream) -> tuple[int, int, int, int] | None:
    """Edits, samples of each, samples of the pool, and test samples that nothing trains on."""
    if stream.pool is None:
        return None
    return len(stream) - 1, len(stream[1].train), len(stream.pool), len(stream[0].test)


def with_edits(stream: Stream, edits: Edits) -> Stream:
    """The stream whose tasks after the first are these."""
    return chosen(stream, edits.places)


def untouched(stream: Stream) -> Tensor:
    """The test samples [m, C, H, W] that nothing trains on: those of the first task."""
    images, _ = stream.held_out("test", stream[0])
    return images


@torch.no_grad()
def predicted(strategy: Strategy, s: TrainState, images: Tensor, t: int, env: Env) -> Tensor:
    """The classes [n] that a strategy takes images [n, C, H, W] of task t for, on the host."""
    env.flat.module.eval()
    found = [
        env.meter.predicted(t, len(x), strategy.predict, s, env.inputs(x), t, env).argmax(1)
        for x in images.split(evaluation_chunk(env))
    ]
    env.flat.module.train()
    return torch.cat(found).cpu()


def deviation(stream: Stream) -> float:
    """The standard deviation of all values of the pool, told by its first samples."""
    assert stream.pool is not None
    return float(stream.x[stream.pool[:KNOWN]].double().std())


def copies(x: Tensor, deviation: float, seed: int, t: int) -> Tensor:
    """COPIES of samples [n, C, H, W] of task t, one after another, [COPIES * n, C, H, W].

    Four of an image are moved by a pixel, zeros coming in; the others have normal noise.
    """
    moved = []
    if min(x.shape[2:]) > 1:
        sides = ((1, -1, 0, 0), (-1, 1, 0, 0), (0, 0, 1, -1), (0, 0, -1, 1))
        moved = [F.pad(x, side) for side in sides]
    shape, generator = (COPIES - len(moved), *x.shape), generator_for(CPU, seed, "generality", t)
    noise = torch.randn(shape, generator=generator).to(x.device) * (NOISE * deviation)
    noisy = (x.float() + noise).flatten(0, 1)
    if x.dtype == torch.uint8:
        noisy = noisy.round().clamp(0, 255)
    return torch.cat([*moved, noisy.to(x.dtype)])


def rows_of(edits: Edits, R: Matrix, stream: Stream) -> list[dict[str, Any]]:
    """The rows of edits.csv: an edit that was trained each. R: the accuracy matrix so far.

    The model is right about the share `success` of the edit's samples just after it, and about
    `retained` after the last task that was evaluated.
    """
    assert stream.pool is not None
    rows = stream.pool.cpu()[edits.places]
    labels = stream.labels(rows.flatten().to(stream.pool.device), 0).view_as(rows).tolist()
    done = int((~edits.generality.isnan()).sum())
    read = zip(np.diag(R[2:, 1:]), R[done + 1, 1:], edits.locality, edits.generality, strict=True)
    of = zip(rows.tolist(), labels, edits.taken.tolist(), read, strict=True)
    return [
        {
            "task": task,
            "samples": samples,
            "classes": called(stream, classes),
            "taken_for": called(stream, taken),
            **{name: float(v) for name, v in zip(EDIT_READINGS, values, strict=True)},
        }
        for task, (samples, classes, taken, values) in zip(range(2, done + 2), of, strict=False)
    ]


def called(stream: Stream, classes: list[int]) -> str:
    """What the data call classes, in a cell."""
    return json.dumps([stream[0].names[c] for c in classes], ensure_ascii=False)
