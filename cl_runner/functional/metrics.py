"""Metrics of continual learning, nearly all of them functions of the accuracy matrix R alone.

R has shape (T + 1, T): R[i, j] is the accuracy (a fraction) on task j after training on i tasks;
row 0 is the untrained network, and tasks are columns 0 .. T - 1 (so the papers' R_{i,i} of task i
is R[i, i - 1]). A cell that was not measured is NaN, and what depends on it is NaN: nothing is a
mean over those cells of its formula that happen to be there. A run with `eval.tasks=last:5` thus
has the diagonal and the cells above it, and what takes only those.

Some metrics also need the curve: what was measured within the tasks. It has shape
(n, 2 + T): each row tells how many tasks were done, how many steps of the next one, and the
accuracies on the T tasks, in the order in which they were measured.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def _matrix(R: ArrayLike) -> Matrix:
    R = np.asarray(R, dtype=np.float64)
    if R.ndim != 2 or R.shape[0] != R.shape[1] + 1:
        raise ValueError(f"R must have shape (T + 1, T), got {R.shape}")
    return R


def average_accuracy(R: ArrayLike) -> Matrix:
    """ACC_k = mean_{j <= k} R[k, j] for k = 1 .. T, shape (T,). ACC of the run is the last one."""
    R = _matrix(R)
    return np.array([R[k, :k].mean() for k in range(1, len(R))])


def acc(R: ArrayLike) -> float:
    """ACC = mean_j R[T, j] (Lopez-Paz & Ranzato 2017, arXiv 1706.08840)."""
    return float(_matrix(R)[-1].mean())


def bwt(R: ArrayLike) -> float:
    """BWT = mean_{i < T} (R[T, i] - R[i, i]) (Lopez-Paz & Ranzato 2017); NaN for one task."""
    R = _matrix(R)
    return _mean(R[-1, :-1] - np.diag(R[1:])[:-1])


def fwt(R: ArrayLike) -> float:
    """FWT = mean_{i >= 2} (R[i - 1, i] - R[0, i]) (Lopez-Paz & Ranzato 2017); NaN for one task.

    R[0] is the network at its random initialisation. In class-incremental learning a task's classes
    are not predicted before it is trained, so FWT only measures the initialisation there.
    """
    R = _matrix(R)
    return _mean(np.diag(R[1:-1, 1:]) - R[0, 1:])


def forgetting(R: ArrayLike) -> float:
    """F = mean_{j < T} (max_{j <= l < T} R[l, j] - R[T, j]) (Chaudhry et al. 2018).

    arXiv 1801.10112. The maximum starts at l = j, when the task was trained. The paper's starts at
    l = 1, which differs only where a task was solved better before it was trained. NaN for one
    task.
    """
    R = _matrix(R)
    T = R.shape[1]
    return _mean(np.array([R[j + 1 : T, j].max() - R[T, j] for j in range(T - 1)]))


def learning_accuracy(R: ArrayLike) -> float:
    """LA = mean_i R[i, i], on each task just trained (Riemer et al. 2019, arXiv 1810.11910)."""
    return float(np.diag(_matrix(R)[1:]).mean())


def next_task_accuracy(R: ArrayLike) -> float:
    """mean_{k < T} R[k, k + 1], on each task before it is trained; NaN for one task.

    How well what was learnt serves the next task, as when each month is predicted from those before
    it. Row 0, of the untrained network, does not count. FWT subtracts what that network reaches.
    """
    return _mean(np.diag(_matrix(R)[1:-1, 1:]))


def average_incremental_accuracy(R: ArrayLike) -> float:
    """mean_k ACC_k (Rebuffi et al. 2017, arXiv 1611.07725)."""
    return float(average_accuracy(R).mean())


def intransigence(R: ArrayLike, joint: ArrayLike) -> float:
    """I = mean_k (joint_k - R[k, k]) (Chaudhry et al. 2018, arXiv 1801.10112).

    joint: (T,), the accuracy on task k of a network trained on tasks 1 .. k together, such as the
    diagonal of a `cumulative` run's matrix.
    """
    learned, bound = np.diag(_matrix(R)[1:]), np.asarray(joint, dtype=np.float64)
    if bound.shape != learned.shape:
        raise ValueError(f"joint must have shape {learned.shape}, got {bound.shape}")
    return float((bound - learned).mean())


def evaluations(R: ArrayLike, curve: ArrayLike) -> tuple[NDArray[np.int64], Matrix]:
    """All evaluations after the first step of a run, in order: matrix and curve together.

    Returns k (m,), the task (from 1) under way or just done at each, and A (m, T), the accuracies.
    """
    R, curve = _matrix(R), np.asarray(curve, dtype=np.float64)
    T = R.shape[1]
    curve = curve.reshape(-1, 2 + T)
    done = np.arange(1.0, T + 1)
    ends = np.column_stack([done, np.zeros(T), R[1:]])
    rows = np.concatenate([curve, ends])
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return (rows[:, 0] + (rows[:, 1] > 0)).astype(np.int64), rows[:, 2:]


def min_acc(R: ArrayLike, curve: ArrayLike) -> float:
    """min-ACC = mean_{i < T} min_n A(i, n) over all evaluations n after the end of task i.

    De Lange et al. 2023, arXiv 2205.13452, section 3: how low the accuracy on a task has ever been
    since it was learnt. Evaluations within tasks show the stability gap, R alone does not. NaN for
    one task.
    """
    k, A = evaluations(R, curve)
    T = A.shape[1]
    return _mean(np.array([A[k > i, i - 1].min() for i in range(1, T)]))


def worst_case_acc(R: ArrayLike, curve: ArrayLike) -> float:
    """WC-ACC = A(T, end) / T + (1 - 1 / T) min-ACC, at the end of the run (De Lange et al. 2023).

    The new task as it is, the old ones at their worst: a lower bound of ACC.
    """
    R = _matrix(R)
    T = R.shape[1]
    old = (1 - 1 / T) * min_acc(R, curve) if T > 1 else 0.0
    return float(R[-1, -1] / T + old)


def average_anytime_accuracy(R: ArrayLike, curve: ArrayLike) -> float:
    """AAA = mean_n AA_n over all evaluations n, AA_n = mean_{j <= k} A(j, n) in task k.

    Caccia et al. 2022, arXiv 2104.05025: the accuracy, at any time, on the tasks seen so far, the
    one under way among them.
    """
    k, A = evaluations(R, curve)
    return float(np.mean([row[:n].mean() for n, row in zip(k, A, strict=True)]))


def online_accuracy(counts: ArrayLike) -> float:
    """mean_n [f_{n-1}(x_n) = y_n] over the samples of the stream, each predicted, then learnt.

    counts: (m, 2), samples and hits of parts of the stream. f_{n-1} has learnt from the batches
    before that of sample n. Known as prequential, Gama et al. 2013 (Machine Learning 90, 317), or
    average online accuracy, Cai et al. 2021 (arXiv 2108.09020). NaN without samples.
    """
    samples, hits = np.asarray(counts, dtype=np.float64).reshape(-1, 2).sum(0)
    return float(hits / samples) if samples else float("nan")


def personal(R: ArrayLike) -> Matrix:
    """What each task after the first gains by its own training, and the others lose; (T - 1, 2).

    The first task makes the common model, R[1]. Task p gains R[p, p] - R[1, p] over it, and what
    the others have lost by then is mean_{j != p} (R[1, j] - R[p, j]), those of later tasks among
    them.
    """
    R = _matrix(R)
    T = R.shape[1]
    own, common = np.diag(R[1:])[1:], R[1]
    lost = common - R[2:]
    others = (lost.sum(1) - (common[1:] - own)) / max(T - 1, 1)
    return np.stack([own - common[1:], others], axis=1)


def personal_gain(R: ArrayLike) -> float:
    """mean_{p >= 2} (R[p, p] - R[1, p]): over the common model, by own training."""
    return _mean(personal(R)[:, 0])


def others_loss(R: ArrayLike) -> float:
    """mean_{p >= 2} mean_{j != p} (R[1, j] - R[p, j]): of the common model, by others' training."""
    return _mean(personal(R)[:, 1])


# Of edits. readings: (E, 4), a row for each: the share of its samples that are right just after it
# and after the last one, that of the untouched samples which are taken for the same class as before
# the first one, and that of the altered copies of its samples that are right.


def edit_success(readings: ArrayLike) -> float:
    """mean_e of what is right just after edit e; NaN without edits."""
    return _mean(_readings(readings)[:, 0])


def edits_retained(readings: ArrayLike) -> float:
    """mean_e of what of edit e is right after the last edit; NaN without edits."""
    return _mean(_readings(readings)[:, 1])


def locality(readings: ArrayLike) -> float:
    """Share of the untouched samples that all edits together leave as they were.

    Mitchell et al. 2022, arXiv 2110.11309, call the opposite drawdown. NaN without edits.
    """
    return _mean(_readings(readings)[-1:, 2])


def generality(readings: ArrayLike) -> float:
    """mean_e of the altered copies that are right just after edit e; NaN without edits."""
    return _mean(_readings(readings)[:, 3])


def _readings(readings: ArrayLike) -> Matrix:
    return np.asarray(readings, dtype=np.float64).reshape(-1, 4)


def _mean(values: Matrix) -> float:
    return float(values.mean()) if len(values) else float("nan")
