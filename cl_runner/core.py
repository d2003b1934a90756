"""The nouns of the program: Batch, TrainState, Task, Stream; and the one source of seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Batch(NamedTuple):
    """The samples of one training step, B of them; K is the number of the network's outputs.

    Where a field is None it has the trivial value that its comment names, at no cost.
    """

    x: Tensor  # [B, C, H, W]  network input, normalised
    y: Tensor  # [B]           global class ids: positions in the network's output
    task: Tensor  # [B]           task indices; the network may use them only in task-IL
    active: Tensor | None  # [B, K] bool: the classes each sample is scored on; None: all
    weight: Tensor | None  # [B]    weight in the mean, 0 for an empty buffer; None: 1 each
    index: Tensor  # type: ignore[assignment]  # [B] rows of the training set: what buffers store
    noise: dict[str, Tensor]  # the uniforms that the strategy declared
    plan: dict[str, Tensor]  # what the strategy has planned for this step


class Window(NamedTuple):
    """The batches of W coming steps without their inputs: what `Strategy.plan` looks at."""

    y: Tensor  # [W, B]
    task: Tensor  # [W, B]
    index: Tensor  # type: ignore[assignment]  # [W, B]
    noise: dict[str, Tensor]  # [W, ...]
    # Of the W, those whose batch is not shown again: the last of its `training.passes`.
    leaving: slice = slice(None)


def concatenate(a: Batch, b: Batch) -> Batch:
    """Both batches as one. Both must have weights; noise and plan are those of the first."""
    assert a.weight is not None
    assert b.weight is not None
    active = None
    if a.active is not None and b.active is not None:
        active = torch.cat([a.active, b.active])
    return Batch(
        x=torch.cat([a.x, b.x]),
        y=torch.cat([a.y, b.y]),
        task=torch.cat([a.task, b.task]),
        active=active,
        weight=torch.cat([a.weight, b.weight]),
        index=torch.cat([a.index, b.index]),
        noise=a.noise,
        plan=a.plan,
    )


class TrainState(NamedTuple):
    """Everything that training changes. Saved, it is a checkpoint; restored, the run goes on."""

    theta: Tensor  # [P]  every trainable parameter, in one vector
    buffers: dict[str, Tensor]  # BatchNorm statistics; empty for most networks
    opt: dict[str, Tensor]  # the optimizer's slots, [P] each, and its learning rate, 0-d
    memory: dict[str, Tensor]  # the strategy's own tensors, allocated at full size
    t: Tensor  # 0-d, index of the task up to which classes count as seen


def replacing(kind: type[Batch | TrainState]) -> Any:
    """The method `_replace` of one of these: a copy with other values.

    NamedTuple's own is empty once torch 2.11 has compiled it; older versions do not compile it.
    """
    names = kind._fields

    def _replace(self: Any, **changes: Any) -> Any:
        return kind(**(dict(zip(names, self, strict=True)) | changes))

    return _replace


Batch._replace = replacing(Batch)  # type: ignore[method-assign]
TrainState._replace = replacing(TrainState)  # type: ignore[method-assign]


@dataclass(frozen=True)
class Task:
    """One task (experience) of a stream: which rows belong to it."""

    index: int  # 0-based
    classes: tuple[int, ...]  # global class ids of its samples
    names: tuple[str, ...]  # what the data set calls these classes
    train: Tensor  # [n] rows of Stream.x
    validation: Tensor  # [n] rows of Stream.x, disjoint from train; empty unless asked for
    test: Tensor  # [n] rows of Stream.x_test
    name: str = ""  # what the data call it, such as a month; "": nothing
    # [n] the task that each of `train` is of, where they come in an order of their own and a row
    # may come again; None: all are of this task, each comes once, in any order.
    of: Tensor | None = None
    epochs: int | None = None  # of its training; None: as the run's `training` says
    lr_factor: float = 1.0  # of the optimizer's learning rate, for its training

    @property
    def title(self) -> str:
        """The task's name: its own where it has one, else "task 3"."""
        return self.name or f"task {self.index + 1}"

    def samples(self) -> tuple[Tensor, int | Tensor]:
        """The task's training samples, each once: rows [n], and their task.

        The task is one number for all rows, or a tensor [n].
        """
        if self.of is None:
            return self.train, self.index
        of, rows = torch.stack([self.of, self.train]).unique(dim=1)
        return rows, of


