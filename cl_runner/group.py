"""Several runs at once: as one stacked state if they differ only in numbers, else in processes.

Which way a run takes follows from shapes and device, never from the clock, so that the same sweep
always computes the same numbers.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

import torch

from cl_runner import checkpoint, ensemble, memory, status, strategies
from cl_runner.config import Config
from cl_runner.data.datasets import Arrays
from cl_runner.engine import initial_state
from cl_runner.ensemble import Member
from cl_runner.env import Env
from cl_runner.errors import Diverged, UserError, check
from cl_runner.locks import locked
from cl_runner.results import flatten
from cl_runner.runner import (
    Record,
    draw,
    free_gpu,
    notes,
    prepare,
    read,
    result,
    run,
    tidy,
)
from cl_runner.signals import OF_TERMINALS, Interrupted

log = logging.getLogger(__name__)
# Floating-point operations of one member's step below which a CPU spends more time between the
# operations than in them: 6 x batch size x parameters.
SMALL_STEP = 2e7
SAVING = 1.5  # seconds that a worker has to save when the parent process is gone
LEAVING = 0.2  # seconds until a worker ends once its run was stopped and saved
Outcome = float | Exception | None  # what `runner.run` returned or raised; None: not run


class Job:
    """One run of several."""

    def __init__(self, config: Config, out: Path, overrides: Sequence[str]) -> None:
        self.config, self.out, self.overrides = config, out, tuple(overrides)
        self.outcome: Outcome = None


def run_all(jobs: Sequence[Job]) -> None:
    """Run the jobs, each into its folder, and set their outcomes; one that fails stops no other.

    A job whose outcome stays None was not run, or was part of a stack that failed as a whole: run
    it alone.
    """
    rest = [job for job in jobs if (job.out / checkpoint.NAME).exists()]  # they go on alone
    for group in groups([job for job in jobs if job not in rest]):
        if len(group) == 1 or stopped(jobs):
            rest += group
            continue
        with free_gpu(group[0].config.device):
            rest += stacked(group)
    on_gpu = torch.cuda.is_available() and any(job.config.device != "cpu" for job in rest)
    if len(rest) > 1 and (os.cpu_count() or 1) > 1 and not on_gpu and not stopped(jobs):
        in_processes(rest)


def run_left(jobs: Sequence[Job]) -> None:
    """Run alone what has not been run; one that fails stops no other but by `fail_fast`."""
    for job in jobs:
        if job.outcome is None and not stopped(jobs):
            try:
                job.outcome = run_locked(job.config, job.out, job.overrides)
            except Exception as error:  # noqa: BLE001 - one job's failure
                job.outcome = error


def run_locked(config: Config, out: Path, overrides: Sequence[str]) -> float:
    """A run in a folder that is this process's; what another has done meanwhile is not repeated."""
    with locked(out):
        return run(status.going_on(config, out), out, overrides)


def stopped(jobs: Sequence[Job]) -> bool:
    """Whether a job failed and `fail_fast` says that then no more are begun."""
    return any(job.config.fail_fast and isinstance(job.outcome, Exception) for job in jobs)


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs that may share a stack: alike in all but seeds, lr and the strategy's numbers."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        numbers = may_differ(job.config)
        fixed = {k: v for k, v in flatten(job.config.resolved).items() if k not in numbers}
        found.setdefault(repr(sorted(fixed.items())), []).append(job)
    return list(found.values())


def may_differ(config: Config) -> set[str]:
    """The keys in which stacked runs may differ."""
    fields = dataclasses.fields(strategies.find(str(config.strategy["name"]), config.plugins))
    numbers = {f"strategy.{f.name.rstrip('_')}" for f in fields if f.type == "float"}
    return {"seed", "benchmark.seed", "optimizer.lr", *numbers}


def stacked(jobs: Sequence[Job]) -> Sequence[Job]:
    """Train jobs as stacks of as many as fit into memory. Those that remain to be run otherwise."""
    try:
        first = member(jobs[0], arrays := read(jobs[0].config))
        reason = alone(jobs[0].config) or ensemble.obstacle([first]) or not_worth_it(first.env)
    except Exception as error:  # noqa: BLE001 - told when the job is run alone
        reason = str(error)
    if reason is not None:
        log.info("%d runs are not stacked: %s", len(jobs), reason)
        return jobs
    size = memory.fitting(*first)
    left: list[Job] = []
    for at in range(0, len(jobs), size):
        part = jobs[at : at + size]
        if stopped(jobs):
            return left
        with ExitStack() as locks:
            own = ours(part, locks)
            try:
                if len(own) > 1:
                    log.info("%d runs are trained as one stacked state", len(own))
                    train(own, arrays)
            except Exception as error:  # noqa: BLE001 - each is run alone, and tells its reason
                log.warning("the stack failed and its runs are repeated alone: %r", error)
        left += [job for job in part if job.outcome is None]
    return left


def ours(jobs: Sequence[Job], locks: ExitStack) -> list[Job]:
    """The jobs whose folders are this process's from now on, and that nobody has begun meanwhile.

    The others are run alone later, if no other process does.
    """
    found = []
    for job in jobs:
        with ExitStack() as lock:
            try:
                lock.enter_context(locked(job.out))
                begun = (job.out / checkpoint.NAME).exists() or status.finished(job.out) is not None
            except UserError:
                continue
            if not begun:
                locks.push(lock.pop_all())
                found.append(job)
    return found


