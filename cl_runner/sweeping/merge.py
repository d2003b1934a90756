"""The results of a sweep's jobs in one summary.csv, compared, with a list of the failures."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_runner.comparing.cli import after_sweep
from cl_runner.machine.console import say
from cl_runner.results import status
from cl_runner.results.files import below, read_rows, write_rows
from cl_runner.results.names import SUMMARY
from cl_runner.results.status import one_line
from cl_runner.sweeping.folders import refused, stopped, sweeps

SHOWN = ("benchmark", "strategy", "seed", "ACC", "forgetting", "status", "run")  # final table


def compared(folder: Path, *, verbose: bool) -> None:
    """Compare the runs of a sweep, and say where; that this fails is no failure of the sweep."""
    try:
        text = after_sweep(folder)
    except Exception as error:  # noqa: BLE001 - the runs are what counts
        say(f"no comparison: {' '.join(str(error).split())}")
        return
    if verbose:
        say(f"\n{text}")
    report = f"cl-compare {shlex.quote(folder.as_posix())} --html report.html"
    say(f"compared in {folder / 'comparison.csv'}; tests and pictures: {report}")


def tell_failures(folder: Path, failed: Mapping[str, Mapping[str, Any]], runs: int) -> None:
    """List the failed jobs of a sweep with their reasons, and what was not begun for them."""
    if failed:
        say(f"{len(failed)} of {runs} runs failed:", sys.stderr)
    for run, about in failed.items():
        say(f"  {folder / run}: {one_line(about['reason'])}", sys.stderr)
    if stopped(folder):
        missing = sum(status.state(folder / job) == "missing" for job in status.jobs(folder))
        say(f"fail_fast=true: {missing} jobs were not begun", sys.stderr)


def gather(*, tell: bool) -> None:
    """Merge what the jobs of a sweep that is being stopped have left; tell: list its failures."""
    for folder in sweeps:
        if next(below(folder, SUMMARY), None) is not None:
            rows = merge(folder)
            if tell:
                tell_failures(folder, failures(folder), len(rows))


def failures(folder: Path) -> dict[str, dict[str, Any]]:
    """The jobs of a sweep that failed or were killed: sub-folder -> status, with a reason."""
    found: dict[str, dict[str, Any]] = {}
    for out in status.found(folder):
        state = status.state(out)
        if state in {"failed", "killed"}:
            about = {"reason": state} | status.read(out) | {"state": state}
            found[out.relative_to(folder).as_posix()] = about
    for out, error in refused.items():
        if out.is_relative_to(folder.absolute()):
            about = {"reason": str(error), "exception": type(error).__name__, "state": "failed"}
            found[out.relative_to(folder.absolute()).as_posix()] = about
    return found


def merge(folder: Path) -> list[dict[str, str]]:
    """Gather the jobs' summary.csv in one, and return its rows.

    The columns are `run`, the sub-folder, and the union of the jobs' columns; what a job has not is
    empty. A job that failed or was killed before it wrote a summary has a row with its status only.
    """
    rows = {run: {"run": run, "status": about["state"]} for run, about in failures(folder).items()}
    for path in below(folder, SUMMARY):
        # A job with seeds=[...] has a folder for each, and they count in its place.
        if path.parent != folder and next(path.parent.glob(f"*/{SUMMARY}"), None) is None:
            run = path.parent.relative_to(folder).as_posix()
            rows[run] = {"run": run, **next(iter(read_rows(path)), {})}
    merged = [rows[run] for run in sorted(rows, key=_natural)]
    write_rows(folder / SUMMARY, merged)
    return merged


def _natural(run: str) -> list[tuple[int, str]]:
    """A key that sorts seed=2 before seed=10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", run)]


def table(rows: list[dict[str, str]]) -> str:
    """The main columns of a summary, aligned."""
    cells = [SHOWN, *(tuple(_short(row.get(key, "")) for key in SHOWN) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _short(cell: str) -> str:
    """A fraction with four digits; any other cell, cut where it is long."""
    try:
        return f"{float(cell):.4f}" if "." in cell else cell
    except ValueError:
        return cell if len(cell) <= 48 else f"{cell[:30]}...{cell[-15:]}"
