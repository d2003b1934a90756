"""One run of several: its configuration, its folder, its outcome."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cl_runner.config.schema import Config
from cl_runner.machine.locks import locked
from cl_runner.results import status
from cl_runner.results.names import LOG
from cl_runner.run.loop import run

log = logging.getLogger(__name__)
Outcome = float | Exception | None  # what `run.loop.run` returned or raised; None: not run


class Job:
    """One run of several."""

    def __init__(self, config: Config, out: Path, overrides: Sequence[str]) -> None:
        self.config, self.out, self.overrides = config, out, tuple(overrides)
        self.outcome: Outcome = None


def run_locked(config: Config, out: Path, overrides: Sequence[str]) -> float:
    """A run in a folder that is this process's; what another has done meanwhile is not repeated."""
    with locked(out):
        return run(status.going_on(config, out), out, overrides)


def stopped(jobs: Sequence[Job]) -> bool:
    """Whether a job failed and `fail_fast` says that then no more are begun."""
    return any(job.config.fail_fast and isinstance(job.outcome, Exception) for job in jobs)


@contextmanager
def logged(out: Path) -> Iterator[None]:
    """What is logged meanwhile goes to the folder's cl-run.log, and nowhere else."""
    out.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(out / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = before
        handler.close()
