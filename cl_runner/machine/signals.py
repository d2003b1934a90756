"""What asks a run to stop: within a task a step is finished and the state saved, else all ends.

SIGINT and SIGTERM, SIGHUP where there is one, and Windows's SIGBREAK.

Batch systems send SIGTERM twice and more; a second one does not disturb what the first has begun.
A second Ctrl-C does.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# What a system has not it does not send: Windows no SIGHUP, the others no SIGBREAK, which is
# Ctrl-Break or the end of the console.
OF_TERMINALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
]
NUMBERS = (*OF_TERMINALS, signal.SIGTERM)
PREEMPTION = getattr(signal, "SIGUSR2", None)  # submitit's, which requeues the job
PATIENCE = 2.0  # seconds in which a second SIGTERM is the first one's echo


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; the argument is its number."""

    @property
    def exit_code(self) -> int:
        """What shells make of a signal."""
        return 128 + int(self.args[0])


class Stop:
    """Whether a signal asks a command, or a run within it, to stop."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.asked: int | None = None  # the signal's number, once there was one
        self.asked_at = 0.0
        self._stepping = False
        self._before = before  # what is to be done first when the command stops

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Between the steps of a task there is a moment to save; anywhere else, stop at once."""
        first = self.asked is None
        if first:
            self.asked, self.asked_at = number, time.monotonic()
        again = number == signal.SIGINT and not first  # a second Ctrl-C always stops
        echo = not first and time.monotonic() < self.asked_at + PATIENCE
        if not again and (self._stepping or echo):
            return
        if first:
            self._before()
        raise Interrupted(number)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.asked is not None:
            raise Interrupted(self.asked)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside the block a first signal is only noted; `check`, called after a step, raises."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False
        self.check()


@contextmanager
def stoppable(before: Callable[[], None] = lambda: None) -> Iterator[Stop]:
    """Route NUMBERS to a Stop inside the block.

    Does nothing outside the main thread, or for a signal that was ignored before.

    Only the main thread of a process may have handlers. The old ones return afterwards. Where there
    is one for PREEMPTION, it gets its signal once the run is saved.
    """
    stop, old = Stop(before), {}
    if threading.current_thread() is threading.main_thread():
        wanted = [n for n in NUMBERS if signal.getsignal(n) is not signal.SIG_IGN]  # as under nohup
        if PREEMPTION is not None and callable(signal.getsignal(PREEMPTION)):
            wanted.append(PREEMPTION)
        old = {number: signal.signal(number, stop.handle) for number in wanted}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler or signal.SIG_DFL)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Stop) and stop.asked is not None:  # knows that the end has begun
                outer.asked, outer.asked_at = stop.asked, stop.asked_at
        if stop.asked is not None and stop.asked == PREEMPTION:
            signal.raise_signal(PREEMPTION)
