"""Hydra's callback: what is done when a run or a sweep begins and ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cl_runner.errors import UserError, check
from cl_runner.machine.console import say
from cl_runner.machine.screen import owned
from cl_runner.results.files import below
from cl_runner.results.names import SUMMARY
from cl_runner.results.status import inside
from cl_runner.sweeping.count import jobs_shown, sweep
from cl_runner.sweeping.folders import STOP, note_folder, runs, sweeps
from cl_runner.sweeping.merge import compared, failures, merge, table, tell_failures

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn


IN_THIS_PROCESS = ("BasicLauncher", "VectorizedLauncher")  # where launchers run their jobs


class Folders(Callback):
    """Hydra's callback (conf/config.yaml): notes which folders are new, merges a sweep's results.

    Hydra makes a warning of an Exception in a callback, and goes on; SystemExit passes.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the run's folder before Hydra makes it."""
        with _ending():
            folder = note_folder(config, "run")
        runs[:] = [] if folder is None else [folder]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's folder before Hydra makes it; results in it need resume=true."""
        subdir = str(config.hydra.sweep._get_node("subdir")._value())  # not resolved: a pattern
        with _ending():
            folder = note_folder(config, "sweep")
            check(inside(subdir), f"hydra.sweep.subdir={subdir} leads out of the sweep's folder")
            if folder is not None:
                message = (
                    f"{folder} already holds results; resume=true does what is missing there, or "
                    "choose another hydra.sweep.dir"
                )
                check(config.resume or next(below(folder, SUMMARY), None) is None, message)
                (folder / STOP).unlink(missing_ok=True)
        sweeps[:] = [] if folder is None else [folder]
        if not str(config.hydra.launcher._target_).endswith(IN_THIS_PROCESS):
            sweep.enter_context(owned(by="nobody"))  # what others print would go into our lines
        elif folder is not None:
            sweep.enter_context(jobs_shown(folder, "jobs", told=told(config)))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Let go of a job's configuration: Hydra keeps what it returns until the sweep ends."""
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Merge and report. Exits if jobs failed: 2 for mistakes only, 1 for anything else."""
        if sys.exc_info()[0] is not None:  # Hydra 1.4 calls this on the way out of a failure, too
            return
        folder = Path(config.hydra.sweep.dir)
        sweep.close()
        try:
            rows, failed = merge(folder), failures(folder)
            if told(config):
                say(table(rows))
            compared(folder, verbose=told(config))
            tell_failures(folder, failed, len(rows))
            say(f"{len(rows)} runs · results in {folder / SUMMARY}")
        except Exception as error:
            raise SystemExit(1) from error
        if failed:
            mistakes = [about.get("exception") == UserError.__name__ for about in failed.values()]
            raise SystemExit(2 if all(mistakes) else 1)


def told(config: DictConfig) -> bool:
    """Whether a configuration, which nobody has checked yet, lets the console be told."""
    return str(config.verbose).lower() != "false"


@contextmanager
def _ending() -> Iterator[None]:
    """What is wrong with a folder ends the command (see Folders)."""
    try:
        yield
    except (UserError, OSError) as error:
        raise SystemExit(1) from error
