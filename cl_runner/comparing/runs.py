"""The runs that the command line names: found, read, and each counted once."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean

from cl_runner.errors import UserError, check
from cl_runner.results import status
from cl_runner.results.columns import column_name, column_of, is_cost, is_metric, of_kind
from cl_runner.results.files import DAMAGED, below, is_copy, read_rows
from cl_runner.results.names import CALIBRATION_TABLE, STATUS, SUMMARY

LONGEST = 60  # characters of a cell in a message
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal may take it for an order
OTHER_FILES = re.compile(
    r"(accura.*|costs|guard|tasks|calibration|confusion|online|edits|representation|statistics"
    r"|comparison.*|fisher_overlap|personal)\.csv"
)  # of runs, and our own
NEEDED = ("benchmark", "scenario", "strategy", "seed", "ACC")  # of a run that is complete
ROUNDING = 1e-9  # by which a mean of accuracies may exceed the largest
# The others have a dot.
TOP_SETTINGS = ("model", "optimizer", "device", "precision", "engine", "threads")
NO_SETTINGS = {
    *("benchmark.seed", "benchmark.default_scenario", "benchmark.default_epochs"),
    "data.root",
}
VERSIONS = (
    "cl_runner_version",
    "commit",
    "torch_version",
    "used_device",
    "used_precision",
    "used_engine",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of a summary.csv: cells as text, numbers in their shortest form."""

    folder: Path  # where the run's other files are, if they are still there
    source: Path  # the CSV file that the row was read from
    row: dict[str, str]

    @property
    def complete(self) -> bool:
        return self.row["status"] == "complete"

    @property
    def name(self) -> str:
        """Strategy and seed, as far as they are known."""
        row = self.row
        known = row.get("strategy") or "a run that did not start"
        return f"{known} seed={row['seed']}" if row.get("seed") else known

    @property
    def configuration(self) -> dict[str, str]:
        """Every setting, without the seed and what follows from it."""
        return {key: value for key, value in self.row.items() if is_setting(key)}

    def number(self, column: str) -> float | None:
        """A cell of a complete run as a number; None where it is empty or there is no column."""
        cell = self.row.get(column, "")
        return float(cell) if cell else None


def is_setting(column: str) -> bool:
    """Whether a column of summary.csv is part of the configuration and tells runs apart."""
    return ("." in column or column in TOP_SETTINGS) and column not in NO_SETTINGS


def read_runs(patterns: Sequence[str], *, once: bool = True) -> tuple[list[Run], list[str]]:
    """The runs that paths and patterns stand for, and notes for the reader.

    once: repeated runs count once, see `without_repetitions`.

    Where a folder holds runs and a merged table of them, the runs' own files count; a merged row
    whose run has no folder any more is read from the table. Raises UserError for what is no result
    of cl-run, and if there are no runs at all.
    """
    found: dict[Path, Run] = {}
    skipped: list[str] = []
    waiting, seen = list(_files(patterns, skipped)), set[Path]()
    listed, empty = dict[Path, Path](), set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.name == STATUS:  # a job that ended before it wrote a summary
            row = {"status": status.state(path.parent)}
            found.setdefault(path.parent, Run(folder=path.parent, source=path, row=row))
            continue
        rows = _rows(path)
        if not rows:
            empty.add(path)
        for folder, row in rows:
            own = folder / SUMMARY
            if folder != path.parent and own.is_file():
                waiting.append(own.resolve())
                listed[own.resolve()] = path
            else:
                found[folder] = Run(folder=folder, source=path, row=row)
    for own in sorted(empty & listed.keys()):
        raise UserError(f"{own} has no row, but {listed[own]} has one of its run; {DAMAGED}")
    check(bool(found), f"no runs in {', '.join(patterns)}: there is no {SUMMARY} with rows")
    notes = [f"not read: {', '.join(skipped)}"] if skipped else []
    runs = sorted(found.values(), key=lambda run: str(run.folder))
    if not once:
        return runs, notes
    runs, repeated = counted_once(runs)
    return runs, notes + repeated


