"""What the kinds of benchmarks have in common: a Stream of labels and rows, subsets, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.config.schema import Benchmark
from cl_runner.core import Stream, Task, Transform, generator_for
from cl_runner.data.arrays import check_free
from cl_runner.data.datasets import Arrays
from cl_runner.errors import UserError, check

CPU = torch.device("cpu")
AT_ONCE = 2**24  # values that are resized at once


def stream_of(
    config: Benchmark,
    arrays: Arrays,
    scenario: str,
    label: Tensor,
    *,
    transform: Transform | None = None,
    tables: Mapping[str, Tensor] | None = None,
    names: Sequence[str] = (),
    sliced: bool = False,
) -> Stream:
    """The stream of a label table [T, classes of the data set], on the CPU.

    A task has the samples of those classes whose label is not -1; if `sliced`, those of its slice
    of the data only. transform: what a task does to the images, which may use `tables`, [T, ...]
    each. names: what the tasks are called; by default as their slices, or nothing. Raises UserError
    for subsets that the data set cannot give.
    """
    channels = shown_channels(config, arrays)
    unit = 1 / 255 if arrays.x_train.dtype == torch.uint8 else 1.0
    std = per_channel("benchmark.std", config.std, channels)
    mean = per_channel("benchmark.mean", config.mean, channels)
    train, validation = subsets(config, len(arrays.x_train))
    train = long_tailed(config, train, arrays)
    names = names or (arrays.slices if sliced else [""] * len(label))
    tasks = [task_of(t, v, train, validation, arrays, sliced=sliced) for t, v in enumerate(label)]
    return Stream(
        x=arrays.x_train,
        y=arrays.y_train,
        x_test=arrays.x_test,
        y_test=arrays.y_test,
        tasks=tuple(
            replace(task, name=names[t], train=drawn(config, t, task.train))
            for t, task in enumerate(tasks)
        ),
        tables={**(tables or {}), "label": label.contiguous()},
        num_classes=int(label.max()) + 1,
        scenario=scenario,
        scale=torch.full((channels, 1, 1), unit) if std is None else unit / std,
        shift=None if mean is None or std is None else -mean / std,
        transform=transform,
    )


def shown_channels(config: Benchmark, arrays: Arrays) -> int:
    """The channels of an input: the data's, but grey images with three means are shown in three."""
    channels = arrays.x_train.shape[1]
    return 3 if channels == 1 and len(config.mean or ()) == 3 else channels


def in_three_channels(stream: Stream) -> Stream:
    """The stream, whose grey images are shown as three channels of the same values.

    They stay as they are: normalising them makes three channels of one. Other images stay, too.
    """
    if len(stream.scale) > 1:
        return stream
    shift = None if stream.shift is None else stream.shift.expand(3, 1, 1).clone()
    return replace(stream, scale=stream.scale.expand(3, 1, 1).clone(), shift=shift)


def every_class(config: Benchmark, arrays: Arrays, scenario: str) -> Tensor:
    """The label table [T, K] of tasks that show all classes: outputs of their own, or shared."""
    K, T = len(arrays.classes), config.num_tasks
    first = 0 if scenario == "domain" else K * torch.arange(T)[:, None]
    return torch.arange(K).expand(T, K) + first


def subsets(config: Benchmark, total: int) -> tuple[Tensor, Tensor]:
    """Rows for training and rows for validation: disjoint, sorted, chosen by benchmark.seed."""
    number = config.train_samples or round(config.train_fraction * total)
    check(
        number <= total,
        f"benchmark.train_samples={number} is more than the {total} samples of {config.dataset}",
    )
    order = torch.randperm(total, generator=generator_for(CPU, config.seed, "subset"))[:number]
    held_out = round(config.validation_fraction * number)
    return order[held_out:].sort().values, order[:held_out].sort().values


def long_tailed(config: Benchmark, rows: Tensor, arrays: Arrays) -> Tensor:
    """Of training rows [n] those that a long tail leaves, for benchmark.imbalance = r; sorted.

    The class of rank c among K, in an order that benchmark.seed draws, keeps n_max r^(-c / (K - 1))
    of its rows, at random, at least one; n_max is the size of the largest class. Cui et al. 2019,
    arXiv 1901.05555.
    """
    if config.imbalance is None or config.imbalance == 1:
        return rows
    K, y = len(arrays.classes), arrays.y_train
    generator = generator_for(CPU, config.seed, "imbalance")
    rows = rows[torch.randperm(len(rows), generator=generator)]
    order = torch.randperm(K, generator=generator).tolist()
    largest = int(y[rows].bincount().max()) if len(rows) else 0
    kept = [
        rows[y[rows] == c][: max(1, round(largest * config.imbalance ** (-rank / max(1, K - 1))))]
        for rank, c in enumerate(order)
    ]
    return torch.cat(kept).sort().values


