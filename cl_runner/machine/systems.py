"""What Windows does otherwise than Linux and macOS: files that are open, folders, signals."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

WINDOWS = sys.platform == "win32"
PATIENCE = 2.0  # seconds in which another process closes a file that it reads
MOST_WORKERS = 61  # processes of a pool on Windows, which waits for no more handles at once


def replace(source: Path, target: Path) -> None:
    """Rename a file onto another one, or to a name that is free. Raises OSError.

    On Windows that fails while any process, such as a search for viruses, reads either of them: it
    is tried again until they have had time to close it.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            source.replace(target)
        except PermissionError:
            if not WINDOWS or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def sync_folder(folder: Path) -> None:
    """Flush to the disk which files a folder has, where the system can: Windows cannot."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except PermissionError:  # of Windows, or of a folder that may be written and not read
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such flush
            raise
    finally:
        os.close(number)


def ask_to_stop(pid: int) -> None:
    """Ask another process to save and stop, if it is still there.

    Not on Windows, where that would end it as it stands: there Ctrl-C reaches all processes of a
    console by itself.
    """
    if not WINDOWS:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def hand_on(process: subprocess.Popen[str], number: int) -> None:
    """Tell a process that was begun here of a signal.

    On Windows Ctrl-C has reached it by the console, and of others it can only be ended.
    """
    if not WINDOWS:
        process.send_signal(number)
    elif number != signal.SIGINT:
        process.terminate()


def stop_oneself() -> None:
    """Let the main thread handle a SIGTERM, whichever thread this is.

    On Windows the signal must not come by way of the system, which would end the process at once.
    Elsewhere it shall, since it then ends what the main thread waits for.
    """
    if WINDOWS:
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def leave_to_the_parent(numbers: list[signal.Signals]) -> None:
    """Let signals of the terminal pass a worker process by: the parent tells it what to do.

    On Windows the parent cannot. There a run within the worker heeds them, as any other run does;
    they are not ignored then, only without effect between two runs.
    """
    for number in numbers:
        signal.signal(number, (lambda *_: None) if WINDOWS else signal.SIG_IGN)


def workers(wanted: int) -> int:
    """So many processes of a pool, or as many as the system allows."""
    return min(wanted, MOST_WORKERS) if WINDOWS else wanted
