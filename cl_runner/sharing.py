"""What the runs of one machine share: its cores and its GPUs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any


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
def gpu(number: int, folder: Path | None = None) -> Iterator[int]:
    """Which of `number` visible GPUs to use, from 0: one that the fewest runs use, until the end.

    A run holds a lock, which dies with it: the file of a GPU is named as CUDA_VISIBLE_DEVICES does,
    so that it is the same for processes that see different ones. folder: of the locks.
    """
    from filelock import FileLock, Timeout

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")
    names = visible[:number] if len(visible) >= number > 0 else [str(i) for i in range(number)]
    folder = folder or Path(tempfile.gettempdir(), f"cl-run-gpus-{os.getuid()}")
    folder.mkdir(parents=True, exist_ok=True)
    for place in count():  # the second place of a GPU is taken when each has a run
        for index, name in enumerate(names):
            try:
                lock = FileLock(folder / f"{name}.{place}.lock").acquire(timeout=0)
            except Timeout:
                continue
            with lock:
                yield index
            return
