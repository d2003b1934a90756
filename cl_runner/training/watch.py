"""The detector of borders at work: it sees the loss of each step and says when a task has ended."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cl_runner.config.schema import Detector
from cl_runner.core import Stream, Task
from cl_runner.functional import detectors

EVERY = 10  # steps between two looks at the losses: on a GPU the host waits for each look
CLOCK = 32  # losses between two searches for a cut in adwin's window
SMALLEST = 1e-12  # of a loss, whose logarithm is looked at


class Watch:
    """The losses that a detector has seen in a run, and the borders that it has called.

    It sees the logarithm of the training loss, whose changes are ratios: in whatever unit, of
    whatever size. The counts are of the run's steps.
    """

    def __init__(self, config: Detector, stream: Stream) -> None:
        if config.name == "adwin":
            self.start, self.whole = detectors.adwin_start(), detectors.adwin_whole
            self.observe = partial(
                detectors.adwin, confidence=config.confidence, rise=config.rise, clock=CLOCK
            )
        else:
            keys: Any = {name: getattr(config, name) for name in ("delta", "threshold", "window")}
            self.start = detectors.page_hinkley_start()
            self.whole = detectors.page_hinkley_whole
            self.observe = partial(detectors.page_hinkley, **keys)
        self.state = self.start
        self.step = 0
        self.alarms: list[int] = []  # the steps after which it called
        self.ends: list[int] = []  # the steps after which the stream's own segments ended
        self.losses: list[Tensor] = []  # not yet looked at, 0-d each
        # Classes, tasks and rows [n] in the epoch's order: those from `noted` to `came` have come
        # and are not yet in `seen`. To keep batches would cost fresh memory in each step.
        self.order: tuple[Tensor, Tensor, Tensor] | None = None
        self.noted = self.came = 0
        # [T, N] which rows came, as of which task, since the last border that was acted upon
        shape = len(stream), len(stream.y)
        self.seen = torch.zeros(shape, dtype=torch.bool, device=stream.x.device)

    def take(self, order: tuple[Tensor, Tensor, Tensor], at: int, size: int, loss: Tensor) -> None:
        """A step was taken on `size` samples, from place `at` on in the order of an epoch."""
        if order is not self.order:
            self.mark()
            self.order, self.noted = order, at
        self.came = at + size
        self.step += 1
        self.losses.append(loss)

    @property
    def due(self) -> bool:
        """Whether it is time to look at the losses."""
        return self.step % EVERY == 0 and bool(self.losses)

    def alarm(self) -> bool:
        """Look at the losses; whether a border is called, after which the detector begins anew."""
        if self.seen.is_cpu:  # to read each costs less there than to stack them
            losses = [loss.item() for loss in self.losses]
        else:
            losses = torch.stack(self.losses).tolist()  # one wait
        self.losses = []
        numbers = [math.log(max(loss, SMALLEST)) for loss in losses if math.isfinite(loss)]
        self.state, called = self.observe(self.state, *numbers)
        if called:
            self.state = self.start
            self.alarms.append(self.step)
        return called

    def mark(self) -> None:
        """Note what came."""
        if self.order is not None:
            _, task, index = (v[self.noted : self.came] for v in self.order)
            self.seen[task, index] = True
            self.noted = self.came

    def task(self, t: int, stream: Stream) -> Task:
        """The samples since the last border as task t; each keeps its own task."""
        self.mark()
        of, rows = self.seen.nonzero(as_tuple=True)
        classes = stream.labels(rows, of).unique().tolist()
        return Task(t, tuple(classes), (), train=rows, validation=rows[:0], test=rows[:0], of=of)

    def forget(self) -> None:
        """A border was acted upon."""
        self.seen.zero_()

    # Checkpoints.

    def tensors(self) -> dict[str, Tensor]:
        """All that changes during a run."""
        self.mark()
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0)
        return {
            "state": torch.tensor(self.state, dtype=torch.float64),
            "step": torch.tensor(self.step),
            "alarms": torch.tensor(self.alarms, dtype=torch.int64),
            "ends": torch.tensor(self.ends, dtype=torch.int64),
            "losses": losses,
            "seen": self.seen.clone(),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        device = self.seen.device
        self.state = tensors["state"].tolist()
        self.step = int(tensors["step"])
        self.alarms, self.ends = tensors["alarms"].tolist(), tensors["ends"].tolist()
        self.losses = list(tensors["losses"].to(device).unbind())
        self.order = None
        self.seen = tensors["seen"].to(device)
