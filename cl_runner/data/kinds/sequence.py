"""Each task is a data set of its own."""

from __future__ import annotations

import torch

from cl_runner.config.benchmarks import Sequence
from cl_runner.core import Stream
from cl_runner.data.datasets import Arrays
from cl_runner.data.kinds.slices import sliced_labels
from cl_runner.data.streams import stream_of
from cl_runner.errors import check


def sequence_stream(config: Sequence, arrays: Arrays, scenario: str) -> Stream:
    """Each task is a data set of its own, a slice of what `data.sequences` has read.

    Its classes have outputs of their own; in domain-incremental learning the c-th classes of all
    data sets share one.
    """
    label = sliced_labels(arrays, len(arrays.slices), "task")
    if scenario == "domain":
        sizes = (label >= 0).sum(1).tolist()
        counts = ", ".join(f"{n} of {name}" for name, n in zip(arrays.slices, sizes, strict=True))
        check(
            len(set(sizes)) == 1,
            "scenario=domain needs data sets with the same number of classes, which share the "
            f"outputs: benchmark.datasets have {counts}",
        )
        label = torch.where(label >= 0, label % sizes[0], label)
    return stream_of(config, arrays, scenario, label, sliced=True)
