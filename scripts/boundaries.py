"""What the detectors find on streams of digits and MNIST, by naive fine-tuning.

    python scripts/boundaries.py                       all runs, then the table
    python scripts/boundaries.py --from multirun/...   finished sweeps, instead of running

Writes the table in docs/boundaries.md between its two markers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from reproduce import into_page

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "boundaries.md"
MARKERS = ("<!-- found: made by scripts/boundaries.py -->", "<!-- end of found -->")
SEEDS = "0,1,2"
STREAMS = ("permuted", "rotated", "split")
COMMON = ("strategy=naive", "training.boundaries=detected", "threads=1", "verbose=false")
CONSTANT = ("benchmark.num_tasks=1", "training.iterations=10000")
KEYS = ["benchmark", "tasks", "optimizer", "detector"]


def run(folder: Path) -> None:
    """The sweeps: all borders, and one task for 10,000 steps."""
    for data in ("digits", "mnist"):
        streams = ",".join(f"{stream}_{data}" for stream in STREAMS)
        for i, case in enumerate(
            ([f"benchmark={streams}"], [f"benchmark=permuted_{data}", *CONSTANT])
        ):
            command = [
                *(str(Path(sys.executable).with_name("cl-run")), "-m", *COMMON, *case),
                *("optimizer=sgd,adam", "detector.name=page_hinkley,adwin", f"seed={SEEDS}"),
                f"hydra.sweep.dir={folder / f'{data}-{i}'}",
            ]
            subprocess.run(command, check=True)


def read(folders: list[Path]) -> pd.DataFrame:
    """The summaries of all complete runs below the folders, with what became of their borders."""
    rows = []
    for path in (p for folder in folders for p in sorted(folder.rglob("summary.csv"))):
        summary = pd.read_csv(path).iloc[0]
        of_sweep = not path.with_name("config.yaml").exists()
        if of_sweep or summary.status != "complete" or "borders_missed" not in summary:
            continue
        table = path.with_name("boundaries.csv")
        delays = pd.read_csv(table).delay.dropna() if table.exists() else pd.Series(dtype=float)
        rows.append(
            {
                "benchmark": summary.benchmark,
                "tasks": int(summary["benchmark.num_tasks"]),
                "optimizer": summary.optimizer,
                "detector": summary["detector.name"],
                "steps": int(summary.steps),
                "borders": int(summary["benchmark.num_tasks"]) - 1,
                "found": len(delays),
                "delay": delays.max(),
                "false": int(summary.false_alarms),
            }
        )
    return pd.DataFrame(rows)


def markdown(runs: pd.DataFrame) -> str:
    """The page's table: sums over the seeds, and the longest delay."""
    lines = [
        "| stream | steps | optimizer | detector | runs | borders found | longest delay | false |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (benchmark, tasks, optimizer, detector), own in runs.groupby(KEYS, sort=True):
        name = f"`{benchmark}`" + (", one task" if tasks == 1 else "")
        found = f"{own.found.sum()} of {own.borders.sum()}" if tasks > 1 else ""
        delay = "" if own.delay.isna().all() else f"{own.delay.max():.0f}"
        lines.append(
            f"| {name} | {own.steps.iloc[0]} | {optimizer} | {detector} | {len(own)} | {found} "
            f"| {delay} | {own.false.sum()} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run or read, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folders", nargs="+", type=Path, help="finished sweeps")
    folders = parser.parse_args().folders
    with tempfile.TemporaryDirectory() as folder:
        if not folders:
            run(Path(folder))
        table = markdown(read(folders or [Path(folder)]))
    into_page(MARKERS, table, PAGE)
    print(table)


if __name__ == "__main__":
    main()
