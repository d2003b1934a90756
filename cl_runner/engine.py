"""The training loop of one task, and the evaluation of all tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cl_runner.core import Task, TrainState
from cl_runner.env import Env
from cl_runner.fit import Begun, Between, Samples, fit
from cl_runner.functional import optim
from cl_runner.functional.calibration import calibration, calibration_sums, confusion
from cl_runner.functional.losses import mask_logits
from cl_runner.strategies.base import Strategy

EVALUATION_CHUNK = 2000  # images per forward pass
Rows = dict[tuple[str, str], list[float]]  # (split, reading) -> accuracy on each task
See = Callable[[tuple[str, str], int, Tensor, Tensor], None]  # (split, reading), task, scores, y
Watch = Callable[[Samples], AbstractContextManager[Between]]  # what looks on between the steps


def initial_state(strategy: Strategy, env: Env) -> TrainState:
    """The state before the first task."""
    theta = env.flat.theta
    return TrainState(
        theta=theta,
        buffers=env.flat.buffers,
        opt=optim.init(env.optimizer, theta.detach()),
        memory=strategy.init(theta, env),
        t=torch.zeros((), dtype=torch.int64, device=env.device),
    )


def restored(s: TrainState, env: Env) -> TrainState:
    """A state that was saved, put into the run's live storage."""
    device, buffers = env.device, env.flat.buffers
    for name, value in buffers.items():
        value.copy_(s.buffers[name])
    return TrainState(
        theta=env.flat.commit(s.theta.to(device)),
        buffers=buffers,
        opt={k: v.to(device) for k, v in s.opt.items()},
        memory={k: v.to(device) for k, v in s.memory.items()},
        t=s.t.to(device),
    )


def train_task(
    strategy: Strategy,
    s: TrainState,
    task: Task,
    env: Env,
    begun: Begun | None = None,
    watch: Watch | None = None,
) -> TrainState:
    """The state after training on one task. Raises Diverged where numbers are no longer finite.

    begun: s has taken these steps of the task. watch: given the samples, what is called between
    the steps.
    """
    if begun is None:
        left = env.num_tasks - task.index
        env.meter.begin_task(task.index, 1 if strategy.whole_sequence else left)
        s, samples = begin_task(strategy, s, task, env)
        begun = Begun(samples)
    samples, step, losses = begun
    with watch(samples) if watch else nullcontext() as between:
        s = fit(
            *(s, env, strategy, samples),
            times=times(strategy, env),
            t=task.index,
            step=step,
            losses=losses,
            between=between,
        )
    return end_task(strategy, s, task, env)


def times(strategy: Strategy, env: Env) -> int:
    """For how many tasks the training on one stands, which takes the steps of as many."""
    return env.num_tasks if strategy.whole_sequence else 1


def begin_task(
    strategy: Strategy, s: TrainState, task: Task, env: Env
) -> tuple[TrainState, Samples]:
    """The state before a task's first step, and what the task trains on."""
    s = s._replace(t=torch.full_like(s.t, task.index))
    if env.optimizer.reset:
        s = env.restart(s, s.theta)
    with env.meter.counting():
        s = env.commit(strategy.begin_task(s, task, env))
        return s, strategy.training_set(s, env.stream, task.index, env)


def end_task(strategy: Strategy, s: TrainState, task: Task, env: Env) -> TrainState:
    """The state after what a strategy does at the end of a task."""
    with env.meter.counting(), torch.no_grad():
        return env.commit(strategy.end_task(s, task, env))


def readings(scenario: str) -> tuple[str, ...]:
    """How a run's outputs are read, the scenario's own reading first.

    A class-incremental run is also read as task-incremental: scored on the task's own classes.
    """
    return ("class", "task") if scenario == "class" else (scenario,)


@torch.no_grad()
def evaluate(strategy: Strategy, s: TrainState, env: Env, see: See | None = None) -> Rows:
    """Accuracy on the held-out samples of every task, as fractions, by split and reading.

    The splits are `test` and, where there is one, `validation`. One transfer to the host in all.
    see: is shown the scores [B, K] of each batch, and the classes [B].
    """
    env.flat.module.eval()
    stream, counts, keys, sizes = env.stream, [], [], []
    for split in ("test", "validation") if len(stream[0].validation) else ("test",):
        for task in stream:
            images, y = stream.held_out(split, task)
            own = env.own_classes[task.index]
            hits = torch.zeros(len(readings(stream.scenario)), dtype=torch.int64, device=env.device)
            for x, target in zip(
                images.split(EVALUATION_CHUNK), y.split(EVALUATION_CHUNK), strict=True
            ):
                inputs = s, stream.normalise(x), task.index, env
                logits = env.meter.predicted(task.index, len(x), strategy.predict, *inputs)
                for i, reading in enumerate(readings(stream.scenario)):
                    scores = mask_logits(logits, own if reading == "task" else None)
                    hits[i] += (scores.argmax(1) == target).sum()
                    if see:
                        see((split, reading), task.index, scores, target)
            counts.append(hits)
            keys.append(split)
            sizes.append(len(y))
    env.flat.module.train()
    rows: Rows = {}
    for split, size, hits_of_task in zip(keys, sizes, torch.stack(counts).tolist(), strict=True):
        for reading, hit in zip(readings(stream.scenario), hits_of_task, strict=True):
            rows.setdefault((split, reading), []).append(hit / size)
    return rows


class Calibration:
    """What `evaluate` shows, gathered into the rows of calibration.csv and confusion.csv."""

    def __init__(self, after_task: int) -> None:
        self.after_task = after_task  # how many tasks were trained
        self.sums: dict[tuple[str, str, int], Tensor] = {}
        self.counts: dict[tuple[str, str], Tensor] = {}  # [K, K], over the tasks seen

    def see(self, key: tuple[str, str], task: int, scores: Tensor, y: Tensor) -> None:
        """Add the scores [B, K] of a batch of a task's samples, and their classes y [B]."""
        sums = calibration_sums(scores, y)
        at = (*key, task)
        self.sums[at] = self.sums.get(at, 0) + sums
        if task < self.after_task:
            self.counts[key] = self.counts.get(key, 0) + confusion(scores, y)

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each file; tasks count from 1, classes are the network's outputs, from 0."""
        at = {"after_task": self.after_task}
        scores = [
            {**at, "eval_task": task + 1, "reading": reading, "split": split, **calibration(sums)}
            for (split, reading, task), sums in sorted(self.sums.items(), key=lambda item: item[0])
        ]
        counts = [
            {**at, "reading": reading, "split": split, "class": i, "predicted": j, "count": n}
            for (split, reading), table in sorted(self.counts.items())
            for i, row in enumerate(table.tolist())
            for j, n in enumerate(row)
            if n
        ]
        return {"calibration": scores, "confusion": counts}
