"""What this program does on a GPU: right or wrong, how fast, in one command of a few minutes.

    python scripts/check_gpu.py --out DIR --minutes 8
    python scripts/check_gpu.py --out DIR --minutes 8 --part tests
    python scripts/check_gpu.py --out DIR --device cpu             a rehearsal, shrunk

Needs the checkout and what cl_runner imports, no installation. Parts: `exact` (the CPU's numbers,
the same bits twice, after SIGKILL, and in a stack), `speed` (steps by engine and stacks of runs,
beside what the card could do), `tests` (tests/test_cuda.py), `cells` (published cells by the
command itself, in DIR/cells: scripts/reproduce.py --from DIR/cells takes them up; the same DIR once
more goes on with them). Whatever has no time left is left out, and says so. After each row gpu.json
and gpu.csv are written. Ends with 1 if a row failed; a bar that is not met is a row, no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_report import Context, Piece, Report, Settings

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"exact": "gpu_exact", "speed": "gpu_speed", "tests": "gpu_tests", "cells": "gpu_cells"}
PACKAGES = {"cl_runner": "cl_runner", "cl_runner.conf": "conf"}
TURNS = (*((part, 0) for part in PARTS), ("speed", 1), ("speed", 2), ("cells", 1))
LATE = "the time was up"
GRACE = 10.0  # seconds that a process has to end after it was told to
Order = Mapping[str, Any]  # what a process is asked for: part, turn, pieces done, seconds, settings
Way = Callable[[Order, Callable[[Order], None]], str]  # how an order is carried out; why it failed


def importable(out: Path) -> None:
    """Let this process and its children import the package with its conf/, also uninstalled.

    conf/ enters the package from outside its folder, so a folder of links has both.
    """
    if all(found(name) == ROOT / path for name, path in PACKAGES.items()):
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "cl_runner"]:
        del sys.modules[name]
    site = out / "site"
    package = site / "cl_runner"
    package.mkdir(parents=True, exist_ok=True)
    links = {package / path.name: path for path in (ROOT / "cl_runner").iterdir()}
    links |= {package / "conf": ROOT / "conf", site / "hydra_plugins": ROOT / "hydra_plugins"}
    for link, target in links.items():
        if not link.is_symlink():
            link.symlink_to(target)
    sys.path.insert(0, str(site))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), before)))


def found(package: str) -> Path | None:
    """The folder that a package would be imported from."""
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]).resolve() if places else None


def about(device: str) -> dict[str, str]:
    """Card, driver, versions, date and command."""
    import torch

    card, driver = platform.processor() or platform.machine(), ""
    if device == "cuda":
        card = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            said = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
            driver = said.stdout.strip().partition("\n")[0]
        except (OSError, subprocess.SubprocessError):
            driver = "unknown"
    return {
        "card": card,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(sys.argv),
    }


def commit() -> str:
    """Of the checkout; empty where there is none."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


# In the process that does the work.


def pieces_of(part: str, turn: int, settings: Settings) -> list[Piece]:
    """The pieces of a part that have this turn, in order of their value."""
    found: list[Piece] = import_module(PARTS[part]).pieces(settings)
    return [piece for piece in found if piece.turn == turn]


def work(order: Order, send: Callable[[Order], None]) -> None:
    """Carry out an order: tell which pieces there are, what they find, and that this is all."""
    from gpu_report import Context, Settings, run_pieces

    paths = {name: Path(order["settings"][name]) for name in ("out", "data")}
    settings = Settings(**{**order["settings"], **paths})
    pieces = pieces_of(order["part"], order["turn"], settings)
    left = [piece for piece in pieces if piece.name not in order["done"]]
    send({"pieces": [piece.name for piece in left]})
    context: Context = Context(settings, order["part"], time.monotonic() + order["seconds"], send)
    send({"end": run_pieces(left, context)})


def worker(text: str, number: int) -> int:
    """`work` in a process of its own: what it tells goes to a pipe, a line each."""
    os.set_inheritable(number, False)
    with os.fdopen(number, "w", encoding="utf-8") as pipe:

        def send(line: Order) -> None:
            pipe.write(json.dumps(line) + "\n")
            pipe.flush()

        work(json.loads(text), send)
    return 0


# In the process that was started.