def member(job: Job, arrays: Arrays) -> Member:
    """A job's strategy and environment; the data set is shared by all jobs of a stack."""
    strategy = strategies.build(job.config.strategy, job.config.plugins)
    return Member(strategy, prepare(job.config, strategy, arrays))


def alone(config: Config) -> str | None:
    """Why runs of this configuration are not stacked, whatever their strategy."""
    if config.eval.every is not None:
        return "eval.every looks at each run between its steps"
    if any(limit is not None for limit in vars(config.budget).values()):
        return "a budget stops each run at a step of its own"
    return None


def not_worth_it(env: Env) -> str | None:
    """Why stacking would not be faster; None on a GPU and for small steps."""
    flops = 6 * env.training.batch_size * len(env.flat.theta)
    if env.device.type == "cuda" or flops < SMALL_STEP:
        return None
    return f"a step of {flops:.1e} operations fills a CPU core alone (limit {SMALL_STEP:.0e})"


def train(jobs: Sequence[Job], arrays: Arrays) -> None:
    """Train jobs as one stack, each with its own files. A member that diverges leaves the others.

    The time that is written down for each is its share. Raises UserError if they cannot be stacked.
    """
    started = time.perf_counter()
    members = [member(job, arrays) for job in jobs]
    reason = ensemble.obstacle(members)
    check(reason is None, f"{reason}")
    records = []
    for job, m in zip(jobs, members, strict=True):
        record = Record(job.config, *m, job.out, job.overrides, started, members=len(jobs))
        records.append(record)
    alive = list(range(len(jobs)))
    try:
        train_members(jobs, members, records, alive)
    except BaseException as error:
        for i in alive:
            records[i].ended(error)
        raise


def train_members(
    jobs: Sequence[Job], members: Sequence[Member], records: Sequence[Record], alive: list[int]
) -> None:
    """Train a stack; `alive` are the indices of its members that neither failed nor are done."""
    states = [initial_state(*m) for m in members]
    for job, m, r, s in zip(jobs, members, records, states, strict=True):
        with logged(job.out):
            how = f"trained as one of {len(jobs)} in a stacked state, without checkpoints"
            log.info("%s", "\n".join([*notes(*m), how]))
            r.evaluated(0, m.strategy, s)
    step = ensemble.StackedStep(members)
    for t in range(members[0].env.num_tasks):
        own, begun = [members[i] for i in alive], time.perf_counter()
        trained = ensemble.train_task(own, [states[i] for i in alive], t, step)
        share = (time.perf_counter() - begun) / len(own)
        for i, after in zip(list(alive), trained, strict=True):
            with logged(jobs[i].out):
                if isinstance(after, Diverged):
                    log.error("%s", after)
                    records[i].ended(after)
                    jobs[i].outcome = after
                    alive.remove(i)
                    continue
                states[i] = after
                members[i].env.meter.train_seconds += share
                records[i].evaluated(t + 1, members[i].strategy, after)
        if stopped(jobs):
            for i in alive:
                records[i].write("interrupted")
            return
        if not alive:
            return
        if len(alive) < len(own):
            step = ensemble.StackedStep([members[i] for i in alive])
    for i in list(alive):
        records[i].write("complete")
        jobs[i].outcome = result(records[i])
        alive.remove(i)
        finish(jobs[i])


def finish(job: Job) -> None:
    """What is left to do for a run that is complete: no file too much, and the pictures."""
    tidy(job.config, job.out)
    if job.config.plots:
        draw(job.config, job.out)


@contextmanager
def logged(out: Path) -> Iterator[None]:
    """What is logged meanwhile goes to the folder's cl-run.log, and nowhere else."""
    out.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(out / "cl-run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = before
        handler.close()


def in_processes(jobs: Sequence[Job]) -> None:
    """Run jobs in as many processes as there are cores, one thread each unless `threads` is set."""
    workers = min(len(jobs), os.cpu_count() or 1)
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
        while len(running) < workers and not stopped(jobs) and (job := next(todo, None)):
            try:
                running[pool.submit(work, job.config, job.out, job.overrides)] = job
            except BrokenProcessPool:
                break  # this job and those that wait are run alone
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            take_outcome(running.pop(future), future)


def stay_with_the_parent() -> None:
    """A worker's first act: what a terminal says the parent tells, whom nobody outlives."""
    for number in OF_TERMINALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_the_parent, daemon=True).start()


def end_with_the_parent() -> None:
    """Wait for the end of the parent process, then save and stop."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVING)
    os._exit(1)


def take_outcome(job: Job, future: Future[float]) -> None:
    """Take a job's outcome from its process."""
    try:
        job.outcome = future.result()
    except BrokenProcessPool:  # a process was killed: this job and those still waiting
        log.warning("%s was stopped with its process, and is repeated alone", job.out)
    except Exception as error:  # noqa: BLE001 - one job's failure
        job.outcome = error


def work(config: Config, out: Path, overrides: Sequence[str]) -> float:
    """One run in a process of its own."""
    logging.getLogger().setLevel(logging.INFO)
    logging.raiseExceptions = False  # as in cli.main
    with logged(out):
        own = dataclasses.replace(config, threads=config.threads or 1, verbose=False)
        try:
            return run_locked(own, out, overrides)
        except Interrupted:
            # The pool would let this process wait for more, behind a lock that may have died with
            # another one. It says what was, and goes.
            leave = threading.Timer(LEAVING, os._exit, (1,))
            leave.daemon = True
            leave.start()
            raise
