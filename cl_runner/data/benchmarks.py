"""From a data set to a sequence of tasks: split, permuted and rotated benchmarks.

A benchmark is a dataclass (`config.schema`) and a function that makes a `Stream` of it, both in
`KINDS`; those of the user's own packages are found by `config.plugins`. Such a function gets the
configuration, the data (images padded already) and the scenario. It says which output stands for
which class in each task, and what a task does to the images; `stream_of` makes the stream of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.config.plugins import BENCHMARK, theirs
from cl_runner.config.schema import Benchmark, Permuted, Rotated, Split
from cl_runner.core import Stream, Task, Transform, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.errors import UserError, check

CPU = torch.device("cpu")


def build_stream(
    config: Benchmark,
    scenario: str,
    arrays: Arrays,
    device: torch.device,
    *,
    augmented: bool,
    plugins: Sequence[str] = (),
) -> Stream:
    """The stream of tasks that a benchmark's configuration describes, its tensors on `device`.

    Scenarios (van de Ven et al. 2022, Nature Machine Intelligence 4, 1185): in task- and
    class-incremental learning each task has outputs of its own, in domain-incremental learning all
    tasks share them; a split task's classes are then numbered within the task.
    Raises UserError for what the data set cannot give, and for a kind that is not there.
    """
    _, function = theirs(BENCHMARK, config.kind, plugins) or KINDS[config.kind]
    x, x_test = (pad(images, config.pad_to) for images in (arrays.x_train, arrays.x_test))
    stream = function(config, arrays._replace(x_train=x, x_test=x_test), scenario)
    check_stream(stream, config, augmented=augmented)
    return stream.on(device)


def check_stream(stream: Stream, config: Benchmark, *, augmented: bool) -> None:
    """Raise UserError for a stream that cannot be trained on, and name what to change."""
    kind, T = config.kind, config.num_tasks
    check(isinstance(stream, Stream), f"benchmark.kind={kind}: stream() must return a Stream")
    check(len(stream) == T, f"benchmark.kind={kind}: stream() has {len(stream)} tasks, not {T}")
    for name, table in stream.tables.items():
        message = f"benchmark.kind={kind}: table {name} must have a row for each of {T} tasks"
        check(table.ndim > 0 and len(table) == T, message)
    check(
        not augmented or stream.transform is None,
        f"training.augment=crop_flip is for split benchmarks, not for {config.name}",
    )
    for task in stream:
        check(
            len(task.train) > 0,
            f"task {task.index + 1} has no training samples; benchmark.train_samples, "
            "benchmark.train_fraction and benchmark.validation_fraction leave too few",
        )
        check(len(task.test) > 0, f"task {task.index + 1} of {config.name} has no test samples")
        check(
            config.validation_fraction == 0 or len(task.validation) > 0,
            f"task {task.index + 1} has no validation samples; raise benchmark.validation_fraction",
        )


# The kinds.


def split_stream(config: Split, arrays: Arrays, scenario: str) -> Stream:
    """The classes are divided among the tasks."""
    K, T = len(arrays.classes), config.num_tasks
    check(T <= K, f"benchmark.num_tasks={T} is more than the {K} classes of {config.dataset}")
    check(
        scenario != "domain" or K % T == 0,
        f"scenario=domain needs tasks with the same number of classes, which share the outputs:"
        f" benchmark.num_tasks={T} does not divide the {K} classes of {config.dataset}",
    )
    order = torch.arange(K)
    if config.class_order == "shuffled":
        order = torch.randperm(K, generator=generator_for(CPU, config.seed, "class_order"))
    label = torch.full((T, K), -1)
    first = 0
    # Where K is no multiple of T, the first tasks have one class more than the last.
    for t, members in enumerate(order.tensor_split(T)):
        start = 0 if scenario == "domain" else first
        label[t, members] = torch.arange(start, start + len(members))
        first += len(members)
    return stream_of(config, arrays, scenario, label)


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


def rotated_stream(config: Rotated, arrays: Arrays, scenario: str) -> Stream:
    """Every task shows all classes, rotated by an angle of its own.

    Lopez-Paz & Ranzato 2017, arXiv 1706.08840.
    """
    height, width = arrays.x_train.shape[2:]
    check(height > 1, f"{config.name} needs images; the data are feature vectors")
    if config.angles is not None:
        degrees = torch.tensor(config.angles)
    elif config.angle_spacing == "even":
        degrees = torch.arange(config.num_tasks) * (config.max_angle / config.num_tasks)
    else:
        generator = generator_for(CPU, config.seed, "angles")
        degrees = torch.rand(config.num_tasks, generator=generator) * config.max_angle
    tables = {"grid": rotation_grid(degrees, height, width)}
    label = every_class(config, arrays, scenario)
    return stream_of(config, arrays, scenario, label, transform=rotated, tables=tables)


def rotated(x: Tensor, task: int | Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """Images [B, C, H, W], rotated counter-clockwise about their centre.

    Table: grid [T, H, W, 2], where each pixel comes from, in torch's normalised coordinates.
    Bilinear interpolation with zeros outside; uint8 images are rounded, so that an image is the
    same in the stream and in a replay.
    """
    grids, chunks = tables["grid"], []
    for at in range(0, len(x), 4096):  # bounds the memory of the float copies
        part = x[at : at + 4096]
        grid = (
            grids[task].expand(len(part), -1, -1, -1)
            if isinstance(task, int)
            else grids[task[at : at + 4096]]
        )
        turned = F.grid_sample(part.to(grids.dtype), grid, align_corners=False)
        chunks.append(turned.round().to(x.dtype) if x.dtype == torch.uint8 else turned)
    return torch.cat(chunks) if chunks else x


def rotation_grid(degrees: Tensor, height: int, width: int) -> Tensor:
    """Sampling grid [T, H, W, 2] for counter-clockwise rotations by `degrees` [T]."""
    angle = torch.deg2rad(degrees.double())
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Rotate in units of pixels, so that an image that is not square keeps its shape.
    matrix = torch.stack(
        [cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1
    ).view(-1, 2, 3)
    return F.affine_grid(matrix, [len(angle), 1, height, width], align_corners=False).float()


# benchmark.kind -> its dataclass, and (configuration, data, scenario) -> Stream on the CPU.
# `config.plugins` reads it without torch.
KINDS: dict[str, tuple[type[Benchmark], Callable[[Any, Arrays, str], Stream]]] = {
    "split": (Split, split_stream),
    "permuted": (Permuted, permuted_stream),
    "rotated": (Rotated, rotated_stream),
}


# What they have in common.


def every_class(config: Benchmark, arrays: Arrays, scenario: str) -> Tensor:
    """The label table [T, K] of tasks that show all classes: outputs of their own, or shared."""
    K, T = len(arrays.classes), config.num_tasks
    first = 0 if scenario == "domain" else K * torch.arange(T)[:, None]
    return torch.arange(K).expand(T, K) + first


def stream_of(
    config: Benchmark,
    arrays: Arrays,
    scenario: str,
    label: Tensor,
    *,
    transform: Transform | None = None,
    tables: Mapping[str, Tensor] | None = None,
) -> Stream:
    """The stream of a label table [T, classes of the data set], on the CPU.

    A task has the samples of those classes whose label is not -1. transform: what a task does to
    the images, which may use `tables`, [T, ...] each. Raises UserError for subsets that the data
    set cannot give.
    """
    channels = arrays.x_train.shape[1]
    unit = 1 / 255 if arrays.x_train.dtype == torch.uint8 else 1.0
    std = _per_channel("benchmark.std", config.std, channels)
    mean = _per_channel("benchmark.mean", config.mean, channels)
    train, validation = subsets(config, len(arrays.x_train))
    return Stream(
        x=arrays.x_train,
        y=arrays.y_train,
        x_test=arrays.x_test,
        y_test=arrays.y_test,
        tasks=tuple(_task(t, row, train, validation, arrays) for t, row in enumerate(label)),
        tables={**(tables or {}), "label": label.contiguous()},
        num_classes=int(label.max()) + 1,
        scenario=scenario,
        scale=torch.full((channels, 1, 1), unit) if std is None else unit / std,
        shift=None if mean is None or std is None else -mean / std,
        transform=transform,
    )


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


def _task(t: int, label: Tensor, train: Tensor, validation: Tensor, arrays: Arrays) -> Task:
    """Task t, whose classes' global ids are `label` [classes of the data set], -1 of the others."""
    order = label.argsort()
    members = order[label[order] >= 0]
    test = torch.arange(len(arrays.y_test))
    return Task(
        index=t,
        classes=tuple(label[members].tolist()),
        names=tuple(arrays.classes[c] for c in members),
        train=train[torch.isin(arrays.y_train[train], members)],
        validation=validation[torch.isin(arrays.y_train[validation], members)],
        test=test[torch.isin(arrays.y_test, members)],
    )


def _per_channel(key: str, values: list[float] | None, channels: int) -> Tensor | None:
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise UserError(f"{key} must hold 1 or {channels} numbers, got {len(values)}")
    return torch.tensor(values).expand(channels)[:, None, None].clone()
