"""Cores and GPUs, as the runs of one machine share them; the number of GPUs is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from cl_runner import sharing

HOLDER = """
import sys, time
from pathlib import Path
from cl_runner.sharing import gpu
with gpu(2, Path(sys.argv[1])) as index:
    print(index, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_runs_are_spread_over_the_gpus_and_give_them_back(tmp_path):
    with ExitStack() as runs:
        taken = [runs.enter_context(sharing.gpu(3, tmp_path)) for _ in range(5)]
        assert taken == [0, 1, 2, 0, 1]
    with sharing.gpu(3, tmp_path) as first, sharing.gpu(3, tmp_path) as second:
        assert (first, second) == (0, 1)


def test_a_gpu_is_free_again_when_its_run_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    with sharing.gpu(2, tmp_path) as index:
        assert index == 1
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with sharing.gpu(2, tmp_path) as index:
        assert index == 0


def test_processes_that_see_different_gpus_agree_on_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with sharing.gpu(2, tmp_path) as index:
        assert index == 0  # GPU 4 of the machine
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,4")
        with sharing.gpu(2, tmp_path) as other:
            assert other == 0  # GPU 7
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
            with sharing.gpu(2, tmp_path) as third:
                assert third == 1  # GPU 5, as 4 is taken


@pytest.mark.parametrize(
    ("name", "settings", "jobs", "expected"),
    [
        ("joblib_launcher.JoblibLauncher", {"n_jobs": 3}, 12, 3),
        ("joblib_launcher.JoblibLauncher", {"n_jobs": 3}, 2, 2),
        ("joblib_launcher.JoblibLauncher", {"n_jobs": -1}, 0, sharing.cores()),
        ("joblib_launcher.JoblibLauncher", {"n_jobs": -1000}, 0, 1),
        ("submitit_launcher.LocalLauncher", {}, 5, 5),
        ("submitit_launcher.SlurmLauncher", {}, 5, 1),
        ("basic_launcher.BasicLauncher", {}, 5, 1),
    ],
)
def test_how_many_jobs_run_at_once(name, settings, jobs, expected):
    assert sharing.at_once({"_target_": f"any.{name}", **settings}, jobs) == expected


def test_cores_are_those_that_the_process_may_use():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert sharing.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
