"""The columns of the results."""

from __future__ import annotations

METRICS = (
    *("ACC", "BWT", "FWT", "forgetting", "learning_accuracy"),
    *("average_incremental_accuracy", "intransigence"),
    *("min_ACC", "worst_case_ACC", "average_anytime_accuracy"),
)


def reproducible(column: str) -> bool:
    """Whether a column of a run's files follows from the configuration alone: not from the clock.

    Nor from what else the process holds in memory.
    """
    return "seconds" not in column and "peak_memory" not in column
