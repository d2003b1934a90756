"""What happens around the jobs of a sweep: their folders, their failures, the merged summary.csv.

A sweep's folder is its state: each job leaves `status.json` and, once it has measured something,
`summary.csv` in a folder of its own, and everything here is read from there. So it works with every
launcher, whichever process or machine a job ran on.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cl_runner import status
from cl_runner.compare.cli import after_sweep
from cl_runner.console import say
from cl_runner.errors import UserError, check
from cl_runner.locks import LOCK, held
from cl_runner.naming import written
from cl_runner.status import JOBS, OVERRIDES, STATUS, inside, one_line

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

SUMMARY, TRACEBACK = "summary.csv", "traceback.txt"
STOP = ".stop"  # in the folder of a sweep that begins no more jobs, see fail_fast
SAVING = 1.5  # seconds that other processes have to save, when this command is stopped
FILES = (
    *(SUMMARY, STATUS, "config.yaml", OVERRIDES, "accuracies.csv", "accuracy_matrix.csv"),
    "checkpoint.safetensors",
)
SHOWN = ("benchmark", "strategy", "seed", "ACC", "forgetting", "status", "run")  # final table
# What Hydra and we may have left in the folder of a run or sweep that is refused.
REMOVABLE = {"multirun.yaml", "cl-run.log", LOCK, JOBS}

_created: list[Path] = []  # folders that this command makes, innermost first
_runs: list[Path] = []  # the folder of the run alone that is running
_sweeps: list[Path] = []  # the folder of the sweep that is running
_refused: dict[Path, Exception] = {}  # jobs of this process whose folders hold a complete run


class Folders(Callback):
    """Hydra's callback (conf/config.yaml): notes which folders are new, merges a sweep's results.

    Hydra makes a warning of an Exception in a callback, and goes on; SystemExit passes.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the run's folder before Hydra makes it."""
        with _ending():
            folder = _note(config, "run")
        _runs[:] = [] if folder is None else [folder]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's folder before Hydra makes it; results in it need resume=true."""
        subdir = str(config.hydra.sweep._get_node("subdir")._value())  # not resolved: a pattern
        with _ending():
            folder = _note(config, "sweep")
            check(inside(subdir), f"hydra.sweep.subdir={subdir} leads out of the sweep's folder")
            if folder is not None:
                message = (
                    f"{folder} already holds results; resume=true does what is missing there, or "
                    "choose another hydra.sweep.dir"
                )
                check(config.resume or next(folder.rglob(SUMMARY), None) is None, message)
                (folder / STOP).unlink(missing_ok=True)
        _sweeps[:] = [] if folder is None else [folder]

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Let go of a job's configuration: Hydra keeps what it returns until the sweep ends."""
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Merge and report. Exits if jobs failed: 2 for mistakes only, 1 for anything else."""
        folder = Path(config.hydra.sweep.dir)
        try:
            rows, failed = merge(folder), failures(folder)
            if config.verbose:
                say(table(rows))
            compared(folder, verbose=config.verbose)
            tell_failures(folder, failed, len(rows))
            say(f"{len(rows)} runs · results in {folder / SUMMARY}")
        except Exception as error:
            raise SystemExit(1) from error
        if failed:
            mistakes = [about.get("exception") == UserError.__name__ for about in failed.values()]
            raise SystemExit(2 if all(mistakes) else 1)


@contextmanager
def _ending() -> Iterator[None]:
    """What is wrong with a folder ends the command (see Folders)."""
    try:
        yield
    except (UserError, OSError) as error:
        raise SystemExit(1) from error


def compared(folder: Path, *, verbose: bool) -> None:
    """Compare the runs of a sweep, and say where; that this fails is no failure of the sweep."""
    try:
        text = after_sweep(folder)
    except Exception as error:  # noqa: BLE001 - the runs are what counts
        say(f"no comparison: {' '.join(str(error).split())}")
        return
    if verbose:
        say(f"\n{text}")
    report = f"cl-compare {shlex.quote(str(folder))} --html report.html"
    say(f"compared in {folder / 'comparison.csv'}; tests and pictures: {report}")


def _note(config: DictConfig, mode: str) -> Path | None:
    HydraConfig.instance().set_config(config)  # the folder's name may refer to ${hydra:...}
    try:
        folder = Path(config.hydra[mode].dir).absolute()
        _created[:] = [path for path in (folder, *folder.parents) if not path.exists()]
    except (OmegaConfBaseException, OSError):  # an invalid name is refused in a moment
        return None
    return folder


def tell_failures(folder: Path, failed: Mapping[str, Mapping[str, Any]], runs: int) -> None:
    """List the failed jobs of a sweep with their reasons, and what was not begun for them."""
    if failed:
        say(f"{len(failed)} of {runs} runs failed:", sys.stderr)
    for run, about in failed.items():
        say(f"  {folder / run}: {one_line(about['reason'])}", sys.stderr)
    if stopped(folder):
        missing = sum(status.state(folder / job) == "missing" for job in status.jobs(folder))
        say(f"fail_fast=true: {missing} jobs were not begun", sys.stderr)


def gather(*, tell: bool) -> None:
    """Merge what the jobs of a sweep that is being stopped have left; tell: list its failures."""
    for folder in _sweeps:
        if next(folder.rglob(SUMMARY), None) is not None:
            rows = merge(folder)
            if tell:
                tell_failures(folder, failures(folder), len(rows))


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
    for out in (out for folder in (_sweeps or _runs) for out in status.found(folder)):
        about = status.read(out)
        at_work = {"host": socket.gethostname(), "state": "running"}.items() <= about.items()
        if at_work and about.get("pid") in own:  # whatever else the file may say
            running.append(out)
            with suppress(ProcessLookupError):
                os.kill(about["pid"], signal.SIGTERM)
    deadline = time.monotonic() + SAVING
    while time.monotonic() < deadline:
        if not any(status.read(out).get("state") == "running" for out in running):
            break
        time.sleep(0.02)


def how_to_go_on() -> str:
    """What to tell the user when the command is interrupted; "" if nothing has begun."""
    for folder in _sweeps:
        where = shlex.quote(f"hydra.sweep.dir={written(str(folder))}")
        return f"; to go on: the same command with {where} resume=true"
    for folder in _runs:
        if (folder / OVERRIDES).exists():
            return f"; to go on: cl-run resume={shlex.quote(str(folder))}"
    return ""


def discard() -> None:
    """Remove the folders that this command made, if nothing but Hydra's own files lies in them."""
    logging.disable()  # what is still logged at exit would make a folder's log file anew
    for folder in _created:
        if held(folder):
            return  # another process uses these folders
        files = list(folder.iterdir()) if folder.is_dir() else []
        if REMOVABLE.issuperset(file.name for file in files):
            for file in files:
                file.unlink()
            with suppress(OSError):  # not made yet, or someone else uses it meanwhile
                folder.rmdir()