# (images [B, C, H, W], task index of all of them or of each [B], the stream's tables) -> images
Transform = Callable[[Tensor, int | Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Stream:
    """A benchmark in a scenario: a sequence of tasks over one data set on one device.

    Like a list: `len(stream)`, `stream[2]`, `stream[1:]`, `for task in stream`. All that tells one
    task from another in a step is in `tables`, whose rows are tasks; so streams over the same data
    differ in their tables only, and runs on them can be stacked.
    """

    x: Tensor  # [N, C, H, W] uint8 (pixels) or float32 (used as it is)
    y: Tensor  # [N] the data set's classes
    x_test: Tensor
    y_test: Tensor
    tasks: tuple[Task, ...]
    tables: Mapping[str, Tensor]  # [T, ...] each: "label" (see there), and what the transform needs
    num_classes: int  # K, the network's outputs
    scenario: str  # task | domain | class
    scale: Tensor  # [C, 1, 1] inputs are x * scale + shift; of grey images C may be 3
    shift: Tensor | None  # [C, 1, 1]
    transform: Transform | None = None  # what a task does to the images, by its rows of the tables
    boundaries: str = "sharp"  # between the tasks' training samples, see data.boundaries
    # [n] rows of x among which the model that the first task makes chooses the samples of the
    # tasks after it (see run.edits); None: all tasks are known from the beginning.
    pool: Tensor | None = None
    # [0, C, H, W] no image, of the shape and type that the data set's have before they are resized
    # and padded; None: those of x.
    given: Tensor | None = None
    cache: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, item: int) -> Task: ...
    @overload
    def __getitem__(self, item: slice) -> tuple[Task, ...]: ...
    def __getitem__(self, item: slice | int) -> tuple[Task, ...] | Task:
        return self.tasks[item]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    @property
    def label(self) -> Tensor:
        """[T, classes of the data set] global class id, by task; -1: the task has none of it."""
        return self.tables["label"]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an input: grey images may be shown in three channels."""
        _, height, width = self.x.shape[1:]
        return len(self.scale), height, width

    def images(
        self, index: Tensor, task: int | Tensor, change: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Training images `index` [B] as task `task` (one, or one each [B]) shows them, raw.

        change: what is done to them before the task shows them.
        """
        x = self.x.index_select(0, index)
        x = x if change is None else change(x)
        return x if self.transform is None else self.transform(x, task, self.tables)

    def normalise(self, x: Tensor) -> Tensor:
        """The network's input [B, C, H, W] float32 from images."""
        if x.is_floating_point():
            x = x * self.scale
        elif x.shape[-3] < len(self.scale):
            x = x.float() * self.scale
        else:
            x = x.float().mul_(self.scale)
        return x if self.shift is None else x.add_(self.shift)

    def labels(self, index: Tensor, task: int | Tensor) -> Tensor:
        """Global class ids [B] of training rows `index` [B] in task `task` (one, or one each)."""
        return self.label[task, self.y[index]]

    def on(self, device: torch.device) -> Stream:
        """The same stream with all its tensors on a device."""
        tasks = tuple(replace(task, **_on(device, vars(task))) for task in self.tasks)
        return replace(self, **_on(device, vars(self) | {"tasks": tasks}))

    def forget(self, kept: range) -> None:
        """Keep the held-out samples of these tasks only: those of others are not needed soon."""
        for key in [key for key in self.cache if key[1] not in kept]:
            del self.cache[key]

    def held_out(self, split: str, task: Task) -> tuple[Tensor, Tensor]:
        """Images and global class ids of a task's `test` or `validation` samples.

        Kept until `forget`, because they are needed after each task.
        """
        key = (split, task.index)
        if key in self.cache:
            return self.cache[key]
        rows, x, y = (
            (task.test, self.x_test, self.y_test)
            if split == "test"
            else (task.validation, self.x, self.y)
        )
        images, labels = x[rows], self.label[task.index, y[rows]]
        if self.transform is not None:
            images = self.transform(images, task.index, self.tables)
        self.cache[key] = images, labels
        return images, labels


def _on(device: torch.device, values: dict[str, Any]) -> dict[str, Any]:
    moved: dict[str, Any] = tree_map_only(Tensor, lambda v: v.to(device), values)
    return moved


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed derived from the run's seed and a purpose, such as ("order", task, epoch).

    Different purposes are independent, so that drawing more for one changes no other.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(device: torch.device, seed: int, *purpose: str | int) -> torch.Generator:
    """A generator on `device`, seeded by `seed_for`."""
    return torch.Generator(device).manual_seed(seed_for(seed, *purpose))
