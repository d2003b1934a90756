"""What `import cl_runner` costs, and how long `cl.load_runs` takes for many runs.

    python scripts/python_api.py --folder /tmp/many [--runs 1000] [--profile]

The runs are copies of one, of five tasks of split_digits, that differ in strategy and seed. Every
figure is the median of so many repetitions, with the smallest and the largest; a process with an
import is held against one that imports nothing, and against one that imports omegaconf alone, which
registering our resolvers needs.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import platform
import pstats
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cl_runner as cl

REPEATS = 5
STRATEGIES = ("er", "ewc", "naive", "si")


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the copies go, or lie")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--profile", action="store_true", help="where the time of loading goes")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, cl_runner {cl.__version__}, {platform.machine()}")
    for code in ("pass", "import omegaconf", "import cl_runner"):
        told(f"python -c '{code}'", lambda code=code: process(code))  # type: ignore[misc]
    make(options.folder, options.runs)
    cl.load_runs(options.folder / "0").summaries  # noqa: B018 - imports pandas
    what: dict[str, Callable[[cl.Runs], object]] = {
        "summaries": lambda runs: runs.summaries,
        "accuracies": lambda runs: runs.accuracies,
        "costs": lambda runs: runs.costs,
        "repr": repr,
    }
    n = options.runs
    told(f"load_runs, {n} runs", lambda: cl.load_runs(options.folder))
    runs = cl.load_runs(options.folder)
    for name, of in what.items():
        told(f"{name} of {n} runs", lambda of=of: of(runs))  # type: ignore[misc]
    if options.profile:
        with cProfile.Profile() as profile:
            for of in what.values():
                of(cl.load_runs(options.folder))
        pstats.Stats(profile).sort_stats("cumulative").print_stats(25)


def told(name: str, work: Callable[[], object]) -> None:
    """Print how long work takes."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
    print(f"{name:32} {middle:7.3f} s ({low:.3f} to {high:.3f}, n = {REPEATS})", flush=True)


def process(code: str) -> None:
    """A process that runs some code."""
    subprocess.run([sys.executable, "-c", code], check=True)


def make(folder: Path, runs: int) -> None:
    """The copies, where they are not there yet."""
    if (folder / str(runs - 1)).exists():
        return
    first = folder / "0"
    cl.run("benchmark=split_digits", "strategy=er", "device=cpu", "verbose=false", out=first)
    with (first / "summary.csv").open(encoding="utf-8", newline="") as file:
        header, row = csv.reader(file)
    for number in range(1, runs):
        out = folder / str(number)
        shutil.copytree(first, out, ignore=shutil.ignore_patterns("*.safetensors"))
        row[header.index("seed")] = str(number // len(STRATEGIES))
        row[header.index("strategy")] = STRATEGIES[number % len(STRATEGIES)]
        with (out / "summary.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, row])


if __name__ == "__main__":
    main()