def failures(folder: Path) -> dict[str, dict[str, Any]]:
    """The jobs of a sweep that failed or were killed: sub-folder -> status, with a reason."""
    found: dict[str, dict[str, Any]] = {}
    for out in status.found(folder):
        state = status.state(out)
        if state in {"failed", "killed"}:
            about = {"reason": state} | status.read(out) | {"state": state}
            found[out.relative_to(folder).as_posix()] = about
    for out, error in _refused.items():
        if out.is_relative_to(folder.absolute()):
            about = {"reason": str(error), "exception": type(error).__name__, "state": "failed"}
            found[out.relative_to(folder.absolute()).as_posix()] = about
    return found


def refuse(out: Path, error: Exception) -> None:
    """Note that a job was refused whose folder holds a complete run, which stays so."""
    _refused[out] = error


def merge(folder: Path) -> list[dict[str, str]]:
    """Gather the jobs' summary.csv in one, and return its rows.

    The columns are `run`, the sub-folder, and the union of the jobs' columns; what a job has not is
    empty. A job that failed or was killed before it wrote a summary has a row with its status only.
    """
    from cl_runner.results import read_rows, write_rows  # numpy, not needed for help and mistakes

    rows = {run: {"run": run, "status": about["state"]} for run, about in failures(folder).items()}
    for path in folder.rglob(SUMMARY):
        # A job with seeds=[...] has a folder for each, and they count in its place.
        if path.parent != folder and next(path.parent.glob(f"*/{SUMMARY}"), None) is None:
            run = path.parent.relative_to(folder).as_posix()
            rows[run] = {"run": run, **next(iter(read_rows(path)), {})}
    merged = [rows[run] for run in sorted(rows, key=_natural)]
    write_rows(folder / SUMMARY, merged)
    return merged


def _natural(run: str) -> list[tuple[int, str]]:
    """A key that sorts seed=2 before seed=10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", run)]


def table(rows: list[dict[str, str]]) -> str:
    """The main columns of a summary, aligned."""
    cells = [SHOWN, *(tuple(_short(row.get(key, "")) for key in SHOWN) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _short(cell: str) -> str:
    """A fraction with four digits; any other cell, cut where it is long."""
    try:
        return f"{float(cell):.4f}" if "." in cell else cell
    except ValueError:
        return cell if len(cell) <= 48 else f"{cell[:30]}...{cell[-15:]}"
