"""A data set in memory, what all readers of one have in common: checks, and what is told."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_runner.errors import UserError, check, exhausted
from cl_runner.machine import ram

KEYS = ("x_train", "y_train", "x_test", "y_test")
SPLITS = ("train", "test")
DELETE = "delete it, so that it is made again"
CORRECT = "correct the file that data.path names"
Tell = Callable[[str], None]  # says a line to the user
UNTOLD = {"Cc", "Cs", "Zl", "Zp"}  # kinds of characters that no line of text holds
Decoded = dict[str, NDArray[Any]]  # by KEYS: x [N, H, W], [N, H, W, C] or [N, D]; y [N] integers


class Damaged(UserError):
    """A file that is not what was once written: cut, or with other bits."""


class Arrays(NamedTuple):
    """A data set in memory; feature vectors of length D are images of size 1 x D."""

    x_train: Tensor  # [N, C, H, W] uint8, or float32 from a floating .npz file
    y_train: Tensor  # [N]          int64, 0 .. len(classes) - 1
    x_test: Tensor  # [M, C, H, W]  as x_train
    y_test: Tensor  # [M]           as y_train
    classes: tuple[str, ...]  # names
    slice_train: Tensor | None = None  # [N] int64, which slice a sample belongs to; None: no slices
    slice_test: Tensor | None = None  # [M] likewise
    slices: tuple[str, ...] = ()  # their names, in the order of the tasks
    remarks: tuple[str, ...] = ()  # on the data, to be told by every run on them
    given: tuple[int, int, int] | None = None  # [C, H, W] before benchmark.resize; None: as x_train


def check_free(what: str, needed: int) -> None:
    """Raise UserError if memory has no room for so many bytes of data."""
    free = ram.available(torch.device("cpu"))
    message = f"not enough memory: {what} take {ram.size(needed)}, and {{}} are free"
    check(free is None or needed <= free, message.format(ram.size(free or 0)))


def check_arrays(arrays: Decoded, source: Path, remedy: str, classes: tuple[str, ...] = ()) -> None:
    """Raise UserError unless the arrays make a data set; with `classes`, one of uint8 images."""
    train = arrays["x_train"]
    for split in SPLITS:
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        first, last = x.shape[1:2], x.shape[3:]  # H and C of (N, H, W, C)
        rules = {
            "x_* must be of shape (N, H, W), (N, H, W, C) or (N, D)": x.ndim in (2, 3, 4),
            "x_* must not be empty": x.size > 0,
            "x_* must have its channels last": not last or last <= (4,) or first > (4,),
            "x_* must be uint8 (0 .. 255) or floating": x.dtype == np.uint8 or x.dtype.kind == "f",
            "x_* must hold uint8 images": not classes or (x.dtype == np.uint8 and x.ndim > 2),
            "y_* must hold integers": y.dtype.kind in "iu",
            "y_* must hold one label for each sample": y.shape == x.shape[:1],
            f"x_* must be like x_train, {train.dtype} {train.shape}": x.dtype == train.dtype
            and x.shape[1:] == train.shape[1:],
        }
        got = f"got {x.dtype} {x.shape} and {y.dtype} {y.shape}"
        for rule, holds in rules.items():
            check(holds, f"{source}: {rule.replace('*', split)}, {got}; {remedy}")
        right = not classes or (int(y.min()) >= 0 and int(y.max()) < len(classes))
        check(right, f"{source}: y_{split} must lie in 0 .. {len(classes) - 1}; {remedy}")


def tensors(arrays: Decoded, classes: tuple[str, ...]) -> Arrays:
    """Checked arrays in the layout of Arrays; only channels-last images are copied."""
    x_train, x_test = (_images(torch.from_numpy(arrays[f"x_{split}"])) for split in SPLITS)
    y_train, y_test = (torch.from_numpy(arrays[f"y_{split}"].astype(np.int64)) for split in SPLITS)
    return Arrays(x_train, y_train, x_test, y_test, classes)


def _images(x: Tensor) -> Tensor:
    """[N, D], [N, H, W] or [N, H, W, C] as [N, C, H, W]."""
    if x.ndim == 4:
        return x.permute(0, 3, 1, 2).contiguous()
    return (x[:, None] if x.ndim == 3 else x[:, None, None]).contiguous()


@contextmanager
def told(fault: str, remedy: str) -> Iterator[None]:
    """Turn whatever damaged input makes numpy, torchvision or PIL raise into one line.

    A lack of memory is no damage, and passes.
    """
    try:
        yield
    except (UserError, PermissionError):  # what may not be read is not damaged: never "delete it"
        raise
    except Exception as error:
        if exhausted(error):
            raise
        raise UserError(f"{fault} ({reason(error)}): {remedy}") from None


@contextmanager
def reading(dataset: str) -> Iterator[None]:
    """Tell in one line that memory does not suffice, or that a folder or a disk fails."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if exhausted(error):
            message = f"not enough memory to read {dataset}: free some, or take a smaller data set"
            raise UserError(message) from None
        if not isinstance(error, OSError):
            raise
        message = f"cannot read the data ({reason(error)}): check data.root and data.path"
        raise UserError(message) from None


def expanded(path: Path) -> Path:
    """The path with ~ replaced. Raises UserError for the home of somebody unknown."""
    with told(f"{path} is no path", "correct data.root or data.path"):
        return path.expanduser()


def natural(name: str) -> tuple[list[str | int], str]:
    """What names are sorted by: month_2 comes before month_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def check_name(name: str, where: str) -> None:
    """Raise UserError for the name of a task or a class that no line of text can hold."""
    told = all(unicodedata.category(character) not in UNTOLD for character in name)
    check(told, f"{where}: the name {name!r} holds control characters or bytes that are no text")


def reason(error: Exception) -> str:
    """The last line of an error, which is where torchvision and urllib say why."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:200]
