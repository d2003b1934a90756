"""The accuracy matrices of a run as files, and what follows from them.

All accuracies are fractions in [0, 1] at full precision; a cell that was not measured is empty.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cl_runner.errors import UserError
from cl_runner.functional.metrics import Matrix, personal
from cl_runner.machine.reading import LONG, read_text
from cl_runner.results.columns import EDIT_READINGS, column_name, formulas
from cl_runner.results.files import Lines, Row, line, read_rows, write_text
from cl_runner.results.names import ACCURACY_TABLE
from cl_runner.results.titles import TASKS, UNNAMED, Titles, columns, titled

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike


# R by (split, reading): shape (T + 1, T), NaN where not measured. See cl_runner.functional.metrics.
Matrices = dict[tuple[str, str], Matrix]
# The rows of further files, by the files' names without `.csv`.
Tables = dict[str, list[dict[str, Any]]]
# What was measured within the tasks, alike: rows of after_task, step, and accuracies.
Curves = dict[tuple[str, str], list[list[float]]]


def matrix_name(split: str, reading: str, own_reading: str) -> str:
    """A matrix's file: `accuracy_matrix.csv` is the scenario's own reading of the test data."""
    parts = ["accuracy_matrix"]
    if split != "test":
        parts.append(split)
    if reading != own_reading:
        parts.append(reading)
    return "_".join(parts) + ".csv"


def write_matrices(
    out: Path,
    matrices: Matrices,
    own_reading: str,
    curves: Curves | None = None,
    titles: Titles = UNNAMED,
    made: Lines | None = None,
) -> None:
    """One `accuracy_matrix*.csv` per split and reading, and `accuracies.csv` with all of them tidy.

    In both, `after_task` 0 is the untrained network and tasks count from 1. curves: where there may
    be some, the tidy table has a column `step` and their rows among the others, in order of time:
    so many optimizer steps into the task that follows; 0 is the matrices' rows. titles: where tasks
    have names, these are the columns of the matrices, and further columns say them in both. made:
    the lines of a run that writes them again when it has measured more.
    """
    made = {} if made is None else made
    when = ["after_task"] if curves is None else ["after_task", "step"]
    head = cells(dict.fromkeys([*when, "eval_task"]), titles)
    tidy = [line([*head, "reading", "split", "accuracy"])]
    for (split, reading), R in matrices.items():
        T, there = R.shape[1], [not np.isnan(row).all() for row in R]
        name = matrix_name(split, reading, own_reading)
        lines = [line([*cells({"after_task": None}, titles), *columns_of(R, titles)])]
        for i in range(T + 1):
            after = cells({"after_task": i}, titles).values()
            if there[i] and (name, i) not in made:
                made[name, i] = line([*after, *R[i].tolist()])
            lines.append(made[name, i] if there[i] else f"{line([*after])[:-1]}{',' * T}\n")
        write_text(out / name, "".join(lines))
        rows: dict[tuple[float, float], Any] = {(i, 0): R[i] for i in range(T + 1) if there[i]}
        for after_task, step, *row in (curves or {}).get((split, reading), []):
            rows[after_task, step] = row
        for place in sorted(rows):
            key = (ACCURACY_TABLE, split, reading, *place)
            if key not in made:
                at = dict(zip(when, map(int, place), strict=False))
                row = np.asarray(rows[place]).tolist()
                counted = [cells(at | {"eval_task": j + 1}, titles).values() for j in range(T)]
                made[key] = "".join(
                    line([*counted[j], reading, split, value])
                    for j, value in enumerate(row)
                    if not math.isnan(value)
                )
            tidy.append(made[key])
    write_text(out / ACCURACY_TABLE, "".join(tidy))


def cells(row: Row, titles: Titles) -> Row:
    """A row with the names of what it counts."""
    return titled([row], titles)[0]


def columns_of(R: Matrix, titles: Titles) -> list[str]:
    """The columns of a matrix's file, one for each task."""
    return columns(titles.tasks) if titles.tasks else [f"task_{j + 1}" for j in range(R.shape[1])]


def read_curves(path: Path, num_tasks: int) -> Curves | None:
    """What accuracies.csv holds besides the matrices; None if it has no column `step`.

    Cells that are not there are NaN. Raises KeyError or ValueError if it is not such a table.
    """
    rows = read_rows(path)
    if rows and "step" not in rows[0]:
        return None
    curves: Curves = {}
    for row in rows:
        own = curves.setdefault((row["split"], row["reading"]), [])
        at, task = [float(row["after_task"]), float(row["step"])], int(row["eval_task"])
        if not 1 <= task <= num_tasks:
            raise ValueError(f"eval_task {task} is none of {num_tasks} tasks")
        if at[1]:
            if not own or own[-1][:2] != at:
                own.append([*at, *[math.nan] * num_tasks])
            own[-1][1 + task] = float(row["accuracy"])
    return curves


