"""Every task shows all images, the labels of their classes exchanged."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.config.benchmarks import LabelPermuted
from cl_runner.core import Stream, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import CPU, every_class, stream_of


def label_permuted_stream(config: LabelPermuted, arrays: Arrays, scenario: str) -> Stream:
    """Every task shows all images, the labels of their classes exchanged by benchmark.seed.

    In domain-incremental learning the tasks contradict each other: what is asked is how fast a
    network learns anew (label-permuted streams of Elsayed & Mahmood 2024, arXiv 2404.00781).
    """
    K = len(arrays.classes)

    def order(t: int) -> Tensor:
        if t == 0 and config.first_identity:
            return torch.arange(K)
        return torch.randperm(K, generator=generator_for(CPU, config.seed, "labels", t))

    orders = torch.stack([order(t) for t in range(config.num_tasks)])
    label = every_class(config, arrays, scenario).gather(1, orders)
    return stream_of(config, arrays, scenario, label)
