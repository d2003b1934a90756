"""Every task shows all images, each under a label that is drawn for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from cl_runner.config.benchmarks import RandomLabels
from cl_runner.core import Stream, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import CPU, stream_of


def random_labels_stream(config: RandomLabels, arrays: Arrays, scenario: str) -> Stream:
    """Every task shows all images, each under one of the K labels, drawn by benchmark.seed.

    Nothing but the images themselves tells their labels, so what is evaluated is the memory of
    them: a task's test samples are its training samples. Lyle et al. 2023, arXiv 2303.01486; Kumar
    et al. 2023, arXiv 2308.11958.
    """
    N, K, T = len(arrays.y_train), len(arrays.classes), config.num_tasks

    def classes(t: int) -> range:
        return range(K) if scenario == "domain" else range(K * t, K * (t + 1))

    label = torch.stack(
        [
            torch.randint(K, (N,), generator=generator_for(CPU, config.seed, "labels", t))
            + classes(t)[0]
            for t in range(T)
        ]
    )
    # Each image a class of its own: so the table has its label in each task.
    each = torch.arange(N)
    own = Arrays(arrays.x_train, each, arrays.x_train, each, classes=("",) * N)
    stream = stream_of(config, own, scenario, label)
    tasks = tuple(
        replace(task, classes=tuple(classes(task.index)), names=arrays.classes, test=task.train)
        for task in stream
    )
    return replace(stream, tasks=tasks, num_classes=classes(T - 1)[-1] + 1)
