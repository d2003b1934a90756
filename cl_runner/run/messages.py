"""What a run says besides its results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from cl_runner.config.schema import Config
from cl_runner.machine.console import say
from cl_runner.results.names import LOG
from cl_runner.run.checkpoint import Saved
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env

log = logging.getLogger(__name__)
say_once = cache(say)  # of several jobs in this process, the first


def where_it_goes_on(out: Path, saved: Saved | None) -> str:
    """Where a run goes on."""
    if saved is None:
        return f"there is nothing to resume, this run starts from the beginning: {out}"
    step = f" after step {saved.progress.step}" if saved.progress else ""
    return f"goes on in task {saved.task + 1}{step}: {out}"


def notes(strategy: Strategy, env: Env) -> Iterator[str]:
    """What to know about a run before its numbers are read."""
    if strategy.regulariser and env.stream.scenario == "class" and env.num_tasks > 1:
        yield (
            f"strategy={strategy.name} is a pure regulariser: in class-incremental learning expect "
            "little more than strategy=naive; run that and strategy=joint, the bounds, beside it"
        )
    yield from strategy.notes(env)


def print_and_log(config: Config, text: str, aloud: Callable[[str], None] = say) -> None:
    """A line for the log, and for the console unless verbose=false."""
    log.info("%s", text)
    if config.verbose:
        aloud(text)


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
