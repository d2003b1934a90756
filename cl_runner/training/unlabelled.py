"""Inputs without labels in the place of the training set: rows of a file, or test inputs."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cl_runner.core import Stream, Task
from cl_runner.data.arrays import expanded
from cl_runner.data.npz import members
from cl_runner.errors import UserError, check
from cl_runner.training.env import Env

KEYS = ("x", "x_train")  # the array that is read, the first that is there


def read_rows(key: str, name: str, stream: Stream) -> Tensor:
    """The inputs [n, C, H, W] in the .npz file that a configuration's `key` names.

    The array is `x`, or `x_train`, laid out as in the files of benchmark=split_npz. Raises
    UserError unless they are like those of the stream, in shape and kind.
    """
    where = f"{key}={name}"
    file = expanded(Path(name))
    check(file.suffix == ".npz", f"{where}: it must be an .npz file")
    check(file.exists(), f"{where}: there is no such file")
    try:
        arrays = members(file, KEYS)
    except OSError as error:
        raise UserError(f"{where}: cannot read it: {error.strerror}") from None
    check(bool(arrays), f"{where}: it holds neither of the arrays {' and '.join(KEYS)}")
    name, x = next((k, arrays[k]) for k in KEYS if k in arrays)
    own = stream.x
    right = x.ndim in (2, 3, 4) and (x.dtype == np.uint8 or x.dtype.kind == "f")
    check(
        right and len(x) > 0,
        f"{where}: {name} must be images (N, H, W) or (N, H, W, C), or vectors (N, D), of uint8 or "
        f"floats, got {x.dtype} {x.shape}",
    )
    shape = (x.shape[3], *x.shape[1:3]) if x.ndim == 4 else (1,) * (4 - x.ndim) + x.shape[1:]
    same = shape == own.shape[1:] and (x.dtype == np.uint8) == (own.dtype == torch.uint8)
    check(
        same,
        f"{where}: its rows are {kind(x.dtype == np.uint8, shape)}, those of the benchmark "
        f"{kind(own.dtype == torch.uint8, tuple(own.shape[1:]))}; they must be alike, after "
        "benchmark.resize and benchmark.pad_to",
    )
    rows = torch.from_numpy(np.moveaxis(x, 3, 1) if x.ndim == 4 else x.reshape(len(x), *shape))
    rows = rows.to(own.dtype)
    check(bool(torch.isfinite(rows.float()).all()), f"{where}: {name} must be finite")
    return rows.contiguous().to(own.device)


def kind(whole: bool, shape: tuple[int, ...]) -> str:
    """Rows in words."""
    return f"{'uint8' if whole else 'floats'} of (channels, height, width) {shape}"


def unlabelled(stream: Stream, images: Tensor, task: Task) -> tuple[Stream, Task]:
    """The stream with these images as training set, all of them the task's, as it shows images.

    Labels it has none.
    """
    y = torch.zeros(len(images), dtype=stream.y.dtype, device=images.device)
    every = torch.arange(len(images), device=images.device)
    return replace(stream, x=images, y=y), replace(task, train=every, of=None)


def without_labels(task: Task, env: Env, images: Tensor) -> tuple[Task, Env]:
    """The task, and the environment, with these images as training set (see `unlabelled`)."""
    env = copy(env)
    env.stream, task = unlabelled(env.stream, images, task)
    return task, env