def counted_once(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Runs as they are compared: checked, each once, with calibration; and notes for the reader.

    Raises UserError for what no run can have measured, and for results that contradict each other.
    """
    for run in runs:
        _check_run(run)
    once, notes = without_repetitions(runs)
    return [calibrated(run) for run in once], notes


def _files(patterns: Sequence[str], skipped: list[str]) -> Iterator[Path]:
    """The summary.csv files below the paths, and status.json where a job left nothing else."""
    for pattern in patterns:
        # glob.glob, because Path.glob takes no absolute patterns.
        there = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        globbed = [path for path in there if not is_copy(Path(path))]
        matches = [pattern] if Path(pattern).exists() else globbed
        check(bool(matches), f"there is no file or folder {pattern}")
        for path in map(Path, matches):
            if path.is_dir():
                files = [p for name in (SUMMARY, STATUS) for p in below(path, name)]
                yield from (p.resolve() for p in files if p.name == SUMMARY or not _explained(p))
                if not files:
                    skipped.append(f"{path} (no {SUMMARY} in it)")
            elif path.suffix == ".csv" and not OTHER_FILES.fullmatch(path.name):
                yield path.resolve()
            else:
                skipped.append(f"{path} (no {SUMMARY})")


def _explained(told: Path) -> bool:
    """Whether a job with this status.json has left more: its own summary, or runs in folders."""
    inner = (p for name in (SUMMARY, STATUS) for p in below(told.parent, name))
    return any(path != told for path in inner)


def _rows(path: Path) -> list[tuple[Path, dict[str, str]]]:
    """The rows of a summary.csv, of one run or merged, with the folder of each one's run."""
    rows = _table(path)
    names = [row.get("run") or f"seed={row.get('seed')}" for row in rows]
    # A file under another name has lost its folder; its own name tells its runs from others.
    here = path.parent if path.name == SUMMARY else path.with_suffix("")
    if len(rows) == 1 and "run" not in rows[0] and not (here / names[0] / SUMMARY).is_file():
        return [(here, rows[0])]
    found = []
    for name, row in zip(names, rows, strict=True):
        if any(other.startswith(f"{name}/seed=") for other in names):
            continue  # a job with seeds=[...]: each of its seeds has a row as well
        beside = path.parent / name
        found.append((beside if (beside / SUMMARY).is_file() else here / name, row))
    return found


def _table(path: Path) -> list[dict[str, str]]:
    rows = read_rows(path)
    known = all("status" in row for row in rows)
    check(known, f"{path} is no {SUMMARY} of cl-run: it has no column status")
    for row in rows:
        for name, cell in row.items():
            if CONTROL.search(name + cell):
                where = f"{path}: column {shown(name)} has a control character"
                raise UserError(f"{where}, in {shown(cell)}")
    return [{name: shortest(cell) for name, cell in row.items()} for row in rows]


def shortest(cell: str) -> str:
    """A whole number without its `.0`, so that `10` and `10.0` are one setting; others as is."""
    whole = cell.endswith(".0") and re.fullmatch(r"-?\d+\.0", cell)
    return cell[:-2] if whole else cell


def _check_run(run: Run) -> None:
    if not run.complete:
        return
    there = {*run.row} if status.measures_acc(run.row) else {*run.row} - {"ACC"}
    missing = [n for n in NEEDED if n not in run.row or (n in there and not run.row[n])]
    what = "has no column" if missing and missing[0] not in run.row else "is complete but has no"
    check(not missing, f"{run.source}: {run.name} {what} {missing[0] if missing else ''}")
    for name, cell in run.row.items():
        if cell and (is_cost(name) or is_metric(name)):
            check_number(cell, name, f"{run.source}: {name} of {run.name}")


def check_number(cell: str, name: str, where: str) -> None:
    """Raise UserError for what no run can have measured: it must not be averaged."""
    column = column_of(name)
    assert column is not None, f"{name} is no metric or cost"
    low, high = column.unit.low, column.unit.high
    try:
        sane = low - ROUNDING <= float(cell) <= high + ROUNDING  # not so of NaN
    except ValueError:
        raise UserError(f"{where} is {shown(cell)}, not a number") from None
    check(sane, f"{where} is {shown(cell)}, which is not in [{low:g}, {high:g}]")


def shown(cell: str) -> str:
    """A cell in a message: its beginning, without control characters."""
    return repr(cell) if len(cell) <= LONGEST else f"{cell[:LONGEST]!r}..."


def calibrated(run: Run) -> Run:
    """With columns for calibration.csv: the means over all tasks, after the last of them.

    There are none where eval.tasks leaves out some task then. They are named as the metrics are,
    with the split and the reading where those are not the usual. Raises UserError for a file that
    is none of cl-run.
    """
    path = run.folder / CALIBRATION_TABLE
    if not run.complete or not path.exists() or not status.measures_acc(run.row):
        return run
    found: dict[str, list[float]] = {}
    own_reading = run.row["scenario"]
    try:
        rows = read_rows(path)
        # num_tasks=null stands for as many tasks as there were.
        last = run.row.get("benchmark.num_tasks") or str(max(int(r["after_task"]) for r in rows))
        for row in rows:
            if row["after_task"] != last:
                continue
            for name in (column.name for column in of_kind("calibration")):
                check_number(row[name], name, f"{path}: {name}")
                own = column_name(name, row["split"], row["reading"], own_reading)
                found.setdefault(own, []).append(float(row[name]))
    except (ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return replace(run, row=run.row | {name: repr(fmean(v)) for name, v in found.items()})


def without_repetitions(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Complete runs of one configuration and seed once, if they measured the same; and notes.

    Raises UserError if they did not: nothing says which one to believe.
    """
    kept: dict[object, Run] = {}
    notes = []
    for run in runs:
        key = _identity(run) if run.complete else run.folder
        first = kept.setdefault(key, run)
        if first is run:
            continue
        if _measured(first) != _measured(run):
            differing = [k for k in VERSIONS if first.row.get(k) != run.row.get(k)]
            hint = (
                f"they differ in {', '.join(differing)}: choose with --where" if differing else ""
            )
            raise UserError(
                f"two runs of {run.name} with the same configuration and different results, "
                f"{first.folder} and {run.folder}; {hint or 'leave one of them out'}"
            )
        notes.append(f"counted once: {run.name} in {first.folder} and {run.folder}")
    return list(kept.values()), notes


def _identity(run: Run) -> tuple[tuple[str, str], ...]:
    names = ("benchmark", "scenario", "strategy", "seed", "benchmark.seed")
    # An empty cell and a missing column are the same: a merged table cannot tell them apart.
    settings = run.configuration | {name: run.row.get(name, "") for name in names}
    return tuple(sorted((key, value) for key, value in settings.items() if value))


def _measured(run: Run) -> dict[str, str]:
    return {key: value for key, value in run.row.items() if value and is_metric(key)}


def select(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs for which all of `key=value` hold; `key=a,b` holds for either value.

    A run that failed before its configuration was written stays, to be listed as failed.
    """
    for condition in conditions:
        key, equals, value = condition.partition("=")
        check(bool(equals), f"--where {condition}: write key=value")
        known = sorted({name for run in runs for name in run.row})
        near = get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        check(key in known, f"--where {condition}: no run has a column {key}{hint}")
        wanted = {shortest(value), *map(shortest, value.split(","))}
        there = sorted({run.row[key] for run in runs if key in run.row})
        runs = [r for r in runs if r.row.get(key) in wanted or "strategy" not in r.row]
        left = any("strategy" in run.row for run in runs)
        check(left, f"--where {condition}: no run is left; {key} is one of {', '.join(there)}")
    return list(runs)


def version_notes(runs: Sequence[Run]) -> list[str]:
    """A note for each version of code or machine in which the complete runs differ."""
    notes = []
    for column in VERSIONS:
        values = sorted({run.row.get(column) or "unknown" for run in runs})
        if len(values) > 1:
            notes.append(f"mixed {column}: {', '.join(values)}")
    columns = [set(run.row) for run in runs]
    union: set[str] = set().union(*columns)
    missing = [name for name in union if not all(name in own for own in columns)]
    general = [c for c in sorted(missing) if is_setting(c) and not c.startswith("strategy.")]
    if general and len({run.row.get("cl_runner_version") for run in runs}) > 1:
        notes.append(f"some runs have no column {', '.join(general)}")
    return notes
