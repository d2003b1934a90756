"""Is what a run's files say true? Everything derived is computed again from the matrices."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.comparing.runs import Run, is_setting, read_runs
from cl_runner.config.identity import IMMATERIAL, config_hash, flatten
from cl_runner.config.schema import Eval
from cl_runner.errors import UserError, check
from cl_runner.functional.metrics import Matrix
from cl_runner.machine.reading import yaml_values
from cl_runner.results.columns import is_metric, of_guard, of_kind, task_costs
from cl_runner.results.files import below, read_rows
from cl_runner.results.matrices import (
    Curves,
    Matrices,
    matrix_name,
    metric_columns,
    personal_rows,
    read_curves,
    read_matrix,
)
from cl_runner.results.names import (
    ACCURACY_MATRIX,
    ACCURACY_TABLE,
    CONFIG,
    COST_TABLE,
    EDIT_TABLE,
    GUARD_TABLE,
    ONLINE_TABLE,
    PERSONAL_TABLE,
    STATES,
    STATISTICS,
    SUMMARY,
)
from cl_runner.results.seeds import interval

TOLERANCE = 1e-9  # of a metric; the files hold every digit
EDITS = "edits"  # the kind of benchmark whose later tasks nobody knows before the first
SAID = STATES[:4]  # of a summary.csv; no run says of itself that it was killed or is missing
READINGS, SPLITS = ("task", "domain", "class"), ("test", "validation")
NAMED = ("benchmark", "strategy", "model", "optimizer")  # their names are columns of summary.csv


def verify_runs(patterns: Sequence[str]) -> tuple[int, list[str]]:
    """The number of runs, and a line for each discrepancy. Raises UserError without run folders."""
    runs, _ = read_runs(patterns, once=False)
    runs = [run for run in runs if run.source.parent == run.folder and run.source.name == SUMMARY]
    check(bool(runs), f"no run folders in {', '.join(patterns)}: a merged table cannot be verified")
    lines = [f"{run.folder}: {problem}" for run in runs for problem in of_run(run)]
    for folder in sorted({parent for run in runs for parent in run.folder.parents}):
        if (folder / SUMMARY).is_file():
            lines += [f"{folder}: {problem}" for problem in of_merged(folder)]
        if (folder / STATISTICS).is_file():
            lines += [f"{folder}: {problem}" for problem in of_seeds(folder)]
    return len(runs), lines


def of_run(run: Run) -> Iterator[str]:
    """The discrepancies of one run's folder."""
    row = read_rows(run.source)[0]
    if row["status"] not in SAID:
        yield f"{SUMMARY} has the status {row['status']!r}, not one of {', '.join(SAID)}"
    yield from of_costs(row)
    yield from of_cost_table(run.folder, row)
    yield from of_guard_table(run.folder, row)
    yield from of_configuration(run.folder, row)
    scenario = row.get("scenario", "")
    try:
        matrices = read_matrices(run.folder, scenario)
    except UserError as error:
        yield str(error)
        return
    yield from of_shapes(matrices, row)
    within = read_within(run.folder, matrices)
    try:
        rows = read_online(run.folder)
    except (UserError, ValueError, KeyError) as error:
        yield unreadable(run.folder / ONLINE_TABLE, error)
        rows = None
    try:
        edited = read_edits(run.folder, matrices.get(("test", scenario)))
    except (UserError, ValueError, KeyError, IndexError) as error:
        yield unreadable(run.folder / EDIT_TABLE, error)
        edited = None
    yield from of_metrics(matrices, row, within, rows, edited)
    yield from of_personal(run.folder, matrices.get(("test", scenario)))
    yield from of_tidy(run.folder, matrices)


def read_matrices(folder: Path, scenario: str) -> Matrices:
    """Every accuracy matrix of a folder."""
    return {
        (split, reading): read_matrix(path)
        for split in SPLITS
        for reading in READINGS
        if (path := folder / matrix_name(split, reading, scenario)).exists()
    }


def read_within(folder: Path, matrices: Matrices) -> Curves | None:
    """What was measured within the tasks, if it was; what cannot be read `of_tidy` tells."""
    try:
        tasks = max((R.shape[1] for R in matrices.values()), default=0)
        return read_curves(folder / ACCURACY_TABLE, tasks)
    except (UserError, ValueError, KeyError):
        return None