def read_matrix(path: str | Path) -> Matrix:
    """R, shape (T + 1, T), from an `accuracy_matrix*.csv`; empty cells are NaN.

    Raises UserError if the file is not such a matrix.
    """
    path = Path(path)
    try:
        header, *rows = list(csv.reader(io.StringIO(read_text(path, LONG), newline="")))
        first = 2 if header[1:2] == [TASKS["after_task"]] else 1  # column of a task
        T = len(header) - first
        wanted = ["after_task", *(f"task_{j + 1}" for j in range(T))]
        right = header == wanted or (first == 2 and header[0] == "after_task")
        if T < 1 or not right or [row[0] for row in rows] != list(map(str, range(T + 1))):
            raise ValueError("its rows or columns are not those of a run")
        if any(len(row) != T + first for row in rows):
            raise ValueError("cells are missing")
        R = np.array([[_fraction(cell) for cell in row[first:]] for row in rows])
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{path} is not an accuracy matrix of cl-run: {error}") from None
    return R


def read_titles(path: Path) -> list[str]:
    """The names of the tasks in an `accuracy_matrix*.csv`; none where they have none."""
    return [row[TASKS["after_task"]] for row in read_rows(path)[1:] if TASKS["after_task"] in row]


def personal_rows(R: Matrix) -> list[dict[str, Any]]:
    """The rows of personal.csv: what each task after the first gains over the first's model."""
    return [
        {
            "task": p,
            "common": float(R[1, p - 1]),
            "own": float(R[p, p - 1]),
            "gain": float(gain),
            "others_loss": float(lost),
            "at_the_end": float(R[-1, p - 1]),
        }
        for p, (gain, lost) in enumerate(personal(R), 2)
    ]


def _number(cell: Any) -> float:
    return math.nan if cell == "" else float(cell)


def _fraction(cell: str) -> float:
    value = float(cell) if cell else math.nan
    if cell and not 0 <= value <= 1:
        raise ValueError(f"{cell} is no fraction in [0, 1]")
    return value


def read_accuracies(path: str | Path) -> pd.DataFrame:
    """The tidy table: after_task, eval_task, reading, split, accuracy."""
    import pandas as pd

    cells = pd.read_csv(path, dtype={"accuracy": str})  # pandas 2 would not read the last bit
    return cells.assign(accuracy=[float(cell) for cell in cells.accuracy.fillna("nan")])


def summarise(R: ArrayLike, curve: ArrayLike | None = None) -> dict[str, float]:
    """The metrics of a matrix by their names; with a curve, those that need it as well.

    See `cl_runner.functional.metrics` for what R and the curve are.
    """
    values = {name: formula(R) for name, formula in formulas("matrix").items()}
    if curve is not None:
        values |= {name: formula(R, curve) for name, formula in formulas("curve").items()}
    return values


def metric_columns(
    matrices: Matrices,
    own_reading: str,
    curves: Curves | None = None,
    online: Sequence[Mapping[str, Any]] | None = None,
    edits: Sequence[Mapping[str, Any]] | None = None,
    *,
    base: bool = False,
) -> dict[str, float | None]:
    """Every metric of every matrix; the scenario's own reading of the test data without prefix.

    The metrics that need a joint bound have none in a single run. Those that need curves are there
    where curves are, and those of the rows of online.csv and edits.csv where these are. base:
    whether the first task makes a common model, over which the others gain.
    """
    columns: dict[str, float | None] = {}
    for (split, reading), R in matrices.items():
        curve = None if curves is None else curves.get((split, reading), [])
        values = [*summarise(R, curve).items()]
        values += [(name, f(R)) for name, f in formulas("base").items()] if base else []
        columns |= {column_name(name, split, reading, own_reading): value for name, value in values}
        if (split, reading) == ("test", own_reading):
            columns |= dict.fromkeys(formulas("bound"))
    if online is not None:
        counts = [(float(row["samples"]), float(row["hits"])) for row in online]
        columns |= {name: formula(counts) for name, formula in formulas("online").items()}
    if edits is not None:
        read = [[_number(row[name]) for name in EDIT_READINGS] for row in edits]
        columns |= {name: formula(read) for name, formula in formulas("edits").items()}
    return columns
