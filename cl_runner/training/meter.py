"""What a run costs (steps, samples, FLOPs, seconds), and its budget of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cl_runner.config.schema import Budget
from cl_runner.training.flops import FlopCounter, remembered

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")
COUNTS = ("steps", "samples", "flops", "evaluation_flops")
SECONDS = ("train_seconds", "evaluation_seconds")
ENERGY = ("energy_joules", "energy_source")
SPENT = {"samples": "samples", "flops": "flops", "seconds": "train_seconds"}  # of each budget


class Display(Protocol):
    """What the training loop calls to report its progress."""

    def begin(self, task: int, epochs: int, steps: int) -> None: ...
    def step(self, epoch: int, samples: int, loss: Tensor) -> None: ...
    def evaluated(self, done: int, accuracy: float) -> None: ...


class Energy(Protocol):
    """What counts the energy that is spent (`machine.energy`)."""

    source: str

    def spent(self, seconds: float) -> float | None:
        """Joules since the last call, of which so many seconds have passed; None: unknown."""


class Meter:
    """Counts what a run costs, and says when a task has used up its share of the budget.

    `samples` are those that steps took from what they were trained on; replayed ones do not count.
    `flops` are of training: the steps, and what a strategy does before and after a task. Those of
    a step are counted once for each batch size in each phase of training, at its first step, and
    those of a pass over a task once for each size of chunk: the others do the same to other values.
    (GEM's quadratic program alone does not, and counts as in the first step.)
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.steps = self.samples = self.flops = self.evaluation_flops = 0
        self.train_seconds = self.evaluation_seconds = 0.0
        self.energy: Energy | None = None
        self.energy_joules: float | None = None  # of training; None: not known of all of it
        self.energy_source: str | None = None  # what has counted it
        self.displays: list[Display] = []
        limits = {name: getattr(budget or Budget(), name) for name in SPENT}
        self.budget = {name: limit for name, limit in limits.items() if limit is not None}
        self.task = 0  # index of the one that is trained
        self.limits: dict[str, float] = {}  # what may be spent by the end of this task
        self.began: dict[str, float] = {}  # what was spent when this phase of training began
        self.stopped: list[int] = []  # indices of the tasks that the budget stopped
        self.known: dict[int, int] = {}  # FLOPs of a step of this phase, by batch size
        self.predictions: dict[tuple[int, int], int] = {}  # FLOPs of one, by task and batch size
        self._counter: FlopCounter | None = None
        self.share = 1.0  # of the time that passes: runs that are trained together divide it
        self._lap = time.perf_counter()

    # Steps.

    def begin_task(self, task: int, tasks: int) -> None:
        """Task `task` begins: it may spend a `tasks`-th of what is left of the budget."""
        self.task = task
        spent = self.spent()
        self.limits = {k: spent[k] + (v - spent[k]) / tasks for k, v in self.budget.items()}

    def begin(self, task: int, epochs: int, steps: int, *, resumed: bool = False) -> None:
        """A phase of so many epochs and steps begins, or goes on."""
        if not resumed:
            self.known, self.began = {}, self.spent()
        for display in self.displays:
            display.begin(task, epochs, steps)

    def counted(self, size: int, step: Callable[..., T], *args: Any) -> T:
        """step(*args), on a batch of `size`, with its FLOPs counted."""
        result, flops = remembered(self.known, size, step, *args)
        self.flops += flops
        return result

    def step(self, epoch: int, samples: int, loss: Tensor) -> None:
        """Count a step."""
        self.steps += 1
        self.samples += samples
        for display in self.displays:
            display.step(epoch, samples, loss)

    def add(self, other: Meter) -> None:
        """Add the training counts of another meter, without its seconds and energy."""
        self.steps += other.steps
        self.samples += other.samples
        self.flops += other.flops

    # What is done between the steps.

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the FLOPs of everything inside the block but steps, which count their own."""
        self._open()
        try:
            yield
        finally:
            self._close()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Pause the counting of FLOPs inside the block."""
        counting = self._counter is not None
        if counting:
            self._close()
        try:
            yield
        finally:
            if counting:
                self._open()

    @contextmanager
    def passing(self) -> Iterator[Callable[..., Any]]:
        """For a pass in chunks: call(size, function, *args) is function(*args), and counts it."""
        known: dict[int, int] = {}

        def call(size: int, function: Callable[..., T], *args: Any) -> T:
            result, flops = remembered(known, size, function, *args)
            self.flops += flops
            return result

        with self.suspended():
            yield call

    def _open(self) -> None:
        self._counter = FlopCounter()
        self._counter.__enter__()  # type: ignore[no-untyped-call]

    def _close(self) -> None:
        assert self._counter is not None
        self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.flops += self._counter.flops
        self._counter = None

    def predicted(self, task: int, size: int, predict: Callable[..., T], *args: Any) -> T:
        """predict(*args), a batch of `size` of a task, with its FLOPs counted as evaluation's."""
        result, flops = remembered(self.predictions, (task, size), predict, *args)
        self.evaluation_flops += flops
        return result

    def lap(self, name: str | None = None) -> None:
        """Count the seconds since the last lap as `train_seconds`, `evaluation_seconds` or not.

        Those of training in shares, of evaluation, which is each run's own, whole.
        """
        before, self._lap = self._lap, time.perf_counter()
        seconds = self._lap - before
        joules = None if self.energy is None else self.energy.spent(seconds)
        if joules is None:
            self.count_energy(None)
        if name is not None:
            share = self.share if name == "train_seconds" else 1.0
            setattr(self, name, getattr(self, name) + share * seconds)
        if name == "train_seconds" and joules is not None and self.energy_joules is not None:
            self.energy_joules += self.share * joules

    def count_energy(self, energy: Energy | None) -> None:
        """Count energy from 0; None: it is not known, nor will be."""
        self.energy = energy
        self.energy_joules = None if energy is None else 0.0
        self.energy_source = None if energy is None else energy.source

    # The budget.

    def spent(self) -> dict[str, float]:
        """What was spent of each budget; the seconds up to now, while a task is trained."""
        spent = {name: getattr(self, SPENT[name]) for name in self.budget}
        if "seconds" in spent:
            spent["seconds"] += self.share * (time.perf_counter() - self._lap)
        return spent

    def exhausted(self, size: int) -> bool:
        """Whether one more step, on a batch of `size`, would exceed the task's share.

        The FLOPs of a size not seen before are taken to be those of the largest step so far; a
        phase's first step is taken if anything is left. A step may end after the last second.
        """
        if not self.limits:
            return False
        flops = self.known.get(size, max(self.known.values(), default=1))
        step = {"samples": size, "flops": flops, "seconds": 0}
        spent = self.spent()
        over = any(spent[name] + step[name] > limit for name, limit in self.limits.items())
        if over and self.task not in self.stopped:
            self.stopped.append(self.task)
        return over

    def progress(self) -> float:
        """How much of this phase's share of the budget is spent, in [0, 1]."""
        spent, began = self.spent(), self.began
        left = {name: limit - began[name] for name, limit in self.limits.items()}
        shares = [(spent[k] - began[k]) / left[k] if left[k] > 0 else 1.0 for k in left]
        return min(1.0, max(shares, default=0.0))

    # Checkpoints.

    def state(self) -> dict[str, Any]:
        """All that changes during a run, as JSON."""
        names = (*COUNTS, *SECONDS, *ENERGY, "task", "limits", "began", "stopped")
        known = {str(size): flops for size, flops in self.known.items()}
        return {name: getattr(self, name) for name in names} | {"known": known}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Energy that was counted otherwise, or not at all, is not known."""
        if state["energy_source"] != self.energy_source:
            self.count_energy(None)
            state = state | dict.fromkeys(ENERGY)
        for name, value in state.items():
            setattr(self, name, value)
        self.known = {int(size): flops for size, flops in state["known"].items()}
