"""What cannot be printed fails nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.machine import console
from cl_runner.running import progress


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield stream


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A file on a disk without room."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        yield stream


def test_a_reader_that_is_gone_has_seen_enough(unread):
    console.show("a", unread)
    console.show("b" * 100_000, unread)
    unread.flush()  # as at exit: nothing is left that could fail


def test_a_full_disk_is_told_once_and_the_work_goes_on(full, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", full)
    console.say("a")
    console.say("b")
    console.finish()
    message = "cl-run: standard output cannot be written: No space left on device\n"
    assert capsys.readouterr().err == message


def test_what_was_asked_for_and_cannot_be_printed_is_a_mistake(full):
    with pytest.raises(UserError, match="standard output cannot be written: No space left"):
        console.show("a", full)


def test_a_full_standard_error_is_told_nobody(full, monkeypatch):
    monkeypatch.setattr(sys, "stderr", full)
    console.say("a", sys.stderr)
    console.finish()


def test_what_an_encoding_lacks_becomes_a_question_mark():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console.say("12 s · ±0.1 \udcff", stream)
    assert raw.getvalue() == b"12 s ? ?0.1 ?\n"


def test_a_process_without_a_console_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    console.say("a")
    console.say("b", sys.stderr)
    console.finish()
    with progress.display(["", ""], told=True) as bar:
        assert bar is None


CLOSED = """
import os, sys
from cl_runner.machine import console
console.prepare()
print("\\u00b7")
print("told", file=sys.stderr, flush=True)
os.write(2, b"by a library")
with open(os.devnull) as file:
    assert file.fileno() > 2, file.fileno()
child = "import sys; assert None not in (sys.stdin, sys.stdout, sys.stderr)"
os.execv(sys.executable, [sys.executable, "-c", child])
"""


@pytest.mark.unix
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "<&-"])
def test_closed_streams_lead_nowhere_and_their_numbers_to_no_file(closed):
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, CLOSED]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_stream_that_is_not_utf8_takes_any_text():
    code = "from cl_runner.machine import console; console.prepare(); print('\\u00b1')"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"?\n", b"")


class Hungup(io.StringIO):
    """A terminal that was closed."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_progress_bar_survives_its_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Hungup())
    with progress.display(["", ""], told=True) as bar:
        assert bar is not None
        bar.begin(0, 1, 10)
        bar.step(0, 8, torch.tensor(0.5))


@pytest.mark.parametrize("size", [10, 100_000], ids=["pending", "dropped"])
def test_a_reader_that_has_left_is_gone(unread: TextIO, monkeypatch, size: int) -> None:
    """Of a text beyond the buffer nothing is pending after the write that failed."""
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(BrokenPipeError):
        print("x" * size, flush=True)
    assert console.gone()
    console.silence(unread)


@pytest.mark.usefixtures("capsys")
def test_a_reader_that_is_there_is_not_gone() -> None:
    assert not console.gone()
