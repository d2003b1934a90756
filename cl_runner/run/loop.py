"""One run: from a configuration to the files in its folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from cl_runner import strategies
from cl_runner.config.schema import Config
from cl_runner.core import Task, TrainState
from cl_runner.errors import Diverged, UserError
from cl_runner.functional.metrics import acc
from cl_runner.machine.console import near, say
from cl_runner.machine.signals import Stop, stoppable
from cl_runner.results import files, status, text
from cl_runner.run import checkpoint, needs
from cl_runner.run.evaluation import readings
from cl_runner.run.frame import frame_of
from cl_runner.run.messages import notes, position, say_once, tell
from cl_runner.run.prepare import free_gpu, prepare
from cl_runner.run.progress import display
from cl_runner.run.record import Record
from cl_runner.run.tasks import initial_state, restored, train_task
from cl_runner.strategies.base import Strategy
from cl_runner.training.batches import Samples
from cl_runner.training.fit import Begun, Between

log = logging.getLogger(__name__)


def run(config: Config, out: Path, overrides: Sequence[str] = (), job: str = "") -> float:
    """Train on the tasks one after another and write the results into the folder `out`.

    job: the name of a job of many; it says a line in the place of the tables of a run alone.

    Returns the final ACC: on the validation data where there are any, so that a search never sees
    the test data. With `resume` it goes on where the run in that folder was stopped, or returns its
    ACC if it is complete. Raises UserError before anything is written, or when memory or disk are
    full; Diverged, KeyboardInterrupt and unforeseen errors after what was measured so far is
    written with its status.
    """
    try:
        if config.resume:
            checkpoint.check_run(out, config.resolved)
            if (there := status.finished(out)) is not None:
                tidy(config, out)
                tell(config, f"complete, nothing to do: {out}")
                return there
        with free_gpu(config.device):
            return _run(config, out, overrides, job)
    except (MemoryError, RuntimeError) as error:
        if message := needs.shortage(error):
            raise UserError(message) from error
        raise


def tidy(config: Config, out: Path) -> None:
    """Remove what a complete run needs no more, and what a process that was killed left."""
    if config.checkpoint.keep:
        files.remove_leftovers(out)
    else:
        checkpoint.remove(out)


def _run(config: Config, out: Path, overrides: Sequence[str], job: str) -> float:
    started = time.perf_counter()
    strategy = strategies.build(config.strategy, config.plugins)
    env = prepare(config, strategy)
    own, *others = readings(config.scenario)
    s = initial_state(strategy, env)
    saved = None
    if config.resume:
        saved = checkpoint.load(out, config.resolved, frame_of(config, strategy, s, env))
    record = Record(config, strategy, env, out, overrides, started)
    try:
        with stoppable() as stop, display(len(env.stream), config.verbose) as env.meter.display:
            first, begun = 0, None
            if saved is not None:
                s, first, begun = restored(saved.state, env), saved.task, saved.begun
                record.restore(saved, strategy, s)
            else:
                record.evaluated(0, strategy, s)
            for line in notes(strategy, env):
                tell(config, line, say_once if job else say)
            if config.resume:
                tell(config, position(out, saved))
            for task in env.stream[first:]:
                log.info("task %d: classes %s", task.index + 1, ", ".join(task.names))
                env.meter.lap()
                s = train_task(
                    strategy, s, task, env, begun, partial(watch, record, stop, strategy, task)
                )
                env.meter.lap("train_seconds")
                record.evaluated(task.index + 1, strategy, s)
                record.save(s, task.index + 1)
                begun = None
        record.write("complete")
    except BaseException as error:
        record.ended(error)
        log.error("%s", error if isinstance(error, Diverged) else repr(error))
        raise
    tidy(config, out)
    if config.verbose and job:
        say(f"{job} · {text.in_words(record.columns())} · {record.seconds:.1f} s")
    elif config.verbose:
        say(text.format_matrix(record.matrices["test", own]))
        say(text.format_metrics(record.columns(), [own, *others]))
        say(f"{record.seconds:.1f} s · results in {near(out)}")
    if config.plots:
        draw(config, out)
    return result(record)


def draw(config: Config, out: Path) -> None:
    """The pictures of a folder's runs; the run is complete, and stays so if they fail."""
    from cl_runner.compare.pictures import of_folder

    try:
        files = of_folder(out)
        tell(config, f"{len(files)} pictures in {near(files[0].parent)}")
    except Exception as error:  # noqa: BLE001 - the numbers are what counts
        tell(config, f"no pictures: {' '.join(str(error).split())}")


def result(record: Record) -> float:
    """The final ACC of a run; of its validation data where there are any."""
    split = "validation" if ("validation", record.own) in record.matrices else "test"
    return acc(record.matrices[split, record.own])


@contextmanager
def watch(
    record: Record, stop: Stop, strategy: Strategy, task: Task, samples: Samples
) -> Iterator[Between]:
    """Evaluate between the steps of a task if asked to; save the state now and then, and stop."""
    every, steps = record.config.checkpoint.every, record.config.checkpoint.every_steps
    meter = record.env.meter
    look, last = record.config.eval.every, 0

    def between(s: TrainState, step: int, losses: list[Tensor]) -> None:
        nonlocal last
        last = step
        if look is not None and step and step % look == 0:
            record.evaluated_within(task.index, step, strategy, s)
        due = every is not None and time.perf_counter() - record.saved_at >= every
        if due or stop.asked or (steps is not None and step and step % steps == 0):
            meter.lap("train_seconds")
            record.save(s, task.index, Begun(samples, step, tuple(losses)))
            meter.lap()
        stop.check()

    with stop.stepping():
        yield between
    record.drop(task.index, last)
