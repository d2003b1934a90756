"""The accuracy on the held-out samples of the tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cl_runner.core import Stream, Task, TrainState
from cl_runner.functional.losses import mask_logits
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env

LARGEST_CHUNK = 2000  # images per forward pass
CHUNK_BYTES = 2**23  # of its largest activation, which more fall out of the caches
Rows = dict[tuple[str, str], list[float]]  # (split, reading) -> accuracy on each task
See = Callable[[tuple[str, str], int, Tensor, Tensor], None]  # (split, reading), task, scores, y


def readings(scenario: str) -> tuple[str, ...]:
    """How a run's outputs are read, the scenario's own reading first.

    A class-incremental run is also read as task-incremental: scored on the task's own classes.
    """
    return ("class", "task") if scenario == "class" else (scenario,)


def evaluation_chunk(env: Env) -> int:
    """Images per forward pass, by what the network makes of one."""
    return max(1, min(LARGEST_CHUNK, CHUNK_BYTES // (4 * max(env.activations))))


def splits(stream: Stream) -> tuple[str, ...]:
    """Which held-out samples a stream has."""
    return ("test", "validation") if len(stream[0].validation) else ("test",)


@torch.no_grad()
def evaluate(
    strategy: Strategy,
    s: TrainState,
    env: Env,
    see: See | None = None,
    shown: range | None = None,
    only: Sequence[tuple[str, Task]] | None = None,
) -> Rows:
    """Accuracy on the held-out samples of the tasks, as fractions, by split and reading.

    The splits are `test` and, where there is one, `validation`. One transfer to the host in all.
    see: is shown the scores [B, K] of each batch, and the classes [B]. shown: the indices of the
    tasks that are evaluated, all by default; the accuracies on the others are NaN, and their
    samples are no longer kept ready. only: in the place of `shown`, these splits of tasks.
    """
    chunk = evaluation_chunk(env)
    env.flat.module.eval()
    stream, counts, keys, sizes = env.stream, [], [], []
    if only is None:
        shown = range(len(stream)) if shown is None else shown
        stream.forget(shown)
        tasks = stream[shown.start : shown.stop]
        only = [(split, task) for split in splits(stream) for task in tasks]
    for split, task in only:
        images, y = stream.held_out(split, task)
        own = env.own_classes[task.index]
        hits = torch.zeros(len(readings(stream.scenario)), dtype=torch.int64, device=env.device)
        for x, target in zip(images.split(chunk), y.split(chunk), strict=True):
            inputs = s, env.inputs(x), task.index, env
            logits = env.meter.predicted(task.index, len(x), strategy.predict, *inputs)
            for i, reading in enumerate(readings(stream.scenario)):
                scores = mask_logits(logits, own if reading == "task" else None)
                hits[i] += (scores.argmax(1) == target).sum()
                if see:
                    see((split, reading), task.index, scores, target)
        counts.append(hits)
        keys.append((split, task.index))
        sizes.append(len(y))
    env.flat.module.train()
    read = [(split, own) for split in splits(stream) for own in readings(stream.scenario)]
    rows: Rows = {key: [math.nan] * len(stream) for key in read}
    found = torch.stack(counts).tolist() if counts else []
    for (split, index), size, hits_of_task in zip(keys, sizes, found, strict=True):
        for reading, hit in zip(readings(stream.scenario), hits_of_task, strict=True):
            rows[split, reading][index] = hit / size
    return rows
