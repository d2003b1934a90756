"""The progress bar: task, epoch, loss, samples per second and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from cl_runner.machine.console import Unfailing
from cl_runner.results.text import LONGEST, shortened
from cl_runner.training.meter import Display

if TYPE_CHECKING:
    from typing import TextIO

    from rich.progress import Progress
    from torch import Tensor


REFRESH = 0.2  # seconds between updates: each fetches the loss from the device


class Bar:
    """A rich progress bar over one task's optimizer steps."""

    def __init__(self, progress: Progress, names: Sequence[str]) -> None:
        self.progress, self.names = progress, names
        self.row = progress.add_task("", loss="", rate="")
        self.steps = self.samples = 0
        self.epochs = 1
        self.started = self.shown = time.perf_counter()

    def begin(self, task: int, epochs: int, steps: int) -> None:
        """Start over for a task of so many epochs and steps."""
        name = shortened(self.names[task], LONGEST)
        self.name = f"task {task + 1}/{len(self.names)}{f' {name}' if name else ''}"
        self.epochs, self.steps, self.samples = epochs, 0, 0
        self.started = time.perf_counter()
        self.progress.reset(self.row, total=max(steps, 1), description=self._title(0))

    def _title(self, epoch: int) -> str:
        return f"{self.name} epoch {epoch + 1}/{self.epochs}"

    def step(self, epoch: int, samples: int, loss: Tensor) -> None:
        """Count a step; now and then, show it."""
        self.steps += 1
        self.samples += samples
        now = time.perf_counter()
        if now - self.shown < REFRESH:
            return
        self.shown = now
        self.progress.update(
            self.row,
            completed=self.steps,
            description=self._title(epoch),
            loss=f"loss {loss.item():.4f}",
            rate=f"{self.samples / (now - self.started):,.0f} samples/s",
        )


@contextmanager
def display(names: Sequence[str], verbose: bool) -> Iterator[Display | None]:
    """A bar on standard error if that is a terminal and verbose is true, else nothing.

    names: of the tasks, "" where they have none.
    """
    terminal = sys.stderr if verbose else None
    if terminal is None or not terminal.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("task ends in"),
        TimeRemainingColumn(compact=True),
        console=Console(file=cast("TextIO", Unfailing(terminal))),
        transient=True,
    ) as progress:
        yield Bar(progress, names)
