"""The files that a run leaves: written whole or not at all, and read back for analysis.

All accuracies are fractions in [0, 1] at full precision; a cell that was not measured is empty.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cl_runner.config import IMMATERIAL, whole
from cl_runner.errors import UserError, check
from cl_runner.functional.metrics import Matrix, summarise, summarise_anytime
from cl_runner.reading import LONG, read_text

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

Row = Mapping[str, Any]
FORMULA = tuple("=+-@\t\r")  # what a spreadsheet takes for a formula at the beginning of a cell
DAMAGED = "the file is damaged"
PART = re.compile(r"\.(?:[\w-]+\.(?:csv|json|yaml|safetensors|png))\.\d+\.part")  # see write_bytes
METRICS = (
    *("ACC", "BWT", "FWT", "forgetting", "learning_accuracy"),
    *("average_incremental_accuracy", "intransigence"),
    *("min_ACC", "worst_case_ACC", "average_anytime_accuracy"),
)
# R by (split, reading): shape (T + 1, T), NaN where not measured. See cl_runner.functional.metrics.
Matrices = dict[tuple[str, str], Matrix]
# The rows of further files, by the files' names without `.csv`.
Tables = dict[str, list[dict[str, Any]]]
# What was measured within the tasks, alike: rows of after_task, step, and accuracies.
Curves = dict[tuple[str, str], list[list[float]]]


def reproducible(column: str) -> bool:
    """Whether a column of a run's files follows from the configuration alone: not from the clock.

    Nor from what else the process holds in memory.
    """
    return "seconds" not in column and "peak_memory" not in column


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises UserError for a full disk or read-only folder."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it into place.

    The name is on the disk, too, before anything else is written or removed. Raises UserError where
    that fails, for a disk that is full or a folder that is read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Flush to the disk which files a folder has, where the system can: Windows cannot."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except PermissionError:  # of Windows, or of a folder that may be written and not read
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such flush
            raise
    finally:
        os.close(number)


def make_folder(folder: Path) -> None:
    """Make a folder for results; it and those above it, whoever made them, are on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for above in folder.absolute().parents:
        sync_folder(above)


def remove_leftovers(out: Path) -> None:
    """Remove what a process that was killed had half written; nobody else is at work in `out`."""
    for path in (*out.glob(".*.part"), *out.glob("pictures/.*.part")):
        if PART.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def write_grid(path: Path, images: Tensor) -> None:
    """Images [n, C, H, W] in [0, 1] as one PNG: eight a row, a pixel between them.

    Of images that have neither 1 nor 3 channels it shows the first channel.
    """
    from PIL import Image

    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    n, C, H, W = images.shape
    columns = min(n, 8)
    rows = -(-n // columns)
    sheet = np.full((rows * (H + 1) - 1, columns * (W + 1) - 1, C), 128, dtype=np.uint8)
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for i, image in enumerate(pixels):
        y, x = i // columns * (H + 1), i % columns * (W + 1)
        sheet[y : y + H, x : x + W] = image
    path.parent.mkdir(exist_ok=True)
    png = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if C == 1 else sheet).save(png, format="PNG")
    write_bytes(path, png.getvalue())


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV (see `csv_text`)."""
    write_text(path, csv_text(rows))


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV, columns in order of first appearance; None and NaN are empty cells."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    header = [_cell(column) for column in columns]
    lines = [header, *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "".join(f"{_line(cells)}\n" for cells in lines)


def _line(cells: Sequence[str]) -> str:
    # A cell is quoted if it has a character of the line's end: both kinds of a line break shall be.
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n")


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value)
    text = str(value)
    return f"'{text}" if _is_formula(text) else text


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet might execute a cell, or might have, but for apostrophes before it."""
    if text.lstrip("'")[:1] not in FORMULA:
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def _plain(cell: str) -> str:
    """The text of a cell without the apostrophe that `_cell` may have put before it."""
    return cell[1:] if cell[:1] == "'" and cell.lstrip("'")[:1] in FORMULA else cell


def matrix_name(split: str, reading: str, own_reading: str) -> str:
    """A matrix's file: `accuracy_matrix.csv` is the scenario's own reading of the test data."""
    parts = ["accuracy_matrix"]
    if split != "test":
        parts.append(split)
    if reading != own_reading:
        parts.append(reading)
    return "_".join(parts) + ".csv"