def drawn(config: Benchmark, t: int, rows: Tensor) -> Tensor:
    """The rows [samples_per_task] that task t draws of those it may train on; by default all.

    Fresh ones are a part of an order of all rows, the next task's the next part; when fewer are
    left than a task takes, they are put into another order, and a new pass begins.
    """
    n, there = config.samples_per_task, len(rows)
    if n is None:
        return rows
    message = f"benchmark.samples_per_task={n} is more than the {there} training samples of task"
    check(n <= there, f"{message} {t + 1}")
    lap, place = divmod(t, there // n) if config.fresh else (t, 0)
    order = torch.randperm(there, generator=generator_for(CPU, config.seed, "samples", lap))
    return rows[order[place * n : (place + 1) * n].sort().values]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, from its second time on each with a number: a, b, a 2."""
    times = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if n == 1 else f"{name} {n}" for name, n in zip(names, times, strict=True)]


def task_of(
    t: int, label: Tensor, train: Tensor, validation: Tensor, arrays: Arrays, *, sliced: bool
) -> Task:
    """Task t, whose classes' global ids are `label` [classes of the data set], -1 of the others."""
    order = label.argsort()
    members = order[label[order] >= 0]

    def own(rows: Tensor, y: Tensor, part: Tensor | None) -> Tensor:
        there = torch.isin(y[rows], members)
        if sliced:
            assert part is not None
            there &= part[rows] == t
        return rows[there]

    return Task(
        index=t,
        classes=tuple(label[members].tolist()),
        names=tuple(arrays.classes[c] for c in members.tolist()),
        train=own(train, arrays.y_train, arrays.slice_train),
        validation=own(validation, arrays.y_train, arrays.slice_train),
        test=own(torch.arange(len(arrays.y_test)), arrays.y_test, arrays.slice_test),
    )


def per_channel(key: str, values: list[float] | None, channels: int) -> Tensor | None:
    """A value for each channel [C, 1, 1], of as many or of one for all. Raises UserError."""
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise UserError(f"{key} must hold 1 or {channels} numbers, got {len(values)}")
    return torch.tensor(values).expand(channels)[:, None, None].clone()


def resize(x: Tensor, size: int | None, device: torch.device) -> Tensor:
    """Images [N, C, H, W] brought to [N, C, size, size], many at once on a device; on the CPU.

    By torch's bilinear filter, which weighs all pixels that one stands for where an image becomes
    smaller; proportions are not kept. uint8 images are rounded. An image does not depend on the
    others. Raises UserError for feature vectors, and where memory has no room for the result.
    """
    height, width = x.shape[2:]
    if size is None or height == width == size:
        return x
    check(height > 1, "benchmark.resize needs images; the data are feature vectors")
    N, C = x.shape[:2]
    needed = N * C * size**2 * x.element_size()
    check_free(f"{N} images at benchmark.resize={size}", needed)
    found = x.new_empty(N, C, size, size)
    step = max(1, AT_ONCE // (C * max(height, width, size) ** 2))  # bounds the float copies
    for at in range(0, N, step):
        found[at : at + step] = brought_to(x[at : at + step].to(device), size)
    return found


def brought_to(x: Tensor, size: int) -> Tensor:
    """Images [B, C, H, W] of the same type at [B, C, size, size], as `resize` does it."""
    part = F.interpolate(x.float(), size=(size, size), mode="bilinear", antialias=True)
    return part.round_().clamp_(0, 255).to(x.dtype) if x.dtype == torch.uint8 else part.to(x.dtype)


def pad(x: Tensor, size: int | None) -> Tensor:
    """Images [N, C, H, W] with zeros around them, to [N, C, size, size]."""
    if size is None:
        return x
    height, width = x.shape[2:]
    check(height > 1, "benchmark.pad_to needs images; the data are feature vectors")
    check(
        size >= max(height, width),
        f"benchmark.pad_to={size} is less than the images' {height}x{width} pixels",
    )
    left, top = (size - width) // 2, (size - height) // 2
    return F.pad(x, (left, size - width - left, top, size - height - top))
