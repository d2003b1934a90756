"""Which strategy corrects a model without spoiling it? benchmark=edits on digits.

    python scripts/edits.py                     run them
    python scripts/edits.py --from FOLDER       read finished sweeps instead

Ten edits of one sample each, five seeds, options as by default but for the last line. Writes
results/edits.csv and the table in docs/edits.md between its markers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
from reproduce import ROOT, into_page, run_or_read

PAGE = ROOT / "docs" / "edits.md"
TABLE = ("<!-- edits: made by scripts/edits.py -->", "<!-- end of edits -->")
SEEDS = "0,1,2,3,4"
STRATEGIES = ("naive", "ewc", "agem", "lwf", "generative_replay", "cumulative", "er", "derpp")
FEW = "er, strategy.replay_batch_size=16"
READINGS = ("success", "retained", "locality", "generality", "before", "after")


def run(folder: Path) -> None:
    """One sweep for each line of the table."""
    for name in (*STRATEGIES, FEW):
        command = [
            str(Path(sys.executable).with_name("cl-run")),
            *("-m", "benchmark=edits", f"seed={SEEDS}", *f"strategy={name}".split(", ")),
            *("verbose=false", f"hydra.sweep.dir={place(folder, name)}"),
        ]
        subprocess.run(command, check=True)


def place(folder: Path, name: str) -> Path:
    """Where the sweep of a line lies; the name has no sign that Hydra reads."""
    return folder / "".join(c if c.isalnum() else "_" for c in name)


def read(folder: Path) -> pd.DataFrame:
    """A row for each line: how many runs, and the mean of each reading.

    before, after: the accuracy on the test data, of the first task's model and of the last.
    """
    rows = []
    for name in (*STRATEGIES, FEW):
        own = place(folder, name)
        runs = pd.read_csv(own / "summary.csv").query("status == 'complete'")
        R = [pd.read_csv(own / run / "accuracy_matrix.csv").task_1 for run in runs.run]
        runs = runs.assign(before=[r[1] for r in R], after=[r.iloc[-1] for r in R])
        rows.append({"strategy": name, "n": len(runs), **runs[list(READINGS)].mean()})
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> str:
    """The table of the page."""
    lines = [
        "| strategy | success | retained | locality | generality | test accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.itertuples():
        name, _, option = row.strategy.partition(", ")
        title = f"`{name}`" + (f", `{option}`" if option else "")
        four = " | ".join(f"{getattr(row, reading):.2f}" for reading in READINGS[:4])
        lines.append(f"| {title} | {four} | {row.before:.3f} to {row.after:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Run or read, and write."""
    rows = run_or_read(__doc__, run, read)
    rows.to_csv(ROOT / "results" / "edits.csv", index=False, float_format="%.6g")
    into_page(TABLE, table(rows), PAGE)


if __name__ == "__main__":
    main()
