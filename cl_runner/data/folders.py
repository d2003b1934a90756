"""Your own stream of images: a folder for each task, and in it one for each class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from cl_runner.config.benchmarks import Folders
from cl_runner.core import seed_for
from cl_runner.data.arrays import SPLITS, Arrays, check_name, natural
from cl_runner.data.cache import cached
from cl_runner.data.images import decoded, images_in, is_image
from cl_runner.errors import UserError, check

FOLDERS = "a folder of tasks with images in <task>/<class>/, or in <task>/train|test/<class>/"
LAYOUT = f"data.path must be {FOLDERS}"


class Samples(NamedTuple):
    """The images of one class of one task that belong to one part of it."""

    task: str
    split: str  # "train" | "test" | "": a share is held out
    label: str
    files: list[str]


def folders(config: Folders, root: Path, path: Path | None, tell: Callable[[str], None]) -> Arrays:
    """The images below `path`, by task and class; a task is a slice of the data.

    Tasks and classes stand in natural order of their names, so that month_2 comes before month_10;
    a class is one by its name, whichever tasks have it. Raises UserError for what is laid out in
    another way, and for images that are damaged, or of several sizes without benchmark.resize.
    """
    check(path is not None, f"{LAYOUT}: set it")
    path = path or Path()
    check(path.is_dir(), f"{LAYOUT}; {path} is none")
    samples = _listed(path)
    options = {"dataset": "folders", "resize": config.resize, "test_fraction": config.test_fraction}
    files = [file for part in samples for file in part.files]
    return cached(files, options, path, root, lambda: _arrays(samples, path, config), tell)


def _listed(path: Path) -> list[Samples]:
    """Which images there are, none of them opened. Raises UserError for another layout."""
    tasks = _folders_in(path, "<task>/<class>/")
    own = set(tasks) == set(SPLITS)
    check(
        not own, f"{path} has the folders train and test and no tasks: take benchmark=split_folder"
    )
    found: list[Samples] = []
    for task in tasks:
        folder = path / task
        classes = _folders_in(folder, "<class>/")
        parted = [s for s in SPLITS if s in classes and _has_folders(folder / s)]
        if not parted:
            found += [Samples(task, "", c, images_in(folder / c)) for c in classes]
            continue
        only = f"{folder} must have train/<class>/ and test/<class>/, and no other folder"
        check(set(classes) == set(SPLITS) == set(parted), f"{only}; it has {', '.join(classes)}")
        for split in SPLITS:
            inner = folder / split
            found += [
                Samples(task, split, c, images_in(inner / c))
                for c in _folders_in(inner, "<class>/")
            ]
    return found


def _folders_in(folder: Path, belong: str) -> list[str]:
    """The folders in a folder in natural order, hidden ones left out. Raises UserError for none."""
    with os.scandir(folder) as entries:
        there = [(entry.name, entry.is_dir()) for entry in entries if entry.name[0] != "."]
    for name, is_dir in there:
        where = f"images belong into {belong} below it"
        check(is_dir or not is_image(name), f"{LAYOUT}; {folder / name} is none of these: {where}")
    names = sorted((name for name, is_dir in there if is_dir), key=natural)
    check(bool(names), f"{LAYOUT}; {folder} holds no folder")
    for name in names:
        check_name(name, f"{folder}")
    return names


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and entry.name[0] != "." for entry in entries)


def _arrays(samples: Sequence[Samples], path: Path, config: Folders) -> Arrays:
    """The images, decoded, with a share of each class held out where a task has no test images."""
    tasks = tuple(dict.fromkeys(part.task for part in samples))
    classes = tuple(sorted({part.label for part in samples}, key=natural))
    files: dict[str, list[str]] = {split: [] for split in SPLITS}
    ids: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}  # (task, class)
    for part in samples:
        shares = _shares(part, path, config.test_fraction)
        for split, own in zip(SPLITS, shares, strict=True):
            files[split] += own
            ids[split] += [(tasks.index(part.task), classes.index(part.label))] * len(own)
    for split in SPLITS:
        for t in sorted(set(range(len(tasks))) - {task for task, _ in ids[split]}):
            raise UserError(
                f"{path / tasks[t]} has too few images: no class of it has one for {split}ing"
            )
    x = decoded([*files["train"], *files["test"]], path, config.resize)
    n = len(files["train"])
    (slice_train, y_train), (slice_test, y_test) = (torch.tensor(ids[s]).T for s in SPLITS)
    return Arrays(
        x_train=x[:n],
        y_train=y_train.contiguous(),
        x_test=x[n:],
        y_test=y_test.contiguous(),
        classes=classes,
        slice_train=slice_train.contiguous(),
        slice_test=slice_test.contiguous(),
        slices=tasks,
    )


def _shares(part: Samples, path: Path, fraction: float) -> tuple[list[str], list[str]]:
    """Images for training and for testing, both in the order of their names.

    Held out is a share of the class, of two images or more at least one and never all: those whose
    names, hashed, come first. So no seed changes it, and a new image moves few others.
    """
    if part.split:
        return (part.files, []) if part.split == "train" else ([], part.files)
    n = len(part.files)
    number = min(max(round(fraction * n), 1), n - 1)
    names = {file: Path(file).relative_to(path).as_posix() for file in part.files}
    order = sorted(part.files, key=lambda file: seed_for(0, "held out", names[file]))
    test = set(order[:number])
    return [f for f in part.files if f not in test], [f for f in part.files if f in test]
