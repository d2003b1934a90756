"""The folders of the command that is running: which are new, which are refused, how to go on.

A sweep's folder is its state: each job leaves `status.json` and, once it has measured something,
`summary.csv` in a folder of its own, and everything here is read from there. So it works with every
launcher, whichever process or machine a job ran on.
"""

from __future__ import annotations

import logging
import re
import shlex
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cl_runner.machine import systems
from cl_runner.machine.locks import LOCK, held
from cl_runner.results import status
from cl_runner.results.names import (
    ACCURACY_MATRIX,
    ACCURACY_TABLE,
    CONFIG,
    JOBS,
    LOG,
    OVERRIDES,
    STATUS,
    SUMMARY,
)
from cl_runner.results.naming import written

STOP = ".stop"  # in the folder of a sweep that begins no more jobs, see fail_fast
SAVING = 1.5  # seconds that other processes have to save, when this command is stopped
FILES = (
    *(SUMMARY, STATUS, CONFIG, OVERRIDES, ACCURACY_TABLE, ACCURACY_MATRIX),
    "checkpoint.safetensors",
)
# What Hydra and we may have left in the folder of a run or sweep that is refused.
REMOVABLE = {"multirun.yaml", LOG, LOCK, JOBS}
created: list[Path] = []  # folders that this command makes, innermost first
runs: list[Path] = []  # the folder of the run alone that is running
sweeps: list[Path] = []  # the folder of the sweep that is running
refused: dict[Path, Exception] = {}  # jobs of this process whose folders hold a complete run


def note_folder(config: DictConfig, mode: str) -> Path | None:
    """The folder of a run or a sweep (`mode`), which Hydra is about to make; None: invalid."""
    HydraConfig.instance().set_config(config)  # the folder's name may refer to ${hydra:...}
    try:
        folder = Path(config.hydra[mode].dir).absolute()
        created[:] = [path for path in (folder, *folder.parents) if not path.exists()]
    except (OmegaConfBaseException, OSError):  # an invalid name is refused in a moment
        return None
    return folder


def stop(folder: Path) -> None:
    """Begin no more jobs of a sweep, in whichever process."""
    (folder / STOP).touch()


def stopped(folder: Path) -> bool:
    """Whether no more jobs of a sweep are to begin."""
    return (folder / STOP).exists()


def stop_jobs() -> None:
    """Ask the jobs that run in processes of this command to save, and give them a moment for it.

    Launchers kill their processes at once when they are interrupted.
    """
    import psutil

    own = {child.pid for child in psutil.Process().children()}
    running: list[Path] = []
    for out in (out for folder in (sweeps or runs) for out in status.found(folder)):
        about = status.read(out)
        at_work = {"host": socket.gethostname(), "state": "running"}.items() <= about.items()
        if at_work and about.get("pid") in own:  # whatever else the file may say
            running.append(out)
            systems.ask_to_stop(about["pid"])
    deadline = time.monotonic() + SAVING
    while time.monotonic() < deadline:
        if not any(status.read(out).get("state") == "running" for out in running):
            break
        time.sleep(0.02)


def how_to_go_on() -> str:
    """What to tell the user when the command is interrupted; "" if nothing has begun."""
    for folder in sweeps:
        where = shlex.quote(f"hydra.sweep.dir={written(folder.as_posix())}")
        return f"; to go on: the same command with {where} resume=true"
    for folder in runs:
        if (folder / OVERRIDES).exists():
            loggers = [arg for arg in sys.argv[1:] if re.match(r"logger[=.]", arg)]
            again = " ".join(
                [f"resume={shlex.quote(folder.as_posix())}", *map(shlex.quote, loggers)]
            )
            return f"; to go on: cl-run {again}"
    return ""


def discard() -> None:
    """Remove the folders that this command made, if nothing but Hydra's own files lies in them."""
    files_of_logs = (h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler))
    for handler in files_of_logs:
        if Path(handler.baseFilename).parent in created:
            with suppress(OSError):  # of what is still to be written on a full disk
                handler.close()  # Windows removes no open file
    for folder in created:
        if held(folder):
            return  # another process uses these folders
        files = list(folder.iterdir()) if folder.is_dir() else []
        if REMOVABLE.issuperset(file.name for file in files):
            with suppress(OSError):  # not made yet, or someone else uses it meanwhile
                for file in files:
                    file.unlink()
                folder.rmdir()


def refuse(out: Path, error: Exception) -> None:
    """Note that a job was refused whose folder holds a complete run, which stays so."""
    refused[out] = error
