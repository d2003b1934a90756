"""Files written whole or not at all, and tables as CSV; standard library only."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cl_runner.errors import UserError, check
from cl_runner.machine import systems
from cl_runner.machine.reading import LONG, read_text
from cl_runner.results.titles import Titles, titled

Row = Mapping[str, Any]
FORMULA = tuple("=+-@\t\r")  # what a spreadsheet takes for a formula at the beginning of a cell
DAMAGED = "the file is damaged"
# Copies of a run's files that MLflow and Weights & Biases keep, below their own names of the run.
COPY = re.compile(
    r"/[0-9a-f]{32}/artifacts/[^/]+$"
    r"|/(latest-run|(offline-)?run-[0-9]{8}_[0-9]{6}-[^/]+)/files/[^/]+$"
)
PART = re.compile(r"\.(?:[\w-]+\.(?:csv|json|yaml|safetensors|png))\.\d+\.part")  # see write_bytes


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
        systems.replace(temporary, path)
        systems.sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder for results; it and those above it, whoever made them, are on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for above in folder.absolute().parents:
        systems.sync_folder(above)


def check_writable(key: str, folder: Path) -> None:
    """Raise UserError, naming the key that asks for it, unless a folder can be made and written."""
    trial = folder / f".{os.getpid()}.trial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{key}: cannot write {folder}: {error.strerror}") from None


def below(folder: Path, name: str) -> Iterator[Path]:
    """The files of a name in and below a folder, without the copies that loggers have of them."""
    for path in folder.rglob(name):
        if not is_copy(path):
            yield path


def is_copy(path: Path) -> bool:
    """Whether a file is a logger's copy of a run's."""
    return bool(COPY.search(path.as_posix()))


def remove_leftovers(out: Path) -> None:
    """Remove what a process that was killed had half written; nobody else is at work in `out`."""
    for path in (*out.glob(".*.part"), *out.glob("pictures/.*.part")):
        if PART.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV (see `csv_text`)."""
    write_text(path, csv_text(rows))


# Lines of a run's files by what they tell: written again after each task, and formatted once.
Lines = dict[tuple[object, ...], str]


def write_grown(path: Path, rows: Sequence[Row], titles: Titles, made: Lines) -> None:
    """Write rows with the same columns each; those that were there the last time are `made`."""
    for i in range(len(rows)):
        if (path.name, i) not in made:
            made[path.name, i] = line(list(titled([rows[i]], titles)[0].values()))
    head = line(list(titled(rows[:1], titles)[0]))
    write_text(path, head + "".join(made[path.name, i] for i in range(len(rows))))


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV, columns in order of first appearance; None and NaN are empty cells."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return line(columns) + "".join(line([row.get(c) for c in columns]) for row in rows)


def line(values: Sequence[object]) -> str:
    """A line of CSV."""
    # A cell is quoted if it has a character of the line's end: both kinds of a line break shall be.
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(map(_cell, values))
    return text.getvalue().removesuffix("\r\n") + "\n"


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
