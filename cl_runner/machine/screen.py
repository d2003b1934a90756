"""What moves at the bottom of a terminal, below what is printed: lines that are drawn anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

from cl_runner.machine.console import Unfailing

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import TextIO

    Lines = Callable[[int], list[str]]  # by the terminal's width, which none may exceed


OWNER = "CL_RUNNER_SCREEN"  # in the environment: the process that has the terminal
REFRESH = 0.2  # seconds from one drawing to the next
WIDEST, NARROWEST = 30, 8  # characters of a bar; with less room there is none
_blocks: list[Lines] = []  # what is shown, the outermost first: a process has one terminal


@contextmanager
def shown(lines: Lines, *, told: bool) -> Iterator[bool]:
    """Keep lines at the bottom of the terminal of standard error, above those that are there.

    Nothing is shown, and False returned, if it is no terminal, another process's, or `told` is
    false.
    """
    mine = os.environ.get(OWNER, str(os.getpid())) == str(os.getpid())
    if not (told and mine) or sys.stderr is None or not sys.stderr.isatty():
        yield False
        return
    _blocks.append(lines)
    try:
        with owned(by=str(os.getpid())), live(sys.stderr) if len(_blocks) == 1 else nullcontext():
            yield True
    finally:
        _blocks.remove(lines)


@contextmanager
def owned(by: str) -> Iterator[None]:
    """Meanwhile only one process shows anything, of this one and of those that it begins."""
    before = os.environ.get(OWNER)
    os.environ[OWNER] = by
    try:
        yield
    finally:
        if before is None:
            del os.environ[OWNER]
        else:
            os.environ[OWNER] = before


def live(terminal: TextIO) -> AbstractContextManager[object]:
    """What draws all lines again and again; what is printed meanwhile stands above them."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=cast("TextIO", Unfailing(terminal)))

    def drawn() -> Text:
        width = console.width - 1  # some terminals go to the next line after the last character
        lines = [line for block in reversed(_blocks) for line in block(width)]
        text = "\n".join(lines)
        if not console.encoding.lower().startswith("utf"):
            text = text.replace("━", "#").replace("─", "-").encode("ascii", "replace").decode()
        return Text(text, no_wrap=True, overflow="crop")

    return Live(
        get_renderable=drawn,
        console=console,
        transient=True,
        refresh_per_second=1 / REFRESH,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )


def left_of(seconds: float, done: float, all_: float = 1.0) -> float | None:
    """The seconds that are left when so much of all has taken so many; None: nobody knows yet."""
    return seconds / done * (all_ - done) if done > 0 else None


def clock(seconds: float | None) -> str:
    """A time in hours, minutes and seconds."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitted(left: str, share: float, right: str, width: int) -> str:
    """A line of at most so many characters: a bar between two texts, where there is room for it."""
    room = min(WIDEST, width - len(left) - len(right) - 2)
    if room < NARROWEST:
        return f"{left}  {right}"[:width]
    full = round(min(1.0, share) * room)
    return f"{left} {'━' * full}{'─' * (room - full)} {right}"
