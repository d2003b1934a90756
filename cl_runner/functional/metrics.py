"""Metrics of continual learning, each a function of the accuracy matrix R alone.

R has shape (T + 1, T): R[i, j] is the accuracy (a fraction) on task j after training on i tasks;
row 0 is the untrained network, and tasks are columns 0 .. T - 1 (so the papers' R_{i,i} of task i
is R[i, i - 1]). A cell that was not measured is NaN, and what depends on it is NaN.
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


def _mean(values: Matrix) -> float:
    return float(values.mean()) if len(values) else float("nan")


METRICS = {
    "ACC": acc,
    "BWT": bwt,
    "FWT": fwt,
    "forgetting": forgetting,
    "learning_accuracy": learning_accuracy,
    "average_incremental_accuracy": average_incremental_accuracy,
}


def summarise(R: ArrayLike) -> dict[str, float]:
    """All metrics that need nothing but R, by the names of summary.csv's columns."""
    return {name: metric(R) for name, metric in METRICS.items()}
