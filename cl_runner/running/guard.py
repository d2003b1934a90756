"""Back-testing that acts: the training on a task ends where it breaks what was learnt before.

Every so many steps the accuracy on the validation data of each old task is held against its
reference: the best that it had after its own training or after that of a task since. A task that
has lost more than `guard.drop` breaks the bound, unless it had lost as much before this training
began. What follows says `guard.action`. Test data are never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils._pytree import tree_map

from cl_runner.config.schema import Config, Guard
from cl_runner.core import Stream, TrainState
from cl_runner.functional.metrics import Matrix

ROUNDING = 1e-9  # by which the difference of two fractions may exceed what it is
ROW = ("task", "looks", "old_task", "reference", "accuracy", "step", "action", "kept_step")


class Backtest(NamedTuple):
    """What the guard has seen of the task under way."""

    began: int  # the run's optimizer steps before the task,
    looked: int  # and at the last look
    looks: int = 0
    old_task: int | None = None  # index of the one that has lost most in it, at some look:
    reference: float = 0.0  # from this accuracy
    accuracy: float = 0.0  # to this
    fired: int | None = None  # step of the task at which the bound was broken first
    best: float = 0.0  # the highest mean accuracy of a step before that, old tasks and this one,
    kept: int = 0  # that step,
    state: TrainState | None = None  # and a copy of its state, for action=rollback


def every(config: Config, stream: Stream, t: int) -> int:
    """Steps between two looks while task t is trained.

    By default a look passes as many samples as the steps since the last one took: forward only,
    hence a third of the FLOPs of training at most.
    """
    validated = sum(len(task.validation) for task in stream[: t + 1])
    usual = -(-validated // config.training.batch_size)
    return config.guard.every or config.eval.every or max(1, usual)


def looked_back(
    backtest: Backtest, guard: Guard, R: Matrix, row: Sequence[float], s: TrainState, steps: int
) -> Backtest:
    """What the guard knows after a look.

    R: the validation data's accuracy matrix [T + 1, T], filled up to row t. row: the accuracies
    [t + 1] of the tasks up to t, the one under way, in the state s. steps: of the run so far.
    """
    assert guard.drop is not None
    t, step = len(row) - 1, steps - backtest.began
    old, begun = np.array(row[:t]), R[t, :t]
    reference = np.array([R[j + 1 : t + 1, j].max() for j in range(t)])
    fall = np.where(old < begun, reference - old, 0.0)
    j = int(fall.argmax())
    if fall[j] > backtest.reference - backtest.accuracy:
        worst = float(reference[j]), float(old[j])
        backtest = backtest._replace(old_task=j, reference=worst[0], accuracy=worst[1])
    backtest = backtest._replace(looks=backtest.looks + 1, looked=steps)
    broken = bool(fall[j] > guard.drop + ROUNDING)
    if guard.action == "rollback" and (not broken or step == 0):
        mean = sum(row) / len(row)
        if backtest.state is None or mean >= backtest.best:
            backtest = backtest._replace(best=mean, kept=step, state=copied(s))
    return backtest._replace(fired=step) if broken and backtest.fired is None else backtest


def copied(s: TrainState) -> TrainState:
    """A state that shares no memory with s."""
    copy: TrainState = tree_map(lambda v: v.detach().clone(), s)
    return copy


def ended(backtest: Backtest | None, guard: Guard) -> bool:
    """Whether the guard has ended the task's training."""
    return backtest is not None and backtest.fired is not None and guard.action != "warn"


def in_words(backtest: Backtest, guard: Guard, stream: Stream, t: int) -> str:
    """What has happened, in a line; the bound was broken just now."""
    assert backtest.old_task is not None
    what = {
        "rollback": f"it goes back to step {backtest.kept}",
        "stop": "it ends here",
        "warn": "it goes on",
    }
    return (
        f"{stream[t].title}: {stream[backtest.old_task].title} fell from {backtest.reference:.3f} "
        f"to {backtest.accuracy:.3f} on its validation data at step {backtest.fired}, more than "
        f"guard.drop={guard.drop}: {what[guard.action]}"
    )


def row_of(backtest: Backtest, guard: Guard, t: int, steps: int) -> dict[str, Any]:
    """The row of guard.csv about task t, after the run's so many steps."""
    fired = backtest.fired is not None
    back = fired and guard.action == "rollback"
    j = backtest.old_task
    lost = (None,) * 3 if j is None else (j + 1, backtest.reference, backtest.accuracy)
    what = (backtest.fired, guard.action) if fired else (None, None)
    kept = backtest.kept if back else steps - backtest.began
    return dict(zip(ROW, (t + 1, backtest.looks, *lost, *what, kept), strict=True))