def in_child(order: Order, take: Callable[[Order], None]) -> str:
    """Carry out an order in a process of its own. Returns why that ended before its time, or "".

    Nothing that the work does to its process or to the GPU ends this one, nor does it if it hangs.
    What it prints is in the folder `out`.
    """
    read, write = os.pipe()
    log = Path(order["settings"]["out"]) / f"{order['part']}.log"
    command = [sys.executable, __file__, "--worker", json.dumps(order), "--pipe", str(write)]
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            pass_fds=[write],
            start_new_session=True,
        )
    os.close(write)
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        with os.fdopen(read, encoding="utf-8") as pipe:
            for line in pipe:
                lines.put(line)
        lines.put(json.dumps({"closed": True}))

    threading.Thread(target=listen, daemon=True).start()
    end = hangs = time.monotonic() + order["seconds"]
    told: Order = {}
    while not {"end", "closed"} & set(told):
        try:
            told = json.loads(lines.get(timeout=max(0.0, min(end, hangs) - time.monotonic())))
        except queue.Empty:
            stop(child, 0)
            return LATE if time.monotonic() >= end else "it hung, and was stopped"
        if "begin" in told:
            hangs = time.monotonic() + told["longest"]
        take(told)
    stop(child, GRACE)
    return "" if "end" in told else f"its process ended with {child.returncode}: {last_line(log)}"


def stop(child: subprocess.Popen[bytes], seconds: float) -> None:
    """End a process and all that it has started, gently at first, if it is there after so long."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if number is not None:
                os.killpg(child.pid, number)
            child.wait(GRACE if number else seconds)
            return


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:300]


@dataclass
class Told:
    """What the processes that carry out an order have told so far; it takes a line of theirs."""

    part: str
    report: Report
    asked: list[str] = field(default_factory=list)  # pieces that the last process has before it
    done: list[str] = field(default_factory=list)  # pieces that were begun
    end: int | None = None  # what run_pieces returned; 0: all are done

    def __call__(self, line: Order) -> None:
        """Take a line."""
        if "row" in line:
            self.report.add(line["row"])
            print(f"{self.part}: {line['row']['name']}", file=sys.stderr, flush=True)
        self.asked = line.get("pieces", self.asked)
        self.done += [line["begin"]] if "begin" in line else []
        self.end = line.get("end", self.end)

    def lost(self, why: str, begun: Sequence[str]) -> None:
        """Rows of what did not come to its end. begun: the pieces that the process has begun."""
        names = list(begun[-1:])
        if why == LATE:
            names += [name for name in self.asked if name not in self.done]
        state = "left out" if why == LATE else "failed"
        for name in names if begun or self.asked else [f"all of {self.part}"]:
            row = {"part": self.part, "name": name, "value": None, "state": state, "message": why}
            self.report.add(row)


def perform(
    part: str, turn: int, settings: Settings, report: Report, deadline: float, way: Way
) -> None:
    """All pieces of a part with a turn, in as many processes as they break."""
    told = Told(part, report)
    shared = {**vars(settings), "out": str(settings.out), "data": str(settings.data)}
    while told.end != 0:
        before, left = len(told.done), deadline - time.monotonic()
        done = told.done[:]
        order = {"part": part, "turn": turn, "done": done, "seconds": left, "settings": shared}
        why = way(order, told) if left > 0 else LATE
        if why:
            told.lost(why, told.done[before:])
        if why == LATE or len(told.done) == before:
            return


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the program where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the folder for results, made if it is not there")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="after which it ends (default 8)"
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may come again")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("CL_RUNNER_DATA", "~/.cache/cl_runner"),
        help="the folder with MNIST and CIFAR; without it speed takes random images",
    )
    parser.add_argument(
        "--tiny",
        action=argparse.BooleanOptionalAction,
        help="everything shrunk, to try the program (default with --device cpu)",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if found.worker is None and found.out is None:
        parser.error("the following arguments are required: --out")
    if not 0 < found.minutes <= 24 * 60:
        parser.error(f"--minutes must lie in (0, 1440], got {found.minutes:g}")
    if found.tiny is None:
        found.tiny = found.device == "cpu"
    if found.out is not None:
        found.out = found.out.expanduser().resolve()
        if found.out.exists() and not found.out.is_dir():
            parser.error(f"--out {found.out} is a file")
    found.data = Path(found.data).expanduser().resolve()
    return found


def main(arguments: Sequence[str] | None = None, way: Way = in_child) -> int:
    """Do what the command line asks for. way: how orders are carried out."""
    begun = time.monotonic()
    asked = parsed(arguments)
    if asked.worker is not None:
        return worker(asked.worker, asked.pipe)
    asked.out.mkdir(parents=True, exist_ok=True)
    importable(asked.out)
    import torch
    from gpu_report import Report, Settings

    if asked.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no usable CUDA GPU; use --device cpu", file=sys.stderr)
        return 2
    settings = Settings(asked.out, asked.data, asked.device, asked.tiny)
    report = Report(asked.out, about(asked.device))
    deadline = begun + 60 * asked.minutes
    for part, turn in TURNS:
        if asked.part is None or part in asked.part:
            perform(part, turn, settings, report, deadline, way)
    report.write()
    shutil.rmtree(asked.out / "synthetic", ignore_errors=True)  # images that gpu_speed has made
    print(report.table())
    return 1 if report.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
