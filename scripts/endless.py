"""Do a task's seconds and bytes grow with the number of tasks before it?

    python scripts/endless.py                     # 200 permuted tasks of digits
    python scripts/endless.py --runs 9            # medians over as many, of an unsteady machine
    python scripts/endless.py --tasks 800
    python scripts/endless.py benchmark=permuted_mnist data.root=DIR   # further overrides

One run with `eval.tasks=last:5` and `eval.online=true`. It prints a line for each block of tasks:
medians of the seconds by the clock and of the processor's seconds per task, all that is done for a
task included (training, evaluation, files, checkpoint), the process's memory at the block's end and
what the run's folder grew by per task; each also as a ratio to the first block, tasks 11 to 20. The
processor's seconds are the ones to read on a machine that does something else, too. Linux only:
memory is read from /proc.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median, median_low
from tempfile import TemporaryDirectory
from typing import NamedTuple

from hydra import compose, initialize_config_module

from cl_runner.config.parse import validate
from cl_runner.config.versions import BASE
from cl_runner.running import loop

USUAL = (
    *("strategy=naive", "benchmark=permuted_digits", "benchmark.train_samples=1000"),
    *("training.epochs=1", "training.batch_size=10", "model.hidden_sizes=[100,100]"),
    *("eval.tasks=last:5", "eval.online=true", "threads=1", "verbose=false"),
)
FIRST = 10  # tasks before the first block, in which memory is taken for the first time


class Mark(NamedTuple):
    """Where a run stands after a task."""

    clock: float  # seconds
    cpu: float  # seconds of the processor
    memory: int  # bytes that the process holds
    folder: int  # bytes of the run's files


class Block(NamedTuple):
    """Tasks `first` to `last` (from 1): medians per task, and memory at the end."""

    first: int
    last: int
    clock: float
    cpu: float
    memory: float
    folder: float  # bytes by which the folder grew per task


def blocks(marks: Sequence[Mark]) -> list[Block]:
    """Of marks after tasks 1, 2, ...: tasks 11 to 20, then up to eight blocks of the others."""
    rest = len(marks) - 2 * FIRST
    count = max(1, min(8, rest // FIRST))
    ends = [2 * FIRST + rest * i // count for i in range(count + 1)]
    found = []
    for first, last in zip([FIRST, *ends], ends, strict=False):
        part = marks[first - 1 : last]  # one before, to take differences
        steps = list(pairwise(part))
        found.append(
            Block(
                first + 1,
                last,
                median(b.clock - a.clock for a, b in steps),
                median(b.cpu - a.cpu for a, b in steps),
                part[-1].memory,
                (part[-1].folder - part[0].folder) / len(steps),
            )
        )
    return found


def measured(out: Path, overrides: Sequence[str]) -> list[Mark]:
    """A mark after each task of a run that leaves its files in `out`."""
    with initialize_config_module("cl_runner.conf", **BASE):
        config = validate(compose("config", overrides=[*USUAL, *overrides]))
    marks: list[Mark] = []
    save = loop.save

    def marked(*args: object) -> None:
        save(*args)  # type: ignore[arg-type]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        folder = sum(path.stat().st_size for path in out.iterdir())
        marks.append(Mark(time.perf_counter(), time.process_time(), 4096 * pages, folder))

    loop.save = marked
    try:
        loop.run(config, out, overrides)
    finally:
        loop.save = save
    return marks


def typical(runs: Sequence[Sequence[Block]]) -> list[Block]:
    """Medians over runs, block by block."""
    return [Block(*map(median_low, zip(*same, strict=True))) for same in zip(*runs, strict=True)]


def table(found: Sequence[Block]) -> str:
    """The blocks as text, with ratios to the first."""
    base = found[0]
    lines = ["tasks       ms/task      cpu ms/task   memory MB      folder kB/task"]
    for b in found:
        cells = [
            f"{b.first}-{b.last}".ljust(9),
            f"{1e3 * b.clock:8.1f} ({b.clock / base.clock:.2f})",
            f"{1e3 * b.cpu:8.1f} ({b.cpu / base.cpu:.2f})",
            f"{b.memory / 1e6:8.1f} ({b.memory / base.memory:.2f})",
            f"{b.folder / 1e3:8.2f}",
        ]
        lines.append(" ".join(cells))
    return "\n".join(lines)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=200, help="at least 30")
    parser.add_argument("--runs", type=int, default=1, help="medians over so many")
    parser.add_argument("overrides", nargs="*", help="of cl-run")
    options = parser.parse_args()
    if options.tasks < 3 * FIRST:
        parser.error(f"--tasks must be at least {3 * FIRST}, got {options.tasks}")
    if options.runs < 1:
        parser.error(f"--runs must be at least 1, got {options.runs}")
    own = [f"benchmark.num_tasks={options.tasks}", *options.overrides]
    with TemporaryDirectory() as folder:
        runs = [measured(Path(folder) / f"run{i}", own) for i in range(options.runs)]
    print(table(typical([blocks(marks) for marks in runs])))


if __name__ == "__main__":
    main()
