"""What the runs of one machine share: its cores and its GPUs."""

from __future__ import annotations

import getpass
import logging
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from cl_runner.machine import systems

log = logging.getLogger(__name__)


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def at_once(launcher: Mapping[str, Any], jobs: int) -> int:
    """How many of a sweep's jobs a launcher runs at once on this machine, as far as is known.

    Slurm gives each job cores of its own, and Ray sets the number of threads itself.
    """
    match str(launcher["_target_"]).rpartition(".")[2]:
        case "JoblibLauncher":
            asked = int(launcher["n_jobs"])
            workers = asked if asked > 0 else max(1, cores() + 1 + asked)
            return min(workers, jobs) if jobs else workers
        case "LocalLauncher":  # submitit's, which begins all jobs
            return max(1, jobs)
    return 1


@contextmanager
def gpu(
    number: int, folder: Path | None = None, free: Sequence[int] | None = None
) -> Iterator[int]:
    """Which of `number` visible GPUs to use, from 0: one that the fewest runs use, until the end.

    Not one that others, whoever they are, have filled: with less than half of the memory that the
    emptiest has free. A run holds a lock, which dies with it: the file of a GPU is named as
    CUDA_VISIBLE_DEVICES does, so that it is the same for processes that see different ones.
    folder: of the locks. free: bytes of each GPU, if known.
    """
    folder = folder or lock_folder()
    free = [0] * number if free is None else free
    order = sorted(range(number), key=lambda index: -free[index])  # of equal ones the first
    order = [index for index in order if free[index] >= max(free) / 2]
    if folder is None:
        yield order[0]
        return
    from filelock import FileLock, Timeout

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")
    names = visible[:number] if len(visible) >= number > 0 else [str(i) for i in range(number)]
    for place in count():  # the second place of a GPU is taken when each has a run
        for index in order:
            try:
                lock = FileLock(folder / f"{names[index]}.{place}.lock").acquire(timeout=0)
            except Timeout:
                continue
            with lock:
                yield index
            return


def lock_folder() -> Path | None:
    """The user's folder of locks, for the user alone; None if someone else has made it."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir(), f"cl-run-gpus-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
        ours = stat.S_ISDIR(about.st_mode) and (about.st_uid == user or systems.WINDOWS)
        if ours:
            folder.chmod(0o700)
    except OSError:
        ours = False
    if not ours:
        log.warning("%s is another user's: GPUs are chosen by their free memory alone", folder)
    return folder if ours else None


def free_memory() -> list[int] | None:
    """Bytes that each visible GPU has free, by NVIDIA's own tool; None where it does not say.

    torch can tell as well, but for that it would take some hundred megabytes on each of them.
    """
    import torch

    query = ["nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"]
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        known = dict(line.split(", ") for line in said.splitlines())
        return [int(known[f"GPU-{device.uuid}"]) * 2**20 for device in devices]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, AttributeError):
        return None
