"""SIGINT and SIGTERM during a run: the step is finished, the state saved, then the run stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; the argument is its number."""

    @property
    def exit_code(self) -> int:
        """What shells make of a signal."""
        return 128 + int(self.args[0])


class Stop:
    """Whether a signal asks a run to stop."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal's number, once there was one
        self._stepping = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Between the steps of a task there is a moment to save; anywhere else, stop at once."""
        if not self._stepping or (self.asked is not None and number == signal.SIGINT):
            raise Interrupted(number)
        self.asked = self.asked or number

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.asked is not None:
            raise Interrupted(self.asked)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Meanwhile a first signal only asks: who takes the steps calls `check` after each."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False
        self.check()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Meanwhile the two signals go to a Stop; in threads, and if ignored before, nothing is done.

    Only the main thread of a process may have handlers. The old ones return afterwards.
    """
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                before[number] = signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
