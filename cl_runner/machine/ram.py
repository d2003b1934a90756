"""Memory: what the machine, control groups and ulimit leave to a process, and what it took."""

from __future__ import annotations

import gc
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available(device: torch.device) -> int | None:
    """Bytes that a process may still take, swap included; None where the system does not say.

    On a CPU the least of what the machine, the control groups (of containers and batch jobs) and
    RLIMIT_AS leave; likewise on MPS, whose memory is the machine's.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    import psutil

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that are not asked for here
            swap = int(psutil.swap_memory().free)
            machine = int(psutil.virtual_memory().available) + swap
    except (OSError, psutil.Error):
        return None
    groups = in_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), swap)
    return min(n for n in (machine, groups, address_space()) if n is not None)


def in_groups(root: Path, membership: Path, swap: int) -> int | None:
    """What the process's control groups leave, version 1 or 2; page cache counts as free.

    swap: bytes that the machine has left of it, all of which a group may use, as far as is known.
    """
    try:
        lines = [
            line.split(":", 2) for line in membership.read_text("utf-8", "replace").splitlines()
        ]
    except OSError:
        return None
    left = []
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if controllers not in {"", "memory"}:
            continue
        top = root / controllers
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if not controllers:
            limit, used = ("memory.max", "memory.current")
        group = top / name.lstrip("/")
        folders = [f for f in (group, *group.parents) if f.is_relative_to(top)]
        left += [headroom(f / limit, f / used, f / "memory.stat") for f in folders]
    return min((n + swap for n in left if n is not None), default=None)


def headroom(limit: Path, used: Path, stat: Path) -> int | None:
    """Limit - used + page cache; None without a limit."""
    try:
        counts = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
        # With "total_": version 1, for a group with those below it.
        cache = sum(
            int(counts.get(f"total_{k}", counts.get(k, 0)))
            for k in ("active_file", "inactive_file")
        )
        return (
            int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")) + cache
        )
    except (OSError, ValueError):  # no such files, or the limit is "max"
        return None


def address_space() -> int | None:
    """What RLIMIT_AS (ulimit -v) leaves; None without such a limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit - pages * resource.getpagesize()


def size(n: int) -> str:
    """Bytes in words."""
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew, where the system can do that."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        CLEAR.write_text("5", encoding="ascii")  # see proc(5)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the process's memory at its largest; on a CUDA GPU, of torch's memory there."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def begin_collecting() -> None:
    """Let Python look for garbage from now on, in what is made from now on (see `__main__`)."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
