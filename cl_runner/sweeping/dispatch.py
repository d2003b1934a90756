"""Several runs at once: as one stacked state if they differ only in numbers, else in processes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from cl_runner.running.prepare import free_gpu
from cl_runner.sweeping.job import Job, given_up, run_locked
from cl_runner.sweeping.processes import in_processes
from cl_runner.sweeping.stacks import groups, train_stacked


def run_all(jobs: Sequence[Job]) -> None:
    """Run the jobs, each into its folder, and set their outcomes; one that fails stops no other.

    A job whose outcome stays None was not run, or was part of a stack that failed as a whole: run
    it alone.
    """
    rest: list[Job] = []
    for group in groups(jobs):
        if len(group) == 1 or given_up(jobs):
            rest += group
            continue
        with free_gpu(group[0].config.device):
            rest += train_stacked(group)
    on_gpu = torch.cuda.is_available() and any(job.config.device != "cpu" for job in rest)
    if len(rest) > 1 and (os.cpu_count() or 1) > 1 and not on_gpu and not given_up(jobs):
        in_processes(rest)


def run_left(jobs: Sequence[Job]) -> None:
    """Run alone what has not been run; one that fails stops no other but by `fail_fast`."""
    for job in jobs:
        if job.outcome is None and not given_up(jobs):
            try:
                job.outcome = run_locked(job.config, job.out, job.overrides, job.title)
            except Exception as error:  # noqa: BLE001 - one job's failure
                job.outcome = error
