"""The classes of a data set are divided among the tasks."""

from __future__ import annotations

import torch

from cl_runner.config.benchmarks import Split
from cl_runner.core import Stream, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import CPU, stream_of
from cl_runner.errors import check


def split_stream(config: Split, arrays: Arrays, scenario: str) -> Stream:
    """The classes are divided among the tasks; of those that no task has, no sample is used."""
    there, T = len(arrays.classes), config.num_tasks
    used = torch.arange(there) if config.classes is None else torch.tensor(config.classes)
    K = len(used)
    check(
        int(used.max()) < there,
        f"benchmark.classes: {config.dataset} has {there} classes, 0 to {there - 1}, and no "
        f"{int(used.max())}",
    )
    what = (
        f"{K} classes of {config.dataset}"
        if config.classes is None
        else f"{K} classes of benchmark.classes"
    )
    check(T <= K, f"benchmark.num_tasks={T} is more than the {what}")
    check(
        scenario != "domain" or K % T == 0,
        f"scenario=domain needs tasks with the same number of classes, which share the outputs:"
        f" benchmark.num_tasks={T} does not divide the {what}",
    )
    if config.class_order == "shuffled":
        used = used[torch.randperm(K, generator=generator_for(CPU, config.seed, "class_order"))]
    label = torch.full((T, there), -1)
    first = 0
    # Where K is no multiple of T, the first tasks have one class more than the last.
    for t, members in enumerate(used.tensor_split(T)):
        start = 0 if scenario == "domain" else first
        label[t, members] = torch.arange(start, start + len(members))
        first += len(members)
    return stream_of(config, arrays, scenario, label)
