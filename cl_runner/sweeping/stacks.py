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
from cl_runner.errors import UserError, check
from cl_runner.machine.locks import locked
from cl_runner.results import status
from cl_runner.running import checkpoint, needs, pretraining
from cl_runner.running.loop import conclude, final_acc, open_run, say_results, train_runs
from cl_runner.running.prepare import prepare, read, strategy_of
from cl_runner.running.stacked import obstacle
from cl_runner.running.tasks import Member
from cl_runner.sweeping.job import Job, given_up
from cl_runner.training.env import Env

log = logging.getLogger(__name__)
# Floating-point operations of one member's step below which a CPU spends more time between the
# operations than in them (needs.step_flops).
SMALL_STEP = 2e7
# The same of a GPU, whose launches a recording saves: by what a large card does in half a
# millisecond, not by a measurement yet.
SMALL_STEP_ON_GPU = 2e10


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
        reason = obstacle([first]) or pretraining.obstacle(jobs[0].config, first.env)
        reason = reason or not_worth_it(first.env)
    except Exception as error:  # noqa: BLE001 - told when the job is run alone
        reason = str(error)
    if reason is not None:
        log.info("%d runs are not stacked: %s", len(jobs), reason)
        return jobs
    size = needs.fitting(*first, jobs[0].config.eval)
    left: list[Job] = []
    for at in range(0, len(jobs), size):
        part = jobs[at : at + size]
        if given_up(jobs):
            return left
        with ExitStack() as locks:
            for own in side_by_side(ours(part, locks)):
                try:
                    if len(own) > 1:
                        log.info("%d runs are trained as one stacked state", len(own))
                        train(own, arrays)
                except Exception as error:  # noqa: BLE001 - each is run alone, and tells its reason
                    log.warning("the stack failed and its runs are repeated alone: %r", error)
        left += [job for job in part if job.outcome is None]
    return left


def ours(jobs: Sequence[Job], locks: ExitStack) -> list[Job]:
    """The jobs whose folders are this process's from now on, and that nobody has completed.

    The others are run alone later, if no other process does.
    """
    found = []
    for job in jobs:
        with ExitStack() as lock:
            try:
                lock.enter_context(locked(job.out))
                complete = status.finished(job.out) is not None
            except UserError:
                continue
            if not complete:
                locks.push(lock.pop_all())
                found.append(job)
    return found


def side_by_side(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs by the place where they stand: those at the same one go on together."""
    checkpoint.settle([job.out for job in jobs])
    found: dict[object, list[Job]] = {}
    for job in jobs:
        found.setdefault(checkpoint.position(job.out), []).append(job)
    return list(found.values())


def member(job: Job, arrays: Arrays) -> Member:
    """A job's strategy and environment; the data set is shared by all jobs of a stack."""
    strategy = strategy_of(job.config)
    return Member(strategy, prepare(job.config, strategy, arrays))


def not_worth_it(env: Env) -> str | None:
    """Why stacking would not be faster; None for small steps."""
    flops, on_gpu = needs.step_flops(env), env.device.type == "cuda"
    limit = SMALL_STEP_ON_GPU if on_gpu else SMALL_STEP
    if flops < limit:
        return None
    where = "a GPU" if on_gpu else "a CPU core"
    return f"a step of {flops:.1e} operations fills {where} alone (limit {limit:.0e})"


def train(jobs: Sequence[Job], arrays: Arrays) -> None:
    """Train jobs that stand at the same place as one stack, each with its own files.

    Raises UserError if they cannot be stacked.
    """
    started = time.perf_counter()
    members = [member(job, arrays) for job in jobs]
    reason = obstacle(members)
    check(reason is None, f"{reason}")
    runs = [
        open_run(status.going_on(j.config, j.out), j.out, j.overrides, m, started, len(jobs))
        for j, m in zip(jobs, members, strict=True)
    ]
    train_runs(runs, lambda _: None)
    for job, run in zip(jobs, runs, strict=True):
        if run.end is not None:
            job.outcome = run.end
        elif run.task == len(run.member.env.stream):
            job.outcome = final_acc(run.files)
            if job.config.told:
                say_results(run, job.title)
            conclude(run)
