"""A folder of files, each of which is a task: arrays (.npz) or tables (.csv, .csv.gz)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from cl_runner.config.benchmarks import Files
from cl_runner.config.schema import Benchmark
from cl_runner.data.arrays import (
    CORRECT,
    KEYS,
    Arrays,
    Decoded,
    Tell,
    check_arrays,
    check_free,
    check_name,
    natural,
    tensors,
)
from cl_runner.data.cache import cached
from cl_runner.data.cutting import Numbered, held_out
from cl_runner.data.frames import read_frame
from cl_runner.data.npz import in_float32, members
from cl_runner.data.table import in_slices, shaping
from cl_runner.errors import UserError, check

TASK_FILES = "a folder of files <task>.npz, or <task>.csv or .csv.gz, one for each task"
SUFFIXES = (".npz", ".csv.gz", ".csv")
Found = Mapping[str, Path]  # the tasks' files by their names, in order


def files(config: Benchmark, root: Path, path: Path | None, tell: Tell) -> Arrays:
    """The user's own files, each a slice, in the natural order of their names. Raises UserError."""
    folder = Path(path or "")
    check(path is not None, f"data.path must be set: {TASK_FILES}")
    check(folder.is_dir(), f"data.path must be {TASK_FILES}; {folder} is no folder")
    if not isinstance(config, Files):
        message = f"benchmark.dataset=files needs benchmark.kind=files, not {config.kind}"
        raise UserError(message)
    found = listing(folder)
    arrays = next(iter(found.values())).suffix == ".npz"
    named = arrays or config.label is not None
    check(named, f"benchmark.label must name the column of {folder}/*.csv that holds the classes")
    make = (lambda: of_arrays(found, config)) if arrays else lambda: of_tables(found, config)
    return cached(list(found.values()), shaping(config), folder, root, make, tell)


def listing(folder: Path) -> Found:
    """The files of the tasks; hidden ones and other kinds are left out. Raises UserError."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        suffix = next((s for s in SUFFIXES if file.name.lower().endswith(s)), "")
        if not suffix or file.name.startswith(".") or file.is_dir():
            continue
        name = file.name[: -len(suffix)]
        check(name not in found, f"{file} and {found.get(name)} are one task's: delete one of them")
        check_name(name, f"{folder}")
        found[name] = file
    check(bool(found), f"data.path must be {TASK_FILES}; {folder} holds none")
    first = next(iter(found.values()))
    for file in found.values():
        alike = (file.suffix == ".npz") == (first.suffix == ".npz")
        check(
            alike, f"{folder} holds arrays and tables, {first.name} and {file.name}: keep one kind"
        )
    return {name: found[name] for name in sorted(found, key=natural)}


def of_tables(found: Found, config: Files) -> Arrays:
    """Tables of the same columns. Raises UserError."""
    import pandas as pd

    tables = [read_frame(file, config) for file in found.values()]
    paths, columns = list(found.values()), list(tables[0])
    for file, own in zip(paths, tables, strict=True):
        odd = sorted({*own} ^ {*columns})
        message = f"{file} and {paths[0]} differ in column {odd[0] if odd else ''}"
        check(not odd, f"{message}: all files need the same columns, or benchmark.drop=[...]")
    ends = list(accumulate(len(own) for own in tables))
    index = np.repeat(np.arange(len(tables)), [len(own) for own in tables])

    def where(row: int) -> str:
        t = int(index[row])
        return f"{paths[t]}, row {row + 1 - (ends[t] - len(tables[t]))}"

    frame = pd.concat([own[columns] for own in tables], ignore_index=True)
    slices = Numbered(index, tuple(found))
    return in_slices(frame, slices, config, where, str(paths[0].parent))


def of_arrays(found: Found, config: Files) -> Arrays:
    """Arrays of one shape and type, with or without a test part of their own. Raises UserError."""
    parts = [part_of(file, config) for file in found.values()]
    paths, first = list(found.values()), parts[0]["x_train"]
    for file, part in zip(paths, parts, strict=True):
        x = part["x_train"]
        message = f"{file}: x is {x.dtype} {x.shape[1:]}, but in {paths[0]} {first.dtype}"
        alike = x.dtype == first.dtype and x.shape[1:] == first.shape[1:]
        check(alike, f"{message} {first.shape[1:]}: bring all files to one kind and shape")
    check_free("the arrays of all files", sum(a.nbytes for part in parts for a in part.values()))
    whole = {key: np.concatenate([part[key] for part in parts]) for key in KEYS}
    values = np.unique(whole["y_train"])
    for key in ("y_train", "y_test"):
        whole[key] = np.searchsorted(values, whole[key])
    tasks = torch.arange(len(parts))
    sizes = {key: torch.tensor([len(part[key]) for part in parts]) for key in ("y_train", "y_test")}
    return tensors(whole, tuple(str(value) for value in values.tolist()))._replace(
        slice_train=tasks.repeat_interleave(sizes["y_train"]),
        slice_test=tasks.repeat_interleave(sizes["y_test"]),
        slices=tuple(found),
    )


def part_of(file: Path, config: Files) -> Decoded:
    """A task's arrays, by KEYS. Raises UserError."""
    there = members(file, ("x", "y", *KEYS))
    own = all(key in there for key in KEYS)
    check(
        own or ("x" in there and "y" in there),
        f"{file} must hold x and y, or {', '.join(KEYS)}; it has {', '.join(there) or 'none'}",
    )
    part = {key: there[key if own else key[0]] for key in KEYS}
    check_arrays(part, file, CORRECT)
    part = in_float32(part, file)
    only = np.setdiff1d(part["y_test"], part["y_train"])
    some = ", ".join(str(value) for value in only[:5])
    check(not some, f"{file}: y_test has labels that y_train has not, {some}; {CORRECT}")
    if not own:
        y = np.unique(part["y_train"], return_inverse=True)[1].reshape(-1)
        whole = Numbered(np.zeros(len(y), np.int64), (file.name,))
        test = held_out(whole, y, config.test_fraction, str(file))
        part = {key: part[key][~test if key.endswith("train") else test] for key in KEYS}
    return part
