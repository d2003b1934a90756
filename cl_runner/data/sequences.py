"""Several named data sets as one, for a benchmark whose tasks are data sets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cl_runner.config.benchmarks import Sequence
from cl_runner.data.datasets import CLASSES, Arrays
from cl_runner.data.streams import distinct
from cl_runner.errors import one_of


def read_sequence(config: Sequence, load: Callable[[str], Arrays]) -> Arrays:
    """The data sets of benchmark.datasets one after another, each as a slice of that name.

    load: the data set of a name, of the size that benchmark.resize says. Images are padded with
    zeros to the largest height and width; where some have colours, a grey one gets three equal
    channels. Classes are named after their data set, too: "mnist/0". Raises UserError.
    """
    for dataset in config.datasets:
        one_of("benchmark.datasets", dataset, tuple(CLASSES))
    chosen = config.datasets[: config.num_tasks]
    found = {dataset: load(dataset) for dataset in dict.fromkeys(chosen)}
    parts, names = [found[dataset] for dataset in chosen], distinct(chosen)
    first = [sum(len(part.classes) for part in parts[:i]) for i in range(len(parts))]
    return Arrays(
        x_train=joined([part.x_train for part in parts]),
        y_train=torch.cat([part.y_train + k for part, k in zip(parts, first, strict=True)]),
        x_test=joined([part.x_test for part in parts]),
        y_test=torch.cat([part.y_test + k for part, k in zip(parts, first, strict=True)]),
        classes=tuple(f"{n}/{c}" for n, p in zip(names, parts, strict=True) for c in p.classes),
        slice_train=torch.cat([torch.full_like(p.y_train, t) for t, p in enumerate(parts)]),
        slice_test=torch.cat([torch.full_like(p.y_test, t) for t, p in enumerate(parts)]),
        slices=tuple(names),
    )


def joined(images: list[Tensor]) -> Tensor:
    """Images [n, C, H, W] of several data sets, each in the middle of the largest height and width.

    One channel stands for as many as the others have.
    """
    C, H, W = (max(sizes) for sizes in zip(*(x.shape[1:] for x in images), strict=True))
    whole, at = images[0].new_zeros(sum(map(len, images)), C, H, W), 0
    for x in images:
        height, width = x.shape[2:]
        top, left = (H - height) // 2, (W - width) // 2
        whole[at : at + len(x), :, top : top + height, left : left + width] = x
        at += len(x)
    return whole
