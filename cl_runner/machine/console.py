"""What is printed. The results are in files: that nobody can read the console fails no run."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from cl_runner.errors import UserError


def prepare() -> None:
    """Make standard streams of those that are closed, and let standard output take any text.

    A closed stream's number would go to the next file that is opened, and into that what libraries
    write to standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and out.encoding.lower() not in {"utf-8", "utf8"}:
        out.reconfigure(errors="replace")


def show(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Print what was asked for, to standard output or `file`.

    A reader that is gone, such as `head`, has seen enough. Raises UserError for a full disk.
    """
    stream = sys.stdout if file is None else file
    if stream is None:  # in a process without a console
        return
    try:
        try:
            print(text, file=stream, end=end, flush=True)
        except UnicodeEncodeError:
            known = text.encode(stream.encoding, "replace").decode(stream.encoding)
            print(known, file=stream, end=end, flush=True)
    except (OSError, ValueError) as error:
        silence(stream)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise UserError(f"standard output cannot be written: {error.strerror}") from None


def say(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Print beside the work, which goes on whatever becomes of it; a full disk is told."""
    try:
        show(text, file, end)
    except UserError as error:
        if file is None:
            say(f"cl-run: {error}", sys.stderr)


def near(path: Path) -> Path:
    """A path as it is written from the working folder, if it lies below it: shorter so."""
    with suppress(ValueError, OSError):
        return path.absolute().relative_to(Path.cwd())
    return path


def finish() -> None:
    """Write what is still to be printed: what fails at exit would change the exit code."""
    say("", end="")
    say("", sys.stderr, end="")


def gone() -> bool:
    """Whether nobody reads standard output any more.

    Asked by an empty line, since of a text that failed nothing need be left to flush.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def silence(stream: TextIO) -> None:
    """Let a stream that cannot be written lead nowhere."""
    with suppress(OSError, ValueError):  # a stream without a number has nothing left to fail
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class Unfailing:
    """A terminal for a progress bar: what cannot be written, since it was closed, is left out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()
