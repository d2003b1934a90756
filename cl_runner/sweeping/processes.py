"""Runs in worker processes, which end when their parent does."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

from cl_runner.config.schema import Config
from cl_runner.machine import systems
from cl_runner.machine.signals import OF_TERMINALS, Interrupted
from cl_runner.running.messages import logged
from cl_runner.running.told import tell_of
from cl_runner.sweeping.job import Job, given_up, run_locked

log = logging.getLogger(__name__)
SAVING = 1.5  # seconds that a worker has to save when the parent process is gone
LOOK = 0.5  # seconds after which the parent heeds a signal, where it does not at once
LEAVING = 0.2  # seconds until a worker ends once its run was stopped and saved


def in_processes(jobs: Sequence[Job]) -> None:
    """Run jobs in as many processes as there are cores, one thread each unless `threads` is set."""
    workers = systems.workers(min(len(jobs), os.cpu_count() or 1))
    log.info("%d runs in %d processes", len(jobs), workers)
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=stay_with_the_parent) as pool:
        try:
            keep_busy(pool, workers, jobs)
        except BaseException:  # Ctrl-C: those that wait are not begun, those that run are saved
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():
                child.terminate()
            raise


def keep_busy(pool: ProcessPoolExecutor, workers: int, jobs: Sequence[Job]) -> None:
    """Run jobs, as many at a time as there are workers; none waits in the pool's own queue."""
    todo, running = iter(jobs), dict[Future[float], Job]()
    while True:
        while len(running) < workers and not given_up(jobs) and (job := next(todo, None)):
            try:
                running[pool.submit(work, job.config, job.out, job.overrides)] = job
            except BrokenProcessPool:
                break  # this job and those that wait are run alone
        if not running:
            return
        # Not for ever, since on Windows Ctrl-C does not end a wait.
        for future in wait(running, LOOK, FIRST_COMPLETED).done:
            take_outcome(running.pop(future), future)


def stay_with_the_parent() -> None:
    """Set up a worker: it ignores the terminal's signals and ends when its parent does."""
    systems.leave_to_the_parent(OF_TERMINALS)
    threading.Thread(target=end_with_the_parent, daemon=True).start()


def end_with_the_parent() -> None:
    """Wait for the end of the parent process, then save and stop."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    systems.stop_oneself()
    time.sleep(SAVING)
    os._exit(1)


def take_outcome(job: Job, future: Future[float]) -> None:
    """Take a job's outcome from its process."""
    try:
        job.outcome = future.result()
        if job.config.told:
            tell_of(job.config, job.out, job.title)
    except BrokenProcessPool:  # a process was killed: this job and those still waiting
        log.warning("%s was stopped with its process, and is repeated alone", job.out)
    except Exception as error:  # noqa: BLE001 - one job's failure
        job.outcome = error


def work(config: Config, out: Path, overrides: Sequence[str]) -> float:
    """One run in a process of its own."""
    logging.getLogger().setLevel(logging.INFO)
    logging.raiseExceptions = False  # as in cli.main
    with logged(out):
        own = dataclasses.replace(config, threads=config.threads or 1, verbose="false")
        try:
            return run_locked(own, out, overrides, out.name)
        except Interrupted:
            # The pool would let this process wait for more, behind a lock that may have died with
            # another one. It says what was, and goes.
            leave = threading.Timer(LEAVING, os._exit, (1,))
            leave.daemon = True
            leave.start()
            raise
