"""Where the data of a benchmark come from: which reader reads which `benchmark.dataset`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cl_runner.config.schema import Benchmark
from cl_runner.data.arrays import expanded, reading
from cl_runner.data.datasets import Arrays, load
from cl_runner.data.folders import folders

Tell = Callable[[str], None]  # says a line to the user

# benchmark.dataset -> (configuration, data.root, data.path, tell) -> the data, in slices.
# Raises UserError for data that are missing, damaged or of the wrong kind.
READERS: dict[str, Callable[[Any, Path, Path | None, Tell], Arrays]] = {
    "folders": folders,
}


def read(config: Benchmark, root: Path, path: Path | None, tell: Tell) -> Arrays:
    """The data of a benchmark, of which it makes a stream. Raises UserError."""
    reader = READERS.get(config.dataset)
    if reader is None:
        return load(config.dataset, root, path, tell)
    with reading(config.dataset):
        return reader(config, expanded(root), None if path is None else expanded(path), tell)
