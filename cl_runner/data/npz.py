"""Files of numpy's format .npz, which somebody else may have written, as a data set."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cl_runner.data.arrays import (
    CORRECT,
    KEYS,
    Arrays,
    Damaged,
    Decoded,
    check_arrays,
    check_free,
    reason,
    tensors,
)
from cl_runner.errors import UserError, check, exhausted
from cl_runner.machine import systems
from cl_runner.machine.reading import regular

HEADER = 2**16  # bytes; numpy refuses longer ones of arrays
SMALL = 2**26  # bytes; arrays below may be packed as closely as they like
DENSEST = 200  # how many times its packed size a larger array may be


def npz(file: Path) -> Arrays:
    """The user's .npz file; labels are numbered in the sorted order of the training labels."""
    with regular(file) as stream:
        packed = stream.read(2) == b"PK"
    wanted = "data.path must be an .npz file, or with benchmark=split_folder a folder of images"
    check(packed, f"{wanted}; {file} is something else")
    try:
        arrays = read(file, CORRECT)
    except Damaged as error:
        raise UserError(f"{error}: {CORRECT}") from None
    check_arrays(arrays, file, CORRECT)
    arrays = in_float32(arrays, file)
    values = np.unique(arrays["y_train"])
    unknown = np.setdiff1d(arrays["y_test"], values)
    some = ", ".join(str(value) for value in unknown[:5])
    check(not some, f"{file}: y_test has labels that y_train has not, {some}; {CORRECT}")
    for key in ("y_train", "y_test"):
        arrays[key] = np.searchsorted(values, arrays[key])
    return tensors(arrays, tuple(str(value) for value in values))


def in_float32(arrays: Decoded, file: Path) -> Decoded:
    """The same, what is no image of bytes as float32. Raises UserError for what does not fit it."""
    found = dict(arrays)
    for key in ("x_train", "x_test"):
        if arrays[key].dtype != np.uint8:
            with np.errstate(over="ignore"):
                found[key] = arrays[key].astype(np.float32, copy=False)
            finite = bool(np.isfinite(found[key]).all())
            check(finite, f"{file}: {key} must be finite in float32; {CORRECT}")
    return found


def read(file: Path, remedy: str) -> Decoded:
    """The four arrays of an .npz file. Raises Damaged, or UserError where it lacks one."""
    arrays = members(file, KEYS)
    missing = [key for key in KEYS if key not in arrays]
    check(not missing, f"{file} lacks {', '.join(missing)}: {remedy}")
    return arrays


def members(file: Path, keys: Sequence[str]) -> Decoded:
    """Those of the arrays `keys` that an .npz file has. Raises Damaged.

    Each is read to its end, where its checksum is.
    """
    arrays: Decoded = {}
    with regular(file) as stream:
        if not zipfile.is_zipfile(stream):
            raise Damaged(f"{file} is damaged or not an .npz file")
        try:
            with zipfile.ZipFile(stream) as archive:
                there = set(archive.namelist())
                wanted = {k: archive.getinfo(f"{k}.npy") for k in keys if f"{k}.npy" in there}
                _check_sizes(file, list(wanted.values()))
                for key, info in wanted.items():
                    with archive.open(info) as member:
                        arrays[key] = _array(key, member, info.file_size)
        except (UserError, PermissionError):
            raise
        except Exception as error:
            if exhausted(error):  # what does not fit into memory is not damaged
                raise
            raise Damaged(f"{file} cannot be read ({reason(error)})") from None
    return arrays


def save(file: Path, arrays: Decoded) -> None:
    """Write an .npz file, whole or not at all: a disk that is full costs no more than that."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # no key is allow_pickle
            stream.flush()
            os.fsync(stream.fileno())
        systems.replace(part, file)
    except OSError:
        with suppress(OSError):
            part.unlink()


def _check_sizes(file: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise UserError unless what an .npz file unpacks to is plausible and fits into memory.

    Raises ValueError for sizes that contradict each other.
    """
    for member in members:
        packed, unpacked = member.compress_size, member.file_size
        stored = member.compress_type == zipfile.ZIP_STORED
        if packed > file.stat().st_size or (stored and packed != unpacked):
            raise ValueError(f"the size of {member.filename} is wrong")
        check(
            unpacked <= SMALL or unpacked <= DENSEST * packed,
            f"{file}: {member.filename} would unpack to {unpacked / 1e6:.0f} MB, more than "
            f"{DENSEST} times its size; if that is meant, save it unpacked, by numpy.savez",
        )
    check_free(f"the arrays of {file}", sum(member.file_size for member in members))


def _array(key: str, member: IO[bytes], length: int) -> NDArray[Any]:
    """An array from a file of `length` bytes, whose header is held against that first."""
    stream = io.BytesIO(member.read(HEADER))
    first = np.lib.format.read_magic(stream) == (1, 0)
    headers = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    read = headers[0 if first else 1]
    shape, _, dtype = read(stream)
    told = stream.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and told != length:
        raise ValueError(f"{key} is {'longer' if length > told else 'shorter'} than it says")
    member.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array
