"""From a data set to a sequence of tasks: split, permuted and rotated benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.config.schema import Benchmark, Permuted, Rotated, Split
from cl_runner.core import Stream, Task, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.errors import UserError, check

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Permutation:
    """Every task moves the pixels to other places; the channels of a pixel stay together.

    Goodfellow et al. 2013, arXiv 1312.6211.
    """

    order: Tensor  # [T, H * W] pixel p of task t is pixel order[t, p] of the image

    def __call__(self, x: Tensor, task: int | Tensor) -> Tensor:
        """Images [B, C, H, W] as `task` shows them."""
        flat = x.flatten(2)
        order = self.order[task] if isinstance(task, int) else self.order[task][:, None]
        return flat.gather(2, order.expand_as(flat)).view_as(x)


@dataclass(frozen=True)
class Rotation:
    """Every task rotates the images counter-clockwise about their centre.

    Bilinear interpolation with zeros outside; uint8 images are rounded, so that an image is the
    same in the stream and in a replay. Lopez-Paz & Ranzato 2017, arXiv 1706.08840.
    """

    grid: Tensor  # [T, H, W, 2] where each pixel comes from, in torch's normalised coordinates

    def __call__(self, x: Tensor, task: int | Tensor) -> Tensor:
        """Images [B, C, H, W] as `task` shows them."""
        chunks = []
        for at in range(0, len(x), 4096):  # bounds the memory of the float copies
            part = x[at : at + 4096]
            grid = (
                self.grid[task].expand(len(part), -1, -1, -1)
                if isinstance(task, int)
                else self.grid[task[at : at + 4096]]
            )
            turned = F.grid_sample(part.to(self.grid.dtype), grid, align_corners=False)
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


def build_stream(
    config: Benchmark, scenario: str, arrays: Arrays, device: torch.device, *, augmented: bool
) -> Stream:
    """The stream of tasks that a benchmark's configuration describes, its tensors on `device`.

    Scenarios (van de Ven et al. 2022, Nature Machine Intelligence 4, 1185): in task- and
    class-incremental learning each task has outputs of its own, in domain-incremental learning all
    tasks share them; a split task's classes are then numbered within the task.
    Raises UserError for what the data set cannot give.
    """
    x, x_test = (pad(images, config.pad_to) for images in (arrays.x_train, arrays.x_test))
    channels, height, width = x.shape[1:]
    K, T = len(arrays.classes), config.num_tasks
    train, validation = subsets(config, len(x))
    tasks: list[Task] = []
    transform: Permutation | Rotation | None = None

    if isinstance(config, Split):
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
            tasks.append(_task(t, members, label[t, members], train, validation, arrays))
        num_classes = int(label.max()) + 1
    else:
        own_outputs = scenario != "domain"
        label = torch.arange(K).expand(T, K) + (K * torch.arange(T)[:, None] if own_outputs else 0)
        num_classes = K * T if own_outputs else K
        tasks = [_task(t, torch.arange(K), label[t], train, validation, arrays) for t in range(T)]
        check(
            not augmented,
            f"training.augment=crop_flip is for split benchmarks, not for {config.name}",
        )
        check(
            height > 1 or isinstance(config, Permuted),
            f"{config.name} needs images; the data are feature vectors",
        )
        transform = (
            _permutation(config, height * width)
            if isinstance(config, Permuted)
            else _rotation(config, height, width)
        )
    for task in tasks:
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

    unit = 1 / 255 if x.dtype == torch.uint8 else 1.0
    std = _per_channel("benchmark.std", config.std, channels)
    mean = _per_channel("benchmark.mean", config.mean, channels)
    scale = torch.full((channels, 1, 1), unit) if std is None else unit / std
    return Stream(
        x=x.to(device),
        y=arrays.y_train.to(device),
        x_test=x_test.to(device),
        y_test=arrays.y_test.to(device),
        tasks=tuple(_task_to(task, device) for task in tasks),
        label=label.contiguous().to(device),
        num_classes=num_classes,
        scenario=scenario,
        scale=scale.to(device),
        shift=None if mean is None or std is None else (-mean / std).to(device),
        transform=_transform_to(transform, device),
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


def _task(
    t: int, members: Tensor, label: Tensor, train: Tensor, validation: Tensor, arrays: Arrays
) -> Task:
    """Task t: the rows whose class is among `members`, whose global ids are `label`."""
    test = torch.arange(len(arrays.y_test))
    return Task(
        index=t,
        classes=tuple(label.tolist()),
        names=tuple(arrays.classes[c] for c in members),
        train=train[torch.isin(arrays.y_train[train], members)],
        validation=validation[torch.isin(arrays.y_train[validation], members)],
        test=test[torch.isin(arrays.y_test, members)],
    )


def _permutation(config: Permuted, pixels: int) -> Permutation:
    def order(t: int) -> Tensor:
        if t == 0 and config.first_identity:
            return torch.arange(pixels)
        return torch.randperm(pixels, generator=generator_for(CPU, config.seed, "permutation", t))

    return Permutation(torch.stack([order(t) for t in range(config.num_tasks)]))


def _rotation(config: Benchmark, height: int, width: int) -> Rotation:
    assert isinstance(config, Rotated)
    if config.angles is not None:
        degrees = torch.tensor(config.angles)
    elif config.angle_spacing == "even":
        degrees = torch.arange(config.num_tasks) * (config.max_angle / config.num_tasks)
    else:
        generator = generator_for(CPU, config.seed, "angles")
        degrees = torch.rand(config.num_tasks, generator=generator) * config.max_angle
    return Rotation(rotation_grid(degrees, height, width))


def _per_channel(key: str, values: list[float] | None, channels: int) -> Tensor | None:
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise UserError(f"{key} must hold 1 or {channels} numbers, got {len(values)}")
    return torch.tensor(values).expand(channels)[:, None, None].clone()


def _task_to(task: Task, device: torch.device) -> Task:
    return Task(
        index=task.index,
        classes=task.classes,
        names=task.names,
        train=task.train.to(device),
        validation=task.validation.to(device),
        test=task.test.to(device),
    )


def _transform_to(
    transform: Permutation | Rotation | None, device: torch.device
) -> Permutation | Rotation | None:
    if isinstance(transform, Permutation):
        return Permutation(transform.order.to(device))
    if isinstance(transform, Rotation):
        return Rotation(transform.grid.to(device))
    return None
