"""What is told of a run as it comes: names and values, by the files that hold the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_runner.functional.metrics import Matrix
from cl_runner.results import matrices
from cl_runner.results.titles import Titles
from cl_runner.training.meter import Meter

EVERY = 50  # steps, of whose losses the mean is told


def accuracies(start: str, row: Matrix, R: Matrix, titles: Titles) -> dict[str, float]:
    """The accuracies of a row [T] by the columns of accuracy_matrix.csv, whose matrix is R."""
    names = [name.replace("/", "_") for name in matrices.columns_of(R, titles)]
    return known({f"{start}/{name}": v for name, v in zip(names, row.tolist(), strict=True)})


def so_far(
    done: int, found: matrices.Matrices, curves: matrices.Curves | None
) -> tuple[matrices.Matrices, matrices.Curves | None]:
    """Matrices and curves as those of a run on the first `done` tasks, which they are as well."""
    rows = {key: R[: done + 1, :done] for key, R in found.items()}
    if curves is None:
        return rows, None
    return rows, {
        key: [row[: 2 + done] for row in curve if row[0] < done] for key, curve in curves.items()
    }


def known(values: Mapping[str, Any]) -> dict[str, float]:
    """Those values that are numbers: what was not measured is left out."""
    numbers = {k: v for k, v in values.items() if type(v) in (int, float)}
    return {k: float(v) for k, v in numbers.items() if not math.isnan(v)}


class Losses:
    """The mean training loss of every so many steps; nobody waits for the device for it.

    A step only leaves its loss here, where it is. The means are read when the run waits anyway.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.window: list[Tensor] = []  # 0-d each, of the steps since the last mean
        self.means: list[tuple[int, Tensor]] = []  # up to which step of the run, and of how much

    def begin(self, task: int, epochs: int, steps: int) -> None:
        """See training.meter.Display."""

    def step(self, epoch: int, samples: int, loss: Tensor) -> None:
        """See training.meter.Display."""
        self.window.append(loss.detach())
        if self.meter.steps % EVERY == 0:
            self.close()

    def evaluated(self, done: int, accuracy: float) -> None:
        """See training.meter.Display."""

    def close(self) -> None:
        """Take the mean of what is there."""
        if self.window:
            self.means.append((self.meter.steps, torch.stack(self.window).mean()))
            self.window.clear()

    def taken(self) -> list[tuple[int, dict[str, float]]]:
        """The means that were not taken before, by step; the device is waited for."""
        found = [(step, {"train/loss": float(mean)}) for step, mean in self.means]
        self.means.clear()
        return found