def write_matrices(
    out: Path, matrices: Matrices, own_reading: str, curves: Curves | None = None
) -> None:
    """One `accuracy_matrix*.csv` per split and reading, and `accuracies.csv` with all of them tidy.

    In both, `after_task` 0 is the untrained network and tasks count from 1. curves: where there may
    be some, the tidy table has a column `step` and their rows among the others, in order of time:
    so many optimizer steps into the task that follows; 0 is the matrices' rows.
    """
    tidy: list[Row] = []
    for (split, reading), R in matrices.items():
        rows = [
            {"after_task": i, **{f"task_{j + 1}": value for j, value in enumerate(row)}}
            for i, row in enumerate(R.tolist())
        ]
        write_rows(out / matrix_name(split, reading, own_reading), rows)
        measured = [[i, 0, *row] for i, row in enumerate(R.tolist())]
        within = (curves or {}).get((split, reading), [])
        for i, step, *row in sorted([*measured, *within], key=lambda row: row[:2]):
            at = {"after_task": int(i)} | ({} if curves is None else {"step": int(step)})
            tidy += [
                {**at, "eval_task": j + 1, "reading": reading, "split": split, "accuracy": value}
                for j, value in enumerate(row)
                if not math.isnan(value)
            ]
    write_rows(out / "accuracies.csv", tidy)


def read_curves(path: Path) -> Curves | None:
    """What accuracies.csv holds besides the matrices; None if it has no column `step`.

    Raises KeyError or ValueError if it is not such a table.
    """
    rows = read_rows(path)
    if rows and "step" not in rows[0]:
        return None
    curves: Curves = {}
    for row in rows:
        own = curves.setdefault((row["split"], row["reading"]), [])
        at = [float(row["after_task"]), float(row["step"])]
        if at[1]:
            if not own or own[-1][:2] != at:
                own.append(at)
            own[-1].append(float(row["accuracy"]))
    return curves


def read_matrix(path: str | Path) -> Matrix:
    """R, shape (T + 1, T), from an `accuracy_matrix*.csv`; empty cells are NaN.

    Raises UserError if the file is not such a matrix.
    """
    path = Path(path)
    try:
        header, *rows = list(csv.reader(io.StringIO(read_text(path, LONG), newline="")))
        T = len(header) - 1
        columns = ["after_task", *(f"task_{j + 1}" for j in range(T))]
        if T < 1 or header != columns or [row[0] for row in rows] != list(map(str, range(T + 1))):
            raise ValueError("its rows or columns are not those of a run")
        if any(len(row) != T + 1 for row in rows):
            raise ValueError("cells are missing")
        R = np.array([[_fraction(cell) for cell in row[1:]] for row in rows])
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{path} is not an accuracy matrix of cl-run: {error}") from None
    return R


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


