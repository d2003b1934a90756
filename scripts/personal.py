"""What do people gain over a common model, and what does it cost the others? Flights by carrier.

    python scripts/personal.py                     run them (minutes)
    python scripts/personal.py --from FOLDER       read finished sweeps instead

The common model is of the first eleven carriers of benchmark=flights; then come five others, one
after another, or each alone after the common model (benchmark.people). Three seeds, options as by
default. Writes results/personal.csv and the table in docs/personal.md between its markers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
from reproduce import ROOT, into_page, run_or_read

PAGE = ROOT / "docs" / "personal.md"
TABLE = ("<!-- personal: made by scripts/personal.py -->", "<!-- end of personal -->")
STRATEGIES = ("naive", "ewc", "lwf", "er")
PEOPLE = ("UA", "US", "VX", "WN", "YV")
WAYS = {"in turn": "null", "each alone": ",".join(f"[{name}]" for name in PEOPLE)}


def run(folder: Path) -> None:
    """A sweep for each way."""
    for way, people in WAYS.items():
        command = [
            str(Path(sys.executable).with_name("cl-run")),
            *("-m", "benchmark=flights", "benchmark.slice=carrier", "benchmark.base=11"),
            *(f"strategy={','.join(STRATEGIES)}", "seed=0,1,2", f"benchmark.people={people}"),
            *("verbose=false", f"hydra.sweep.dir={folder / way.replace(' ', '_')}"),
        ]
        subprocess.run(command, check=True)


def read(folder: Path) -> pd.DataFrame:
    """A row for each way, strategy and carrier: means over the seeds."""
    rows = []
    for way in WAYS:
        own = folder / way.replace(" ", "_")
        for run in pd.read_csv(own / "summary.csv").query("status == 'complete'").itertuples():
            personal = pd.read_csv(own / run.run / "personal.csv")
            rows.append(personal.assign(way=way, strategy=run.strategy, seed=run.seed))
    groups = pd.concat(rows).groupby(["way", "strategy", "task_name"], sort=False)
    return groups[["common", "own", "gain", "others_loss"]].mean().reset_index()


def table(rows: pd.DataFrame) -> str:
    """Gain of each carrier, and what the others lose on average."""
    lines = [f"| | strategy | {' | '.join(PEOPLE)} | others lose |", "|---|---|" + "---|" * 6]
    for (way, strategy), own in rows.groupby(["way", "strategy"], sort=False):
        gains = own.set_index("task_name").gain
        cells = " | ".join(f"{gains[name]:+.3f}" for name in PEOPLE)
        lines.append(f"| {way} | `{strategy}` | {cells} | {own.others_loss.mean():+.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Run or read, and write."""
    rows = run_or_read(__doc__, run, read)
    rows.to_csv(ROOT / "results" / "personal.csv", index=False, float_format="%.6g")
    into_page(TABLE, table(rows), PAGE)


if __name__ == "__main__":
    main()
