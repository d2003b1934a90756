"""A table as a data set in slices: the user's own, or one of those that come along (tables/)."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import as_file
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cl_runner.config.benchmarks import Files, Table
from cl_runner.config.schema import Benchmark
from cl_runner.data.arrays import Arrays, Decoded, Tell, check_name, tensors
from cl_runner.data.cache import cached
from cl_runner.data.cutting import Numbered, Where, cut, held_out
from cl_runner.data.encoding import features, labels
from cl_runner.data.frames import read_frame
from cl_runner.errors import UserError, check

if TYPE_CHECKING:
    from pandas import DataFrame

TABLE = "a table, .csv or .csv.gz, whose first line names its columns"
SUFFIXES = (".csv", ".csv.gz")
EMBEDDED = {  # the classes of the tables that come along
    "weather": ("0", "1"),
    "flights": ("0", "1"),
    "letter": tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
}
LETTER = Table(
    name="letter",
    kind="table",
    dataset="letter",
    num_tasks=1,  # one slice: a kind of benchmark that cuts by classes makes the tasks
    default_scenario="class",
    default_epochs=1,
    seed=0,
    label="letter",
)


def table(config: Benchmark, root: Path, path: Path | None, tell: Tell) -> Arrays:
    """The user's own table, cut. Raises UserError."""
    file = Path(path or "")
    check(path is not None, f"data.path must be set: {TABLE}")
    found = "is something else" if file.exists() else "does not exist"
    right = file.is_file() and file.name.lower().endswith(SUFFIXES)
    check(right, f"data.path must be {TABLE}; {file} {found}")
    own = as_table(config)
    return cached([file], shaping(own), file, root, lambda: read_table(file, own), tell)


def embedded(config: Benchmark, root: Path, path: Path | None, tell: Tell) -> Arrays:
    """A table that comes with the package; what is made of it is kept below root."""
    name = config.dataset
    check(path is None, f"data.path must not be set: {name} comes with cl_runner")
    own = LETTER if name == "letter" and not isinstance(config, Table) else as_table(config)
    with as_file(resources("cl_runner.data") / "tables" / f"{name}.csv.gz") as file:
        make = lambda: read_table(file, own)  # noqa: E731 - as in `table`
        return cached([file], shaping(own), root / name, root, make, tell)


def as_table(config: Benchmark) -> Table:
    """A configuration with the keys of a table. Raises UserError for one of another kind."""
    if not isinstance(config, Table):
        message = f"needs benchmark.kind=table, not {config.kind}"
        raise UserError(f"benchmark.dataset={config.dataset} {message}")
    return config


def shaping(config: Files) -> dict[str, Any]:
    """The keys that say what is made of a table."""
    keys = [
        "dataset",
        "label",
        "test_fraction",
        "categories",
        "text",
        "text_features",
        "clip",
        "drop",
    ]
    keys += ["slice", "slice_by"] if isinstance(config, Table) else []
    keys += ["base"] if config.base is not None else []
    keys += ["num_tasks"] if isinstance(config, Table) and config.slice is None else []
    return {key: value for key, value in asdict(config).items() if key in keys}


def read_table(file: Path, config: Table) -> Arrays:
    """A table, cut into slices."""

    def where(row: int) -> str:
        return f"{file}, row {row + 1}"

    frame = read_frame(file, config)
    return in_slices(frame, cut(frame, config, where), config, where, str(file))


def in_slices(
    frame: DataFrame, slices: Numbered, config: Files, where: Where, source: str
) -> Arrays:
    """The rows of a table as vectors and labels, of which each slice holds out a share."""
    label = labels(frame[config.label], where)
    others = [name for name in (config.label, getattr(config, "slice", None)) if name is not None]
    for name in (*label.names, *slices.names):
        check_name(name, source)
    base = min(config.base or 1, len(slices.names))  # slices that are one task
    tasks = Numbered(np.maximum(slices.place - (base - 1), 0), slices.names[base - 1 :])
    test = held_out(tasks, label.place, config.test_fraction, source)
    first, remarks = (tasks.place == 0) & ~test, list[str]()
    x = features(frame.drop(columns=others), config, first, where, remarks.append)
    decoded: Decoded = {"x_train": x[~test], "y_train": label.place[~test]}
    decoded |= {"x_test": x[test], "y_test": label.place[test]}
    return tensors(decoded, label.names)._replace(
        slice_train=torch.from_numpy(slices.place[~test]),
        slice_test=torch.from_numpy(slices.place[test]),
        slices=slices.names,
        remarks=tuple(remarks),
    )