def metric_columns(
    matrices: Matrices, own_reading: str, curves: Curves | None = None
) -> dict[str, float | None]:
    """Every metric of every matrix; the scenario's own reading of the test data without prefix.

    `intransigence` needs a joint bound, which a single run does not have. The metrics that need
    curves are there where they are.
    """
    columns: dict[str, float | None] = {}
    for (split, reading), R in matrices.items():
        prefix = "" if split == "test" else f"{split}_"
        prefix += "" if reading == own_reading else f"{reading}_"
        values = summarise(R)
        if curves is not None:
            values |= summarise_anytime(R, curves.get((split, reading), []))
        columns |= {prefix + name: value for name, value in values.items()}
        if not prefix:
            columns["intransigence"] = None
    return columns


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, cells as text. Raises UserError where it is damaged."""
    content = read_text(path, LONG)
    try:
        lines = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"cannot read {path}: {error}") from None
    end = "ends within a line" if content else "is empty"
    check(content.endswith("\n"), f"{path} {end}; {DAMAGED}")
    header = [_plain(name) for name in lines[0]]
    check(len(set(header)) == len(header), f"{path}: a column is there twice; {DAMAGED}")
    for i, line in enumerate(lines[1:], 2):
        cells = f"line {i} has {len(line)} of {len(header)} cells"
        check(len(line) == len(header), f"{path}: {cells}; {DAMAGED}")
    return [dict(zip(header, map(_plain, line), strict=True)) for line in lines[1:]]


def merge_seeds(out: Path, runs: Mapping[int, Path]) -> str:
    """Gather the runs of several seeds in `out`: their files with a column `seed`, and statistics.

    `summary.csv` has a row per seed; `statistics.csv` has, for each metric, the number n of
    complete runs, their mean, standard deviation and 95 % interval of the mean (Student's t).
    Returns the main metrics as text.
    """
    found = {seed: path for seed, path in runs.items() if (path / "summary.csv").exists()}
    rows = {seed: read_rows(path / "summary.csv")[0] for seed, path in found.items()}
    write_rows(out / "summary.csv", list(rows.values()))
    files = {file.name for path in found.values() for file in path.glob("*.csv")}
    for name in sorted(files - {"summary.csv"}):
        write_rows(
            out / name,
            [{"seed": s, **row} for s, path in found.items() for row in read_rows(path / name)],
        )
    complete = [row for row in rows.values() if row["status"] == "complete"]
    ends = tuple(f"_{name}" for name in METRICS)
    metrics = [n for n in next(iter(rows.values()), {}) if n in METRICS or n.endswith(ends)]
    statistics = [
        {"metric": name, **interval([float(row[name]) for row in complete if row[name]])}
        for name in dict.fromkeys([*(m for m in METRICS if m in metrics), *metrics])
    ]
    write_rows(out / "statistics.csv", statistics)
    lines = [f"{'metric':20} {'n':>3} {'mean':>8} {'95 % interval':>20}"]
    for row in statistics:
        if row["metric"] in {"ACC", "forgetting", "BWT", "FWT", "learning_accuracy"} and row["n"]:
            low, high = (f"{row[k]:.4f}" if row[k] is not None else "-" for k in ("low", "high"))
            lines.append(f"{row['metric']:20} {row['n']:>3} {row['mean']:8.4f} {low:>9} .. {high}")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, sd and the 95 % interval low .. high of the mean; None where n is too small."""
    n = len(values)
    mean = sum(values) / n if n else None
    if mean is None or n < 2:
        return {"n": n, "mean": mean, "sd": None, "low": None, "high": None}
    from scipy.special import stdtrit  # scipy.stats has the same, and takes a second to import

    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as one level: {"strategy.lambda": 1.0, ...}."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def config_hash(config: Mapping[str, Any]) -> str:
    """Which run a resolved configuration stands for: 16 hex digits of its SHA-256.

    Of its JSON with sorted keys and 1 in the place of 1.0, without those that may change when a run
    goes on.
    """
    material = {k: v for k, v in flatten(config).items() if k not in IMMATERIAL}
    text = json.dumps(whole(material), sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def format_matrix(R: Matrix) -> str:
    """R as text, one row per `after_task`, in thousandths without the leading zero."""

    def cell(value: float) -> str:
        if math.isnan(value):
            return "    "
        return f"{value:.3f}".removeprefix("0").rjust(5)

    T = R.shape[1]
    lines = ["after \\ task " + " ".join(f"{j + 1:>5}" for j in range(T))]
    lines += [f"{i:>12} " + " ".join(map(cell, row)) for i, row in enumerate(R.tolist())]
    return "\n".join(lines)


def in_words(columns: Mapping[str, float | None]) -> str:
    """The two metrics that matter most, in a few words."""
    values = {name: columns.get(name) for name in ("ACC", "forgetting")}
    known = {name: v for name, v in values.items() if v is not None and not math.isnan(v)}
    return ", ".join(f"{name} {v:.3f}" for name, v in known.items())


def format_metrics(columns: Mapping[str, float | None], readings: Iterable[str]) -> str:
    """The metrics as text, a row per reading; the first is the scenario's own."""
    names = ("ACC", "forgetting", "BWT", "FWT", "learning_accuracy")
    lines = ["reading   " + "  ".join(name.rjust(7) for name in names)]
    for i, reading in enumerate(readings):
        values = [columns.get(name if i == 0 else f"{reading}_{name}") for name in names]
        cells = ["-" if v is None or math.isnan(v) else f"{v:.4f}" for v in values]
        widths = [max(len(name), 7) for name in names]
        row = "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
        lines.append(f"{reading + '-IL':10}{row}")
    return "\n".join(lines)
