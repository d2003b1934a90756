"""A job's folder belongs to one process at a time, by a lock that dies with its holder."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cl_runner.errors import UserError
from cl_runner.machine import systems

LOCK = ".lock"
PATIENCE = 0.3  # seconds for a lock: `cl-run status` holds it for a moment
# Errors that say that a folder, not only its lock, cannot be written.
UNWRITABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
log = logging.getLogger(__name__)


class Busy(UserError):
    """Another process runs this job."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """A job's folder, for this process alone; if it is made here and stays empty, it goes again.

    Raises Busy, and UserError for a folder that cannot be written.
    """
    from filelock import FileLock, Timeout

    lock, made = FileLock(out / LOCK), not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise Busy(f"another process is at work in {out}") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise UserError(f"cannot write {out}: {error.strerror}") from None
        log.warning("%s cannot be locked: %s", out, error)  # a file system without locks
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                (out / LOCK).unlink()
            lock.release()
            if systems.WINDOWS:  # where no open file can be removed, neither ours nor another's
                with suppress(OSError):
                    (out / LOCK).unlink()
        if made:
            with suppress(OSError):
                out.rmdir()


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Of the processes that share a file, one at a time in here; the others wait."""
    from filelock import FileLock

    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        lock.acquire(timeout=60)
    except (OSError, NotImplementedError) as error:  # a Timeout among them
        log.warning("%s cannot be locked: %s", file, error)
    try:
        yield
    finally:
        lock.release()


def held(out: Path) -> bool:
    """Whether a process is at work in a folder."""
    if not (out / LOCK).exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(out / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # a folder that cannot be written: nobody can tell
        return False
