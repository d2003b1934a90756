"""One run of several: its configuration, its folder, its outcome."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cl_runner.config.schema import Config
from cl_runner.machine.locks import locked
from cl_runner.results import status
from cl_runner.running.loop import run

log = logging.getLogger(__name__)
Outcome = float | Exception | None  # what `run.loop.run` returned or raised; None: not run


class Job:
    """One run of several."""

    def __init__(
        self, config: Config, out: Path, overrides: Sequence[str], title: str = ""
    ) -> None:
        self.config, self.out, self.overrides = config, out, tuple(overrides)
        self.title = title or out.name  # what it is called in the line that tells how it went
        self.outcome: Outcome = None


def run_locked(config: Config, out: Path, overrides: Sequence[str], title: str) -> float:
    """Run a job in a folder that this process has locked, unless another completed it before."""
    with locked(out):
        return run(status.going_on(config, out), out, overrides, title)


def given_up(jobs: Sequence[Job]) -> bool:
    """Whether a job failed and `fail_fast` says that then no more are begun."""
    return any(job.config.fail_fast and isinstance(job.outcome, Exception) for job in jobs)
