"""The part `cells` of check_gpu.py: published cells with several seeds, by the command itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from gpu_report import Context, Piece, Settings

ROOT = Path(__file__).resolve().parents[1]
MARGIN = 12.0  # seconds before the deadline at which a run is told to stop: it saves a checkpoint


class Cell(NamedTuple):
    """A published cell: what it needs, and what it takes."""

    experiment: str
    data: str
    seconds: float  # guessed from FLOPs and launches; the rows of a first run say better
    more: str = "seeds=[0,1,2,3,4]"
    tiny: str = "model.width=4"  # of a rehearsal, besides TINY


# Two seeds in tf32, which is what torch itself computes convolutions in on such a card.
LONG = "seeds=[0,1] precision=tf32"
# In order of value: what no CPU has the time for, the shortest first.
CELLS = (
    Cell("chaudhry2019/naive_cifar100", "cifar100", 60),
    Cell("chaudhry2019/agem_cifar100", "cifar100", 120),
    Cell("chaudhry2019/ewc_cifar100", "cifar100", 120),
    Cell("buzzega2020/er500_cifar10_class", "cifar10", 700, LONG),
    Cell("buzzega2020/derpp500_cifar10_class", "cifar10", 1000, LONG),
)
TINY = "benchmark.train_samples=400 benchmark.num_tasks=2 training.epochs=1 seeds=[0,1]"


def pieces(settings: Settings) -> list[Piece]:
    """A piece for each cell."""
    return [
        Piece(
            cell.experiment,
            4 if settings.tiny else cell.seconds,
            partial(run, cell=cell),
            limit=7200,
        )
        for cell in CELLS
    ]


def run(context: Context, cell: Cell) -> None:
    """A row: the mean of the seeds, and whether it lies where it is published."""
    from cl_runner.data.named import TORCHVISION

    settings = context.settings
    if not (ROOT / "conf" / "experiment" / f"{cell.experiment}.yaml").exists():
        context.emit(cell.experiment, state="missing", message="there is no such experiment")
        return
    files = (f"{cell.data}.npz", TORCHVISION[cell.data][1])
    if not any((settings.data / name).exists() for name in files):
        message = f"data missing: {cell.data} is not in {settings.data}"
        context.emit(cell.experiment, state="missing", message=message)
        return
    out = settings.out / "cells" / cell.experiment.replace("/", ".")
    began = time.monotonic()
    why = command(context, cell, out)
    seconds = time.monotonic() - began
    if why:
        state = "left out" if why == STOPPED else "failed"
        context.emit(cell.experiment, state=state, message=f"{why}, after {seconds:.0f} s")
        return
    context.emit(f"{cell.experiment}, seconds", seconds, "s", message=f"expected {cell.seconds:g}")
    told(context, cell.experiment, out)


STOPPED = "stopped at a checkpoint; the same --out goes on with it"


def command(context: Context, cell: Cell, out: Path) -> str:
    """`python -m cl_runner experiment=...`; why it did not come to its end, or ""."""
    settings = context.settings
    overrides = [f"experiment={cell.experiment}", f"data.root={settings.data}"]
    overrides += [
        f"device={settings.device}",
        "verbose=false",
        "resume=true",
        f"hydra.run.dir={out}",
    ]
    overrides += [*TINY.split(), *cell.tiny.split()] if settings.tiny else cell.more.split()
    log = settings.out / "cells.txt"
    with log.open("ab") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "cl_runner", *overrides],
            cwd=settings.out,
            stdout=output,
            stderr=output,
        )
        try:
            code = running.wait(max(1.0, context.left() - MARGIN))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(MARGIN - 2)
            except subprocess.TimeoutExpired:
                running.kill()
            return STOPPED
    if not code:
        return ""
    lines = log.read_text("utf-8", "replace").strip().splitlines() or [""]
    return f"exit code {code}: {lines[-1]}"[:300]


def told(context: Context, experiment: str, out: Path) -> None:
    """Rows: each published cell that is of an experiment's runs, by scripts/reproduce.py.

    Of one that is not published, its own mean ACC, and of a rehearsal.
    """
    import reproduce

    runs = reproduce.read([out.parent])
    runs = runs[runs.experiment == experiment]
    published = pd.read_csv(ROOT / "results" / "published.csv", dtype={"n": "Int64"})
    read = [experiment in reproduce.same_runs(name) for name in published.experiment]
    if not any(read) or context.settings.tiny:
        message = f"SD {runs.ACC.std():.4f}, n = {len(runs)}"
        context.emit(f"{experiment}, ACC", float(runs.ACC.mean()), "", message=message)
        return
    for cell in reproduce.compare(published[read], runs).itertuples():
        message = f"SD {cell.our_sd:.4f}, n = {cell.our_n}; published {cell.mean}"
        bar = f"{cell.low:.3f} to {cell.high:.3f}"
        name, mean = f"{cell.experiment}, {cell.column}", float(cell.our_mean)
        context.emit(name, mean, "", bar=bar, met=bool(cell.inside), message=message)
