"""Where the data of a benchmark come from: which reader reads which `benchmark.dataset`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cl_runner.config.schema import Benchmark
from cl_runner.data.arrays import Arrays, Tell, expanded, reading
from cl_runner.data.datasets import CLASSES, OWN, load
from cl_runner.data.files import files
from cl_runner.data.folders import folders
from cl_runner.data.sequences import read_sequence
from cl_runner.data.streams import CPU, resize
from cl_runner.data.table import EMBEDDED, embedded, table
from cl_runner.errors import one_of

# benchmark.dataset -> (configuration, data.root, data.path, tell) -> the data, in slices.
# Raises UserError for data that are missing, damaged or of the wrong kind.
READERS: dict[str, Callable[[Any, Path, Path | None, Tell], Arrays]] = {
    "folders": folders,
    "table": table,
    "files": files,
    **dict.fromkeys(EMBEDDED, embedded),
}


def read(
    config: Benchmark, root: Path, path: Path | None, tell: Tell, device: torch.device = CPU
) -> Arrays:
    """The data of a benchmark, of which it makes a stream, on the CPU. Raises UserError.

    tell: of what is damaged and made again, and of the remarks on the data, in every run.
    device: where images are brought to the height and width of benchmark.resize.
    """

    def resized(arrays: Arrays) -> Arrays:
        channels, height, width = arrays.x_train.shape[1:]
        x, x_test = (resize(v, config.resize, device) for v in (arrays.x_train, arrays.x_test))
        return arrays._replace(x_train=x, x_test=x_test, given=(channels, height, width))

    def loaded(dataset: str) -> Arrays:
        return resized(load(dataset, root, path, tell, config.resize))

    there = (*CLASSES, *OWN, *READERS, "sequence")
    one_of("benchmark.dataset", config.dataset, tuple(dict.fromkeys(there)))
    own: Any = config  # of the class that the reader reads
    with reading(config.dataset):
        if config.dataset == "sequence":
            return read_sequence(own, loaded)
        reader = READERS.get(config.dataset)
        if reader is None:
            return loaded(config.dataset)
        arrays = reader(own, expanded(root), None if path is None else expanded(path), tell)
        for remark in arrays.remarks:
            tell(remark)
        return resized(arrays)
