"""The tasks are the slices in which the data come: months, users, sites."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.config.benchmarks import Slices
from cl_runner.core import Stream
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import stream_of
from cl_runner.errors import check


def slices_stream(config: Slices, arrays: Arrays, scenario: str) -> Stream:
    """A task has the samples of one slice, and the classes that occur in it.

    A class is one by its name, whichever slices have it. In domain- and class-incremental learning
    it has one output for all tasks; in task-incremental learning each task has outputs of its own.
    """
    message = f"benchmark.kind={config.kind} needs data in slices; {config.dataset} has none"
    check(arrays.slice_train is not None, message)
    T = config.num_tasks or len(arrays.slices)
    there = len(arrays.slices)
    check(there >= T, f"benchmark.num_tasks={T} is more than the {there} slices of the data")
    return stream_of(config, arrays, scenario, sliced_labels(arrays, T, scenario), sliced=True)


def sliced_labels(arrays: Arrays, T: int, scenario: str) -> Tensor:
    """The label table [T, K] of slices: -1 for classes that a slice has no training sample of."""
    assert arrays.slice_train is not None
    K = len(arrays.classes)
    present = torch.zeros(T, K, dtype=torch.bool)
    within = arrays.slice_train < T
    present[arrays.slice_train[within], arrays.y_train[within]] = True
    label = torch.arange(K).expand(T, K)
    if scenario == "task":
        label = present.flatten().cumsum(0).view(T, K) - 1
    return label.where(present, torch.tensor(-1))
