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


class Watch(NamedTuple):
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


def judged(
    watch: Watch, guard: Guard, R: Matrix, row: Sequence[float], s: TrainState, steps: int
) -> Watch:
    """What the guard knows after a look.

    R: the validation data's accuracy matrix [T + 1, T], filled up to row t. row: the accuracies
    [t + 1] of the tasks up to t, the one under way, in the state s. steps: of the run so far.
    """
    assert guard.drop is not None
    t, step = len(row) - 1, steps - watch.began
    old, begun = np.array(row[:t]), R[t, :t]
    reference = np.array([R[j + 1 : t + 1, j].max() for j in range(t)])
    fall = np.where(old < begun, reference - old, 0.0)
    j = int(fall.argmax())
    if fall[j] > watch.reference - watch.accuracy:
        worst = float(reference[j]), float(old[j])
        watch = watch._replace(old_task=j, reference=worst[0], accuracy=worst[1])
    watch = watch._replace(looks=watch.looks + 1, looked=steps)
    broken = bool(fall[j] > guard.drop + ROUNDING)
    if guard.action == "rollback" and (not broken or step == 0):
        mean = sum(row) / len(row)
        if watch.state is None or mean >= watch.best:
            watch = watch._replace(best=mean, kept=step, state=copied(s))
    return watch._replace(fired=step) if broken and watch.fired is None else watch


def copied(s: TrainState) -> TrainState:
    """A state that shares no memory with s."""
    copy: TrainState = tree_map(lambda v: v.detach().clone(), s)
    return copy


def ended(watch: Watch | None, guard: Guard) -> bool:
    """Whether the guard has ended the task's training."""
    return watch is not None and watch.fired is not None and guard.action != "warn"


def in_words(watch: Watch, guard: Guard, stream: Stream, t: int) -> str:
    """What has happened, in a line; the bound was broken just now."""
    assert watch.old_task is not None
    what = {
        "rollback": f"it goes back to step {watch.kept}",
        "stop": "it ends here",
        "warn": "it goes on",
    }
    return (
        f"{stream[t].title}: {stream[watch.old_task].title} fell from {watch.reference:.3f} to "
        f"{watch.accuracy:.3f} on its validation data at step {watch.fired}, more than "
        f"guard.drop={guard.drop}: {what[guard.action]}"
    )


def row_of(watch: Watch, guard: Guard, t: int, steps: int) -> dict[str, Any]:
    """The row of guard.csv about task t, after the run's so many steps."""
    fired = watch.fired is not None
    back = fired and guard.action == "rollback"
    j = watch.old_task
    lost = (None,) * 3 if j is None else (j + 1, watch.reference, watch.accuracy)
    what = (watch.fired, guard.action) if fired else (None, None)
    kept = watch.kept if back else steps - watch.began
    return dict(zip(ROW, (t + 1, watch.looks, *lost, *what, kept), strict=True))
