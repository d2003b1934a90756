"""The runs of several seeds as one table, with statistics over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.results.columns import is_metric, of_kind, printed
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.names import STATISTICS, SUMMARY


def merge_seeds(out: Path, runs: Mapping[int, Path]) -> str:
    """Gather the runs of several seeds in `out`: their files with a column `seed`, and statistics.

    `summary.csv` has a row per seed; `statistics.csv` has, for each metric, the number n of
    complete runs, their mean, standard deviation and 95 % interval of the mean (Student's t).
    Returns the main metrics as text.
    """
    found = {seed: path for seed, path in runs.items() if (path / SUMMARY).exists()}
    rows = {seed: read_rows(path / SUMMARY)[0] for seed, path in found.items()}
    write_rows(out / SUMMARY, list(rows.values()))
    files = {file.name for path in found.values() for file in path.glob("*.csv")}
    for name in sorted(files - {SUMMARY}):
        write_rows(
            out / name,
            [{"seed": s, **row} for s, path in found.items() for row in read_rows(path / name)],
        )
    complete = [row for row in rows.values() if row["status"] == "complete"]
    metrics = [name for name in next(iter(rows.values()), {}) if is_metric(name)]
    own = [c.name for c in of_kind("metric") if c.name in metrics]
    statistics = [
        {"metric": name, **interval([float(row[name]) for row in complete if row[name]])}
        for name in dict.fromkeys([*own, *metrics])
    ]
    write_rows(out / STATISTICS, statistics)
    lines = [f"{'metric':20} {'n':>3} {'mean':>8} {'95 % interval':>20}"]
    for row in statistics:
        if row["metric"] in printed() and row["n"]:
            low, high = (f"{row[k]:.4f}" if row[k] is not None else "-" for k in ("low", "high"))
            lines.append(f"{row['metric']:20} {row['n']:>3} {row['mean']:8.4f} {low:>9} .. {high}")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, sd and the 95 % interval low .. high of the mean; None where n is too small."""
    n = len(values)
    mean = math.fsum(values) / n if n else None  # in any order of the seeds the same
    if mean is None or n < 2:
        return {"n": n, "mean": mean, "sd": None, "low": None, "high": None}
    from scipy.special import stdtrit  # scipy.stats has the same, and takes a second to import

    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}
