"""The tasks are the slices in which the data come: months, users, sites."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.config.benchmarks import Slices
from cl_runner.core import Stream
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import stream_of
from cl_runner.errors import UserError, check


def slices_stream(config: Slices, arrays: Arrays, scenario: str) -> Stream:
    """A task has the samples of one slice, and the classes that occur in it.

    A class is one by its name, whichever slices have it. In domain- and class-incremental learning
    it has one output for all tasks; in task-incremental learning each task has outputs of its own.
    """
    assert arrays.slice_train is not None
    T = config.num_tasks or len(arrays.slices)
    there = len(arrays.slices)
    check(there >= T, f"benchmark.num_tasks={T} is more than the {there} slices of the data")
    label = sliced_labels(arrays, T, scenario)
    check_tests(arrays, label)
    return stream_of(config, arrays, scenario, label, sliced=True)


def sliced_labels(arrays: Arrays, T: int, scenario: str) -> Tensor:
    """The label table [T, K] of slices: -1 for classes that a slice has no training sample of."""
    assert arrays.slice_train is not None
    K = len(arrays.classes)
    present = torch.zeros(T, K, dtype=torch.bool)
    within = arrays.slice_train < T
    present[arrays.slice_train[within], arrays.y_train[within]] = True
    # Classes that only later slices have, which benchmark.num_tasks leaves out, have no output.
    label = (present.any(0).cumsum(0) - 1).expand(T, K)
    if scenario == "task":
        label = present.flatten().cumsum(0).view(T, K) - 1
    return label.where(present, torch.tensor(-1))


def check_tests(arrays: Arrays, label: Tensor) -> None:
    """Raise UserError for a task that has test samples of a class that it cannot learn."""
    assert arrays.slice_test is not None
    within = arrays.slice_test < len(label)
    t, c = arrays.slice_test[within], arrays.y_test[within]
    for task, k in torch.stack([t, c], 1)[label[t, c] < 0][:1].tolist():
        raise UserError(
            f"task {arrays.slices[task]} has class {arrays.classes[k]!r} in its test data only: "
            "add training samples of it there, or leave these out"
        )
