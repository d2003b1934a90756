"""Every task shows all classes, its pixels moved to other places."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cl_runner.config.benchmarks import Permuted
from cl_runner.core import Stream, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import CPU, every_class, stream_of


def permuted_stream(config: Permuted, arrays: Arrays, scenario: str) -> Stream:
    """Every task shows all classes, its pixels moved to other places.

    Goodfellow et al. 2013, arXiv 1312.6211.
    """
    pixels = arrays.x_train[0, 0].numel()

    def order(t: int) -> Tensor:
        if t == 0 and config.first_identity:
            return torch.arange(pixels)
        return torch.randperm(pixels, generator=generator_for(CPU, config.seed, "permutation", t))

    tables = {"order": torch.stack([order(t) for t in range(config.num_tasks)])}
    label = every_class(config, arrays, scenario)
    return stream_of(config, arrays, scenario, label, transform=permuted, tables=tables)


def permuted(x: Tensor, task: int | Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """Images [B, C, H, W], pixel p of task t being pixel order[t, p] of the image.

    Table: order [T, H * W]. The channels of a pixel stay together.
    """
    flat, order = x.flatten(2), tables["order"][task]
    order = order if isinstance(task, int) else order[:, None]
    return flat.gather(2, order.expand_as(flat)).view_as(x)
