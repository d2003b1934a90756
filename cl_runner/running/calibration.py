"""Calibration and confusion, gathered while a run is evaluated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cl_runner.functional.calibration import calibration, calibration_sums, confusion


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