def read_online(folder: Path) -> list[dict[str, str]] | None:
    """The rows of online.csv, if there is one. Raises ValueError if they contradict themselves."""
    path = folder / ONLINE_TABLE
    if not path.exists():
        return None
    rows = read_rows(path)
    for i, row in enumerate(rows, 1):
        samples, hits = int(row["samples"]), int(row["hits"])
        said = number(row["accuracy"]) if row["accuracy"] else None
        if not 0 <= hits <= samples or said != (hits / samples if samples else None):
            raise ValueError(f"row {i}: {hits} hits of {samples} samples are not {said}")
    return rows


def read_edits(folder: Path, R: Matrix | None) -> list[dict[str, str]] | None:
    """The rows of edits.csv, if there is one. Raises ValueError where the matrix says otherwise."""
    path = folder / EDIT_TABLE
    if not path.exists():
        return None
    rows = read_rows(path)
    last = int(rows[-1]["task"])
    for row in rows if R is not None else ():
        assert R is not None
        task = int(row["task"])
        for name, after in (("success", task), ("retained", last)):
            if not same_cell(row[name], None if np.isnan(v := R[after, task - 1]) else float(v)):
                raise ValueError(f"task {task}: {name} is {row[name]}, the matrix says {v}")
    return rows


def of_costs(row: Mapping[str, str]) -> Iterator[str]:
    """Costs are numbers that are not negative, and counts are whole."""
    for column in (column for column in of_kind("cost") if row.get(column.name)):
        name = column.name
        try:
            value = float(row[name])
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            yield f"{name} is {row[name]}, no number of at least 0"
        elif column.unit.whole and value != int(value):
            yield f"{name} is {row[name]}, not whole"


def of_cost_table(folder: Path, row: Mapping[str, str]) -> Iterator[str]:
    """The tasks' costs add up to the run's, and what is held at the end is what the run says."""
    path = folder / COST_TABLE
    if not path.exists() or row["status"] != "complete":
        return
    spent = [n for n in task_costs("sum") if n != "energy_joules" or row.get(n)]  # it may be empty
    try:
        rows = read_rows(path)
        tasks = [int(cells["after_task"]) for cells in rows]
        sums = {name: math.fsum(float(cells[name]) for cells in rows) for name in spent}
        held = {name: rows[-1][name] for name in task_costs("last", "largest")}
    except (UserError, ValueError, KeyError, IndexError, OverflowError) as error:
        yield unreadable(path, error)
        return
    cell = row.get("benchmark.num_tasks")
    T = measured_tasks(folder) if cell == "" else cell or ""  # null: as many as the data have
    if tasks != list(range(len(tasks))) or str(len(tasks) - 1) != T:
        yield f"costs.csv has the tasks {tasks}, not 0 to {T or 'the last'}, each once"
    for name, value in sums.items():
        if not math.isclose(value, number(row.get(name, "")), rel_tol=1e-9, abs_tol=1e-9):
            said = row.get(name) or "nothing"
            yield f"costs.csv adds up to {value} {name}, {SUMMARY} says {said}"
    for name, cell in held.items():
        if cell != row.get(name, ""):
            yield f"costs.csv ends with {name} {cell!r}, {SUMMARY} says {row.get(name)!r}"


def measured_tasks(folder: Path) -> str:
    """How many tasks the accuracy matrix has; "" where it cannot be read, which is told apart."""
    try:
        return str(read_matrix(folder / ACCURACY_MATRIX).shape[1])
    except UserError:
        return ""


def of_guard_table(folder: Path, row: Mapping[str, str]) -> Iterator[str]:
    """What the guard has seen in the tasks is what the run says of itself."""
    path = folder / GUARD_TABLE
    if not path.exists():
        return
    try:
        expected = of_guard(read_rows(path))
    except (UserError, ValueError, KeyError) as error:
        yield unreadable(path, error)
        return
    for name, value in expected.items():
        if not same_cell(row.get(name, ""), value):
            yield f"{GUARD_TABLE} gives {name} {value}, {SUMMARY} says {row.get(name)!r}"


def unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file, in words; a UserError has them."""
    return str(error) if isinstance(error, UserError) else f"cannot read {path.name}: {error!r}"


def number(cell: str) -> float:
    """A cell as a number; NaN where it is none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def of_configuration(folder: Path, row: Mapping[str, str]) -> Iterator[str]:
    """Every setting of the row is as in config.yaml, which may have more: they change no result.

    What may change when a run goes on, as threads and device, is of its last part in the row and of
    its first in config.yaml.
    """
    try:
        config = yaml_values(folder / CONFIG)
        flat = flatten(config)
    except (UserError, AttributeError) as error:
        yield str(error) if isinstance(error, UserError) else "config.yaml holds no settings"
        return
    said = row.get("config_hash", "")
    if said and said != (own := config_hash(config)):
        yield f"config.yaml has the hash {own}, {SUMMARY} says {said}"
    for key in (key for key in row if (is_setting(key) or key in NAMED) and key not in IMMATERIAL):
        name = f"{key}.name" if key in NAMED else key
        value = flat.get(name)
        if not same_cell(row[key], value):
            yield f"config.yaml has {name}={value}, {SUMMARY} says {row[key]!r}"


def same_cell(cell: str, value: Any) -> bool:
    """Whether a cell holds this value of a configuration."""
    if value is None:
        return not cell
    if isinstance(value, (list, dict)):
        return cell == json.dumps(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(cell) == value
        except ValueError:
            return False
    return cell == str(value)


def of_shapes(matrices: Matrices, row: Mapping[str, str]) -> Iterator[str]:
    """A complete run has measured the cells it was asked for, of its benchmark's tasks."""
    scenario, T = row.get("scenario", ""), row.get("benchmark.num_tasks", "")
    complete, asked = row["status"] == "complete", row.get("eval.tasks") or "all"
    try:
        Eval(tasks=asked)
    except UserError as error:
        yield str(error)
        return
    if complete and ("test", scenario) not in matrices:
        yield "accuracy_matrix.csv is missing"
    for (split, reading), R in matrices.items():
        name = matrix_name(split, reading, scenario)
        if T and str(R.shape[1]) != T:
            yield f"{name} has {R.shape[1]} tasks, {SUMMARY} says {T}"
        if not complete:
            continue
        chosen = row.get("benchmark.kind") == EDITS
        if asked == "all" and np.isnan(R[chosen:]).any():
            yield f"{name} has empty cells, but the run is complete"
        elif (there := ~np.isnan(R)).tolist() != cells_of(asked, R.shape[1], chosen=chosen):
            yield f"{name} has {there.sum()} cells, not those of eval.tasks={asked}"


def cells_of(asked: str, T: int, *, chosen: bool = False) -> list[list[bool]]:
    """Which cells [T + 1, T] a run with this eval.tasks measures; see `Eval.shown`."""
    rows = [Eval(tasks=asked).shown(done, T, chosen=chosen) for done in range(T + 1)]
    return [[task in shown for task in range(T)] for shown in rows]


def of_metrics(
    matrices: Matrices,
    row: Mapping[str, str],
    curves: Curves | None,
    online: Sequence[Mapping[str, str]] | None,
    edited: Sequence[Mapping[str, str]] | None,
) -> Iterator[str]:
    """Every metric is what the matrix, online.csv or edits.csv gives, and there is no other."""
    base = bool(row.get("benchmark.base"))
    found = metric_columns(matrices, row.get("scenario", ""), curves, online, edited, base=base)
    for name in dict.fromkeys([*found, *filter(is_metric, row)]):
        cell, value = row.get(name, ""), found.get(name)
        if value is None or math.isnan(value):
            if cell:
                yield f"{SUMMARY} has {name} {cell}, which no matrix here gives"
            continue
        try:
            agrees = abs(float(cell) - value) <= TOLERANCE
        except ValueError:
            agrees = False
        if not agrees:
            yield f"{SUMMARY} says {name} is {cell or 'empty'}, the matrix gives {value}"


def of_personal(folder: Path, R: Matrix | None) -> Iterator[str]:
    """personal.csv says what the matrix says."""
    path = folder / PERSONAL_TABLE
    if not path.exists() or R is None:
        return
    rows, expected = read_rows(path), personal_rows(R)
    right = len(rows) == len(expected) and all(
        same_cell(row.get(name, ""), None if np.isnan(value) else value)
        for row, own in zip(rows, expected, strict=True)
        for name, value in own.items()
    )
    if not right:
        yield f"{PERSONAL_TABLE} is not what the matrix gives"


def of_tidy(folder: Path, matrices: Matrices) -> Iterator[str]:
    """accuracies.csv holds the cells of the matrices, each once; what is within tasks is apart."""
    expected = {
        (str(i), str(j + 1), reading, split): value
        for (split, reading), R in matrices.items()
        for i, cells in enumerate(R.tolist())
        for j, value in enumerate(cells)
        if not math.isnan(value)
    }
    path = folder / ACCURACY_TABLE
    if not path.exists():
        if expected:
            yield "accuracies.csv is missing"
        return
    found: dict[tuple[str, str, str, str], float] = {}
    try:
        rows = [row for row in read_rows(path) if row.get("step", "0") == "0"]
        for row in rows:
            key = (row["after_task"], row["eval_task"], row["reading"], row["split"])
            found[key] = float(row["accuracy"])
    except (UserError, ValueError, KeyError) as error:
        yield unreadable(path, error)
        return
    if len(rows) != len(found):
        yield f"accuracies.csv has {len(rows) - len(found)} rows twice"
    for key in [*expected, *(key for key in found if key not in expected)]:
        one, other = found.get(key), expected.get(key)
        if one != other:
            after, task, reading, split = key
            where = f"after_task {after}, eval_task {task}, {reading}, {split}"
            said = "nothing" if one is None else one
            given = "nothing" if other is None else other
            yield f"accuracies.csv says {said} for {where}, the matrix says {given}"


def of_merged(folder: Path) -> Iterator[str]:
    """A table of several runs says of each what its own summary.csv says."""
    rows = read_rows(folder / SUMMARY)
    named = {row.get("run") or f"seed={row.get('seed')}" for row in rows}
    for path in sorted(below(folder, SUMMARY)):
        name = path.parent.relative_to(folder).as_posix()
        inner = next(path.parent.glob(f"*/{SUMMARY}"), None)
        if inner is None and name not in named and first_row(path).get("status") == "complete":
            yield f"{SUMMARY} has no row of {name}"
    for row in rows:
        name = row.get("run") or f"seed={row.get('seed')}"
        own = folder / name / SUMMARY
        if not own.is_file():
            continue
        for key, value in first_row(own).items():
            if row.get(key, "") != value and key != "run":
                yield f"{SUMMARY} says {key} of {name} is {row.get(key)!r}, its own says {value!r}"


def first_row(path: Path) -> dict[str, str]:
    """The row of a run's summary.csv; empty where the file has none."""
    return next(iter(read_rows(path)), {})


def of_seeds(folder: Path) -> Iterator[str]:
    """What `seeds=[...]` has gathered is what its runs say, and the statistics are theirs."""
    found = {path.parent: first_row(path) for path in sorted(folder.glob(f"seed=*/{SUMMARY}"))}
    rows = [row for row in found.values() if row.get("status") == "complete"]
    try:
        said = {row["metric"]: row for row in read_rows(folder / STATISTICS)}
        expected = {name: interval([float(r[name]) for r in rows if r.get(name)]) for name in said}
    except (UserError, ValueError, KeyError) as error:
        yield unreadable(folder / STATISTICS, error)
        return
    except OverflowError:
        yield f"{STATISTICS} cannot be checked: its runs say numbers too large to square"
        return
    columns = set().union(*rows)
    metrics = [column.name for column in of_kind("metric")]
    for metric in (name for name in metrics if name in columns and name not in said):
        yield f"{STATISTICS} has no row of {metric}"
    cells = [(m, key, value) for m, found_ in expected.items() for key, value in found_.items()]
    for metric, key, value in cells:
        cell = said[metric].get(key) or ""
        agrees = not cell if value is None else abs(number(cell) - value) <= TOLERANCE
        if not agrees:
            own = "nothing" if value is None else value
            yield f"{STATISTICS} says {cell or 'nothing'} for {key} of {metric}, its runs {own}"
    names = {path.name for run in found for path in run.glob("*.csv")}
    for name in sorted(names - {SUMMARY}):
        if not (folder / name).is_file():
            yield f"{name} is missing"
            continue
        rows = read_rows(folder / name)
        whole = [row for row in rows if folder / f"seed={row.get('seed')}" in found]
        parts = [
            {"seed": run.get("seed"), **row}
            for path, run in found.items()
            if (path / name).is_file()
            for row in read_rows(path / name)
        ]
        if sorted(whole, key=str) != sorted(parts, key=str):
            yield f"{name} has {len(whole)} rows that are not the {len(parts)} of its runs"
