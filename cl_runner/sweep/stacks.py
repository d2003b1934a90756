"""Runs that differ only in numbers, trained as one stacked state.

Which way a run takes follows from shapes and device, never from the clock, so that the same sweep
always computes the same numbers.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack

from cl_runner import strategies
from cl_runner.config.identity import flatten
from cl_runner.config.schema import Config
from cl_runner.data.datasets import Arrays
from cl_runner.errors import Diverged, UserError, check
from cl_runner.machine.locks import locked
from cl_runner.results import status
from cl_runner.results.names import CHECKPOINT
from cl_runner.run import needs, stacked
from cl_runner.run.loop import draw, result, tidy
from cl_runner.run.messages import notes
from cl_runner.run.prepare import prepare, read
from cl_runner.run.record import Record
from cl_runner.run.stacked import Member
from cl_runner.run.tasks import initial_state
from cl_runner.sweep.job import Job, logged, stopped
from cl_runner.training.env import Env

log = logging.getLogger(__name__)
# Floating-point operations of one member's step below which a CPU spends more time between the
# operations than in them: 6 x batch size x parameters.
SMALL_STEP = 2e7


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


def train_stacked(jobs: Sequence[Job]) -> Sequence[Job]:
    """Train jobs as stacks of as many as fit into memory. Those that remain to be run otherwise."""
    try:
        first = member(jobs[0], arrays := read(jobs[0].config))
        reason = alone(jobs[0].config) or stacked.obstacle([first]) or not_worth_it(first.env)
    except Exception as error:  # noqa: BLE001 - told when the job is run alone
        reason = str(error)
    if reason is not None:
        log.info("%d runs are not stacked: %s", len(jobs), reason)
        return jobs
    size = needs.fitting(*first)
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
                begun = (job.out / CHECKPOINT).exists() or status.finished(job.out) is not None
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
    reason = stacked.obstacle(members)
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
    step = stacked.StackedStep(members)
    for t in range(members[0].env.num_tasks):
        own, begun = [members[i] for i in alive], time.perf_counter()
        trained = stacked.train_task(own, [states[i] for i in alive], t, step)
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
            step = stacked.StackedStep([members[i] for i in alive])
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
