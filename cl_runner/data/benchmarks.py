"""From a data set to a sequence of tasks: which kinds of benchmarks there are.

A benchmark is a dataclass (`config.benchmarks`) and a function that makes a `Stream` of it, both in
`KINDS`; those of the user's own packages are found by `config.plugins`. Such a function gets the
configuration, the data (images resized and padded already) and the scenario. It says which output
stands for which class in each task, and what a task does to the images; `streams.stream_of` makes
the stream of that.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cl_runner.config.benchmarks import (
    Conditions,
    Edits,
    Files,
    Folders,
    LabelPermuted,
    Permuted,
    RandomLabels,
    Rotated,
    Sequence,
    Split,
    Table,
)
from cl_runner.config.plugins import BENCHMARK, theirs
from cl_runner.config.schema import Benchmark
from cl_runner.core import Stream
from cl_runner.data.datasets import Arrays
from cl_runner.data.kinds.conditions import conditions_stream
from cl_runner.data.kinds.edits import edits_stream
from cl_runner.data.kinds.label_permuted import label_permuted_stream
from cl_runner.data.kinds.permuted import permuted_stream
from cl_runner.data.kinds.random_labels import random_labels_stream
from cl_runner.data.kinds.rotated import rotated_stream
from cl_runner.data.kinds.sequence import sequence_stream
from cl_runner.data.kinds.slices import slices_stream
from cl_runner.data.kinds.split import split_stream
from cl_runner.data.streams import in_three_channels, pad
from cl_runner.errors import check

# benchmark.kind -> its dataclass, and (configuration, data, scenario) -> Stream on the CPU.
# `config.plugins` reads it without torch.
KINDS: dict[str, tuple[type[Benchmark], Callable[[Any, Arrays, str], Stream]]] = {
    "split": (Split, split_stream),
    "permuted": (Permuted, permuted_stream),
    "rotated": (Rotated, rotated_stream),
    "conditions": (Conditions, conditions_stream),
    "label_permuted": (LabelPermuted, label_permuted_stream),
    "random_labels": (RandomLabels, random_labels_stream),
    "edits": (Edits, edits_stream),
    "folders": (Folders, slices_stream),
    "sequence": (Sequence, sequence_stream),
    "files": (Files, slices_stream),
    "table": (Table, slices_stream),
}


def build_stream(
    config: Benchmark,
    scenario: str,
    arrays: Arrays,
    device: torch.device,
    *,
    augmented: bool,
    plugins: abc.Sequence[str] = (),
    coloured: bool = False,
) -> Stream:
    """The stream of tasks that a benchmark's configuration describes, its tensors on `device`.

    Scenarios (van de Ven et al. 2022, Nature Machine Intelligence 4, 1185): in task- and
    class-incremental learning each task has outputs of its own, in domain-incremental learning all
    tasks share them; a split task's classes are then numbered within the task.
    coloured: grey images are shown in three channels.
    Raises UserError for what the data set cannot give, and for a kind that is not there.
    """
    _, function = theirs(BENCHMARK, config.kind, plugins) or KINDS[config.kind]
    x, x_test = (pad(images, config.pad_to) for images in (arrays.x_train, arrays.x_test))
    stream = function(config, arrays._replace(x_train=x, x_test=x_test), scenario)
    check_stream(stream, config, augmented=augmented)
    shown = in_three_channels(stream) if coloured else stream
    return replace(shown, given=given(arrays, x, stream)).on(device)


def given(arrays: Arrays, x: Tensor, stream: Stream) -> Tensor | None:
    """No image [0, C, H, W], of the shape and type of the data set's.

    x: the images, resized and padded, of which the stream was made. None where it shows others:
    what a task does to images comes after that, and is no part of the model.
    """
    if stream.transform is not None or stream.x.shape[1:] != x.shape[1:]:
        return None
    return x.new_empty(0, *(arrays.given or arrays.x_train.shape[1:]))


def check_stream(stream: Stream, config: Benchmark, *, augmented: bool) -> None:
    """Raise UserError for a stream that cannot be trained on, and name what to change."""
    kind, T = config.kind, config.num_tasks or len(stream)
    check(isinstance(stream, Stream), f"benchmark.kind={kind}: stream() must return a Stream")
    check(len(stream) == T, f"benchmark.kind={kind}: stream() has {len(stream)} tasks, not {T}")
    for name, table in stream.tables.items():
        message = f"benchmark.kind={kind}: table {name} must have a row for each of {T} tasks"
        check(table.ndim > 0 and len(table) == T, message)
    check(
        not augmented or stream.transform is None,
        f"training.augment must be none: crops are for split benchmarks, not for {config.name}",
    )
    for task in stream:
        where = f"task {task.name or task.index + 1}"
        check(
            len(task.train) > 0,
            f"{where} has no training samples; benchmark.train_samples, "
            "benchmark.train_fraction and benchmark.validation_fraction leave too few",
        )
        check(len(task.test) > 0, f"{where} of {config.name} has no test samples")
        check(
            config.validation_fraction == 0 or len(task.validation) > 0,
            f"{where} has no validation samples; raise benchmark.validation_fraction",
        )
