"""The tasks are the slices in which the data come: months, users, sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_runner.config.benchmarks import Slices
from cl_runner.core import Stream
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import stream_of
from cl_runner.errors import UserError, check

MOST = 10  # names in a message


def slices_stream(config: Slices, arrays: Arrays, scenario: str) -> Stream:
    """A task has the samples of one slice, and the classes that occur in it.

    A class is one by its name, whichever slices have it. In domain- and class-incremental learning
    it has one output for all tasks; in task-incremental learning each task has outputs of its own.
    """
    message = f"benchmark.kind={config.kind} needs data in slices; {config.dataset} has none"
    check(arrays.slice_train is not None, message)
    there = len(arrays.slices)
    if config.base is not None:
        left = f"benchmark.base={config.base} leaves no slice for the tasks after the first"
        check(config.base < there, f"{left}: the data have {there}")
        arrays = joined(arrays, config.base, config.people)
        there = len(arrays.slices)
    T = config.num_tasks or there
    with_base = "" if config.base is None else f" with benchmark.base={config.base}"
    check(
        there >= T,
        f"benchmark.num_tasks={T} is more than the {there} slices of the data{with_base}",
    )
    label = sliced_labels(arrays, T, scenario)
    check_tests(arrays, label)
    return stream_of(config, arrays, scenario, label, sliced=True)


def joined(arrays: Arrays, base: int, people: Sequence[str] | None) -> Arrays:
    """The data, whose first `base` slices are one, called by the first and the last of them.

    It is followed by the slices that are named, in this order, by default by all. Raises UserError
    for one that is not there.
    """
    assert arrays.slice_train is not None
    assert arrays.slice_test is not None
    others = arrays.slices[base:]
    for name in people or ():
        message = f"benchmark.people: {name!r} is none of the slices after the first {base}"
        check(name in others, f"{message}, which are {listed(others)}")
    followers = others if people is None else tuple(people)
    first, last = arrays.slices[0], arrays.slices[base - 1]
    place = torch.full((len(arrays.slices),), len(followers) + 1)  # of the others, left out
    place[:base] = 0
    for t, name in enumerate(followers, 1):
        place[arrays.slices.index(name)] = t
    return arrays._replace(
        slice_train=place[arrays.slice_train],
        slice_test=place[arrays.slice_test],
        slices=(first if base == 1 else f"{first} to {last}", *followers),
    )


def listed(names: Sequence[str]) -> str:
    """Names in a message; of many the first ones."""
    return ", ".join(names[:MOST]) + (", ..." if len(names) > MOST else "")


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
    unlearned = torch.stack([t, c], 1)[label[t, c] < 0]
    if len(unlearned):
        task, k = unlearned[0].tolist()
        raise UserError(
            f"task {arrays.slices[task]} has class {arrays.classes[k]!r} in its test data only: "
            "add training samples of it there, or leave these out"
        )
