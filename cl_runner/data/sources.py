"""Where the data of a benchmark come from: which reader reads which `benchmark.dataset`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cl_runner.config.schema import Benchmark
from cl_runner.data.arrays import Arrays, Tell, expanded, reading
from cl_runner.data.datasets import CLASSES, OWN, load
from cl_runner.data.files import files
from cl_runner.data.folders import folders
from cl_runner.data.sequences import read_sequence
from cl_runner.data.table import EMBEDDED, embedded, table
from cl_runner.errors import one_of

# benchmark.dataset -> (configuration, data.root, data.path, tell) -> the data, in slices.
# Raises UserError for data that are missing, damaged or of the wrong kind.
READERS: dict[str, Callable[[Any, Path, Path | None, Tell], Arrays]] = {
    "folders": folders,
    "sequence": read_sequence,
    "table": table,
    "files": files,
    **dict.fromkeys(EMBEDDED, embedded),
}


def read(config: Benchmark, root: Path, path: Path | None, tell: Tell) -> Arrays:
    """The data of a benchmark, of which it makes a stream. Raises UserError."""
    one_of("benchmark.dataset", config.dataset, tuple(dict.fromkeys((*CLASSES, *OWN, *READERS))))
    reader = READERS.get(config.dataset)
    if reader is None:
        return load(config.dataset, root, path, tell)
    with reading(config.dataset):
        return reader(config, expanded(root), None if path is None else expanded(path), tell)
