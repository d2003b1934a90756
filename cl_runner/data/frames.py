"""Tables (.csv, .csv.gz), which somebody else may have written, as pandas' frames."""

from __future__ import annotations

import gzip
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cl_runner.config.benchmarks import Files
from cl_runner.data.arrays import check_free, check_name, told
from cl_runner.data.npz import DENSEST, SMALL
from cl_runner.errors import UserError, check
from cl_runner.machine import ram
from cl_runner.machine.reading import regular

if TYPE_CHECKING:
    from pandas import DataFrame


def read_frame(file: Path, config: Files) -> DataFrame:
    """The rows of a table whose first line names its columns, without those of benchmark.drop.

    Values are words, numbers, or True and False; nothing in them is executed. Raises UserError for
    what is no such table, for columns that it has not, and for values that are missing.
    """
    import pandas as pd

    content = unpacked(file)
    no_table = told(f"{file} is no table with commas between its columns", "correct it")
    reading: dict[str, Any] = {"skipinitialspace": True, "encoding": "utf-8-sig"}
    with no_table, warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the first
        head = pd.read_csv(io.BytesIO(content), header=None, nrows=1, dtype=str, **reading)
        frame = pd.read_csv(io.BytesIO(content), index_col=False, low_memory=False, **reading)
    check_names(file, [str(name) for name in head.iloc[0].dropna()])
    check_columns(file, list(frame), config)
    frame = frame.drop(columns=config.drop)
    bare = next((name for name in frame if name.startswith("Unnamed: ")), "")
    message = f"{file}: a column has no name: give it one, or leave it out by"
    check(not bare, f"{message} \"benchmark.drop=['{bare}']\"")
    check(len(frame) > 0, f"{file} has no rows below the names of its columns")
    missing = frame.isna().to_numpy()  # [N, columns]
    if missing.any():
        row = int(missing.any(axis=1).argmax())
        column = frame.columns[int(missing[row].argmax())]
        raise UserError(
            f"{file}, row {row + 1}: no value in column {column} (it is empty, NA, NaN or null): "
            f"fill it, delete the row, or leave the column out by benchmark.drop=[{column}]"
        )
    return frame


def check_names(file: Path, names: list[str]) -> None:
    """Raise UserError unless the first line names columns, each by a name of its own."""
    for name in names:
        check_name(name, f"{file}")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), "")
    check(not twice, f"{file} has two columns {twice}: give each a name of its own")
    other = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), "")
    check(not other, f"{file} has {other!r} between its columns: save it with commas")


def check_columns(file: Path, there: list[str], config: Files) -> None:
    """Raise UserError for columns that the keys of the benchmark name and a table has not."""
    some = ", ".join(there[:30]) + (", ..." if there[30:] else "")
    for key, columns in config.columns().items():
        for column in columns:
            message = f"benchmark.{key}={column}: {file} has no such column; it has {some}"
            check(column in there, message)


def unpacked(file: Path) -> bytes:
    """The bytes of a table. Raises UserError for what is damaged, or too long for the memory."""
    with regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if file.suffix != ".gz":
            check_free(f"the rows of {file}", 3 * size)
            return stream.read()
        free = ram.available(torch.device("cpu"))
        most = min(max(SMALL, DENSEST * size), (free or 2**62) // 3)
        with told(f"{file} is damaged, or not packed by gzip", "replace it"):
            content = gzip.GzipFile(fileobj=stream).read(most + 1)
    check(
        len(content) <= most,
        f"{file} unpacks to more than {ram.size(most)}, which is {DENSEST} times its size or more "
        "than memory has room for: if that is meant, unpack it",
    )
    return content
