"""The bars of a run: one for the task under way, one for all of its tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cl_runner.machine.screen import NARROWEST, REFRESH, clock, fitted, left_of, shown
from cl_runner.results.text import LONGEST, shortened
from cl_runner.training.meter import Display

if TYPE_CHECKING:
    from torch import Tensor


SHORTEST = 6  # characters of a task's name, of which less says nothing


class Bar:
    """Where a run stands: the task under way in a line, and all of its tasks in another."""

    def __init__(self, names: Sequence[str], done: int = 0) -> None:
        self.names, self.first = names, done  # the tasks' names; how many were done before
        self.task, self.accuracy = done, ""
        self.epoch = self.steps = self.samples = 0
        self.epochs = self.total = 1
        self.loss = self.rate = ""
        self.most = 0.0  # the share of this task that is done: a second phase does not go back
        self.began = self.started = self.shown = time.perf_counter()

    def begin(self, task: int, epochs: int, steps: int) -> None:
        """Start over for a phase of a task, of so many epochs and steps."""
        self.most = self.most if task == self.task else 0.0
        self.task, self.epoch, self.epochs, self.total = task, 0, epochs, max(steps, 1)
        self.steps = self.samples = 0
        self.loss = self.rate = ""
        self.started = time.perf_counter()

    def step(self, epoch: int, samples: int, loss: Tensor) -> None:
        """Count a step; now and then, read the loss."""
        self.steps += 1
        self.samples += samples
        self.epoch = epoch
        self.most = max(self.most, min(1.0, self.steps / self.total))
        now = time.perf_counter()
        if now - self.shown < REFRESH:
            return
        self.shown = now
        self.loss = f"loss {loss.item():.4f}"
        self.rate = f"{self.samples / (now - self.started):,.0f} samples/s"

    def evaluated(self, done: int, accuracy: float) -> None:
        """Take the mean accuracy on the tasks seen, after `done` of them."""
        self.task, self.most = done, 0.0
        self.accuracy = f"accuracy {accuracy:.3f}" if done else ""

    def lines(self, width: int) -> list[str]:
        """Both lines."""
        now, T = time.perf_counter(), len(self.names)
        task = min(self.task, T - 1)
        epoch = f" epoch {self.epoch + 1}/{self.epochs}" if self.epochs > 1 else ""
        share = min(1.0, self.steps / self.total)
        left = clock(left_of(now - self.started, share))
        right = "  ".join(filter(None, [self.loss, self.rate, f"{left} left"]))
        start = f"task {task + 1}/{T}"
        room = width - len(start + epoch + right) - NARROWEST - 3
        name = shortened(self.names[task], min(LONGEST, room)) if room >= SHORTEST else ""
        line = fitted(f"{start}{f' {name}' if name else ''}{epoch}", share, right, width)
        done = self.task + self.most  # tasks, the present one as far as it has come
        left = clock(left_of(now - self.began, done - self.first, T - self.first))
        right = "  ".join(filter(None, [self.accuracy, f"{left} left"]))
        return [line, fitted(f"run  {self.task}/{T} done", done / T, right, width)]


@contextmanager
def display(names: Sequence[str], done: int = 0, *, told: bool) -> Iterator[Display | None]:
    """The bars of a run, `done` of whose tasks were trained before; see `screen.shown`.

    names: of the tasks, "" where they have none.
    """
    bar = Bar(names, done)
    with shown(bar.lines, told=told) as there:
        yield bar if there else None
