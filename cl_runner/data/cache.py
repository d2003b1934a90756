"""Decoded data, kept: files that are as they were are not decoded again.

The copy is a hidden .npz file beside the data, or below `data.root` where that folder cannot be
written. Its name says from which state of the files (their names, sizes and times) and with which
options it was made, so that a file that is changed, added or removed is seen. What cannot be
written costs nothing but the copy.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cl_runner.data.arrays import Arrays, Damaged, Decoded
from cl_runner.data.npz import members, save

VERSION = 2  # of what a copy holds: another one makes all copies anew
log = logging.getLogger(__name__)


def cached(
    sources: Sequence[Path | str],
    options: Mapping[str, Any],
    path: Path,
    root: Path,
    make: Callable[[], Arrays],
    tell: Callable[[str], None],
) -> Arrays:
    """What `make` gives, or the copy of it if nothing has changed since that was made.

    sources: the files that make reads: `path` itself, or files below it. options: what else shapes
    the result, the kind of reader among it; copies with different options stand beside each other.
    Two jobs that need the same data wait for each other. A damaged copy is made again, which is
    told. Raises what make raises.
    """
    state, shape = _state(sources, path), _digest(repr(sorted(options.items())))
    damage = ""
    for folder, prefix in _places(path, root):
        try:
            found = _read(folder / f"{prefix}-{state}-{shape}.npz")
        except Damaged as error:
            damage = f"{error}: it is made again"
        else:
            if found is not None:
                return found
    if damage:
        tell(damage)
    for folder, prefix in _places(path, root):
        with locked(folder, prefix) as lasts:
            if not lasts:
                continue
            file = folder / f"{prefix}-{state}-{shape}.npz"
            with suppress(Damaged):
                found = _read(file)  # made by the process that had the lock
                if found is not None:
                    return found
            arrays = make()
            _remove_old(folder, prefix, state)
            save(file, _decoded(arrays))
            log.info("decoded data are kept in %s", file)
            return arrays
    return make()


def _places(path: Path, root: Path) -> tuple[tuple[Path, str], ...]:
    """Folders in which a copy may stand, and how its name begins there."""
    inside = (path, ".cl_runner") if path.is_dir() else (path.parent, f".{path.name}.cl_runner")
    return inside, (root, f".cl_runner-{_digest(os.fspath(path.resolve()))}")


def _state(sources: Sequence[Path | str], path: Path) -> str:
    """A digest of names relative to path, sizes and times of files."""
    above, lines = len(os.fspath(path)), [f"{VERSION}"]
    for file in sources:
        source = os.fspath(file)
        about = os.stat(source)  # noqa: PTH116 - of 60,000 files
        lines.append(f"{source[above:]}\0{about.st_size}\0{about.st_mtime_ns}")
    return _digest("\n".join(lines))


def _digest(text: str) -> str:
    return blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _read(file: Path) -> Arrays | None:
    """The data set of a copy; None where there is none. Raises Damaged."""
    try:
        found = members(file, Arrays._fields)
    except OSError:  # none there, or it may not be read
        return None
    try:
        values: dict[str, Any] = {
            key: tuple(value.tolist()) if value.dtype.kind == "U" else torch.from_numpy(value)
            for key, value in found.items()
        }
        arrays = Arrays(**values)
        sound = _is_sound(arrays)
    except (TypeError, AttributeError, RuntimeError):
        sound = False
    if not sound:
        raise Damaged(f"{file} holds something else than it was written with")
    return arrays


def _is_sound(arrays: Arrays) -> bool:
    """Whether the arrays make a data set."""
    x, x_test = arrays.x_train, arrays.x_test
    parts: list[Any] = [
        (x, arrays.y_train, arrays.classes),
        (x_test, arrays.y_test, arrays.classes),
    ]
    if arrays.slices:
        parts += [
            (x, arrays.slice_train, arrays.slices),
            (x_test, arrays.slice_test, arrays.slices),
        ]
    return (
        x.ndim == x_test.ndim == 4
        and x.shape[1:] == x_test.shape[1:]
        and x.dtype == x_test.dtype
        and x.dtype in (torch.uint8, torch.float32)
        and all(
            id_.dtype == torch.int64
            and id_.shape == images.shape[:1]
            and bool(((id_ >= 0) & (id_ < len(names))).all())
            for images, id_, names in parts
        )
    )


def _decoded(arrays: Arrays) -> Decoded:
    """The fields of a data set as numpy's arrays; names are of its Unicode type, never pickled."""
    there = {key: value for key, value in arrays._asdict().items() if value is not None}
    return {
        key: np.array(value, dtype=None if value else "U1")
        if isinstance(value, tuple)
        else value.numpy()
        for key, value in there.items()
    }


@contextmanager
def locked(folder: Path, prefix: str) -> Iterator[bool]:
    """Whether a copy can be written into the folder; it is this process's alone meanwhile."""
    from filelock import FileLock

    lock = FileLock(folder / f"{prefix}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # read-only, or a file system without locks
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _remove_old(folder: Path, prefix: str, state: str) -> None:
    """Remove the copies of what the files no longer are."""
    with suppress(OSError):
        for file in folder.iterdir():
            own = file.name.startswith(f"{prefix}-") and file.suffix == ".npz"
            if own and not file.name.startswith(f"{prefix}-{state}-"):
                file.unlink()
