"""What moves on a terminal, and that nothing of it is left there."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import termios
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from cl_runner.machine import screen
from cl_runner.results import status
from cl_runner.running import loop, told
from cl_runner.running.progress import Bar, display
from cl_runner.sweeping.count import Jobs

TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=3", "strategy=er", "strategy.buffer_size=20"),
    *("model.hidden_sizes=[8]", "training.batch_size=8", "device=cpu", "threads=1"),
)
COLUMNS = 80


@pytest.fixture
def clock(monkeypatch) -> Callable[[float], None]:
    """clock(3.0): three seconds pass."""
    now = [100.0]

    def passed(seconds: float) -> None:
        now[0] += seconds

    for module in ("cl_runner.running.progress", "cl_runner.sweeping.count"):
        monkeypatch.setattr(f"{module}.time.perf_counter", lambda: now[0])
    return passed


# The lines.


@pytest.mark.parametrize("width", [20, 40, 60, 79, 120, 200])
@pytest.mark.parametrize("name", ["", "birds", "a very long name of a task that nobody can read"])
def test_no_line_is_wider_than_the_terminal(width, name, clock):
    bar = Bar([name] * 100)
    bar.begin(98, 100, 12_000)
    for _ in range(5):
        clock(10_000.0)
        bar.step(98, 123_456, torch.tensor(1234.5678))
    bar.evaluated(99, 0.5)
    assert max(map(len, bar.lines(width))) <= width
    bar.begin(99, 100, 12_000)
    assert max(map(len, bar.lines(width))) <= width


def test_at_80_columns_all_is_there(clock):
    bar = Bar(["", "horses", ""])
    bar.evaluated(1, 0.875)
    bar.begin(1, 20, 100)
    for _ in range(50):
        clock(0.5)
        bar.step(9, 128, torch.tensor(0.25))
    task, run = bar.lines(79)
    assert task.startswith("task 2/3 horses epoch 10/20 ━━━━")
    assert task.endswith(" loss 0.2500  256 samples/s  0:25 left")
    assert run.startswith("run  1/3 done ━━━") and run.endswith(" accuracy 0.875  0:25 left")


def test_the_time_left_is_that_of_the_tasks_at_the_pace_of_those_done(clock):
    bar = Bar([""] * 5, done=1)  # it goes on: the first task took no time of this part
    assert bar.lines(79)[1].endswith(" -:-- left")
    clock(90.0)
    bar.evaluated(2, 0.5)
    assert bar.lines(79)[1].endswith(" 4:30 left")
    bar.begin(2, 1, 2)
    clock(45.0)
    bar.step(0, 1, torch.tensor(0.0))
    bar.begin(2, 1, 50)  # a second phase of the same task
    assert bar.lines(79)[1].endswith(" 3:45 left")


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (0.4, "0:00"), (61, "1:01"), (3_661, "1:01:01")]
)
def test_a_time_in_words(seconds, text):
    assert screen.clock(seconds) == text


def test_jobs_are_counted_by_what_they_leave(tmp_path, clock):
    status.ask_for(tmp_path, {name: [] for name in ("a", "b", "c", "d", "e")})
    status.write(tmp_path / "a", "complete")
    status.fail(tmp_path / "b", ValueError("an earlier attempt's"))
    jobs = Jobs(tmp_path, "jobs")
    assert jobs.lines(79)[0].startswith("jobs 1/5 done ━") and jobs.lines(79)[0].endswith(
        "-:-- left"
    )
    clock(60.0)
    status.fail(tmp_path / "c", ValueError("no memory"))
    (tmp_path / "d").mkdir()
    status.ask_for(tmp_path / "d", {"seed=0": [], "seed=1": []})
    status.write(tmp_path / "d/seed=0", "complete")
    assert re.fullmatch("jobs 2/5 done, 1 failed ━+─+ 3:00 left", jobs.lines(79)[0])
    clock(0.5)
    status.write(tmp_path / "d/seed=1", "complete")
    assert jobs.lines(79)[0].startswith("jobs 2/5 done")  # it has looked a moment ago
    clock(5.0)
    assert jobs.lines(79)[0].startswith("jobs 3/5 done, 1 failed")


def test_a_single_job_is_no_line(tmp_path):
    status.ask_for(tmp_path, {"seed=0": []})
    assert Jobs(tmp_path, "seeds").lines(79) == []


def test_a_process_that_another_one_began_draws_nothing(monkeypatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    with screen.owned(by="nobody"), display(["", ""], told=True) as bar:
        assert bar is None
    assert screen.OWNER not in os.environ


# What is told.


@pytest.mark.parametrize("more", [(), ("eval.online=true",), ("eval.tasks=last:1",)])
def test_a_run_of_another_process_is_told_alike(configure, tmp_path, capsys, more):
    config = configure(*TOY, "training.iterations=3", "verbose=full", *more)
    loop.run(config, tmp_path, job="job 1 of 2")
    said = capsys.readouterr().out
    told.tell_of(config, tmp_path, "job 1 of 2")
    assert capsys.readouterr().out == said[said.index("after \\ task") :]
    assert said.splitlines()[-1].startswith("job 1 of 2 · ")


# A terminal.


class Seen(NamedTuple):
    """What was on a terminal."""

    code: int
    moments: list[list[str]]  # its lines after each piece of output
    lines: list[str]  # those that are left, without empty ones at the end
    cursor: bool  # whether it is shown


class Terminal:
    """So much of a terminal as it takes to see what is left on it."""

    def __init__(self) -> None:
        self.rows: list[str] = [""]
        self.row = self.column = 0
        self.cursor = True

    def take(self, text: str) -> None:
        for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row += 1
            elif part[0] == "\x1b":
                self.control(part[2:-1], part[-1])
            else:
                if self.column == COLUMNS:
                    self.row, self.column = self.row + 1, 0
                self.fill()
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + part + row[self.column + 1 :]
                self.column += 1
            self.fill()

    def fill(self) -> None:
        self.rows += [""] * (self.row + 1 - len(self.rows))

    def control(self, number: str, what: str) -> None:
        if what == "A":
            self.row = max(0, self.row - int(number or 1))
        elif what == "K":
            kept = 0 if number == "2" else self.column
            self.rows[self.row] = self.rows[self.row][:kept]
        elif number == "?25":
            self.cursor = what == "h"
        else:
            assert what == "m", (number, what)  # of colours


@pytest.fixture
def on_a_terminal(cl_run_started, tmp_path) -> Callable[..., Seen]:
    """on_a_terminal("seed=1", typed=("run  1/3", "\\x03")): what cl-run leaves on one.

    typed: what is typed once a text is seen.
    """

    def function(*args: str, typed: tuple[str, str] | None = None) -> Seen:
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        there = f"[os.dup2(os.open({os.ttyname(theirs)!r}, os.O_RDWR), i) for i in range(3)]"
        own = {"TERM": "xterm", "COLUMNS": str(COLUMNS), "LINES": "24"}
        process = cl_run_started(*args, before=f"import os\n{there}", cwd=tmp_path, **own)
        terminal, moments = Terminal(), []
        for text in read(ours, process.poll):
            terminal.take(text)
            moments.append(list(terminal.rows))
            if typed and typed[0] in "\n".join(terminal.rows):
                os.write(ours, typed[1].encode())
                typed = None
        os.close(ours)
        os.close(theirs)
        rows = [row.rstrip() for row in terminal.rows]
        while rows and not rows[-1]:
            rows.pop()
        return Seen(process.wait(), moments, rows, terminal.cursor)

    return function


def read(number: int, ended: Callable[[], int | None]) -> Iterator[str]:
    """What comes out of a terminal until a process has ended, in whole characters and commands."""
    decoder, left = getincrementaldecoder("utf-8")(), ""
    while True:
        over = ended() is not None
        ready, _, _ = select.select([number], [], [], 0.05)
        if ready:
            text = left + decoder.decode(os.read(number, 65536))
            left = re.search(r"(\x1b(\[[\d;?]*)?)?$", text)[0]
            yield text.removesuffix(left)
        elif over:
            return


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"\d+\.\d s", "N s", line) for line in lines]


@pytest.mark.slow
def test_a_run_leaves_its_results_and_no_bar(on_a_terminal, cl_run, tmp_path, data_root):
    args = (*TOY, f"data.root={data_root}", "training.epochs=8")
    seen = on_a_terminal(*args, "hydra.run.dir=a")
    assert seen.code == 0 and seen.cursor
    every = {line for moment in seen.moments for line in moment}
    assert any(
        re.match(r"task 2/3 epoch \d/8 ━.* loss .* samples/s  \d:\d\d left", s) for s in every
    )
    assert any(re.match(r"run  1/3 done ━.* accuracy \d\.\d{3}  \d:\d\d left", s) for s in every)
    plain = cl_run(*args, "hydra.run.dir=b", cwd=tmp_path)
    assert plain.stderr == "" and "\x1b" not in plain.stdout and "━" not in plain.stdout
    same = [line.replace("results in b", "results in a") for line in plain.stdout.splitlines()]
    assert without_times(seen.lines) == without_times(same)


@pytest.mark.slow
def test_ctrl_c_leaves_one_line(on_a_terminal, tmp_path, data_root):
    args = (*TOY, f"data.root={data_root}", "training.epochs=500", "hydra.run.dir=a")
    seen = on_a_terminal(*args, typed=("samples/s", "\x03"))
    assert (seen.code, seen.cursor) == (130, True)
    lines = [line for line in seen.lines if line]
    assert "".join(lines) == f"cl-run: interrupted; to go on: cl-run resume={tmp_path}/a"


@pytest.mark.slow
def test_a_sweep_counts_its_jobs(on_a_terminal, data_root):
    short = ("training.epochs=20", "seed=0,1", "optimizer.lr=0.1,1e30", "hydra.sweep.dir=s")
    seen = on_a_terminal("-m", *TOY, f"data.root={data_root}", *short)
    assert (seen.code, seen.cursor) == (1, True)
    moments = ["\n".join(moment) for moment in seen.moments]
    assert any(re.search(r"(?m)^run  .*\njobs 0/4 done ", moment) for moment in moments)
    assert any("\njobs 2/4 done, 1 failed ━" in moment for moment in moments)
    text = "\n".join(seen.lines)
    assert "━" not in text and "after \\ task" not in text
    told_of = [line for line in seen.lines if re.match(r"job \d of 4 · |cl-run: the loss", line)]
    assert [line.split()[1] for line in told_of] == ["1", "the", "3", "the"]
    assert seen.lines[-1] == "4 runs · results in s/summary.csv"


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [8, 900], ids=["stacked", "processes"])
def test_every_seed_has_its_line(cl_run, tmp_path, data_root, hidden):
    more = (f"model.hidden_sizes=[{hidden},{hidden}]", "training.iterations=2", "seeds=[3,4]")
    args = (*TOY, f"data.root={data_root}", *more, "training.batch_size=32", "precision=float32")
    result = cl_run(*args, "hydra.run.dir=a", "verbose=full", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    names = sorted(line.partition(" · ACC")[0] for line in lines if line.startswith("seed "))
    assert names == ["seed 1 of 2 · seed=3", "seed 2 of 2 · seed=4"]
    assert sum(line.startswith("after \\ task") for line in lines) == 2
    stacked = (Path(tmp_path) / "a/seed=3/summary.csv").read_text().splitlines()
    members = dict(zip(stacked[0].split(","), stacked[1].split(","), strict=False))
    assert hidden == 900 or members.get("stacked_members") is not None
