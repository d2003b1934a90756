"""Cores and GPUs, as the runs of one machine share them; the number of GPUs is given."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from cl_runner.machine import cores_and_gpus

HOLDER = """
import sys, time
from pathlib import Path
from cl_runner.machine.cores_and_gpus import gpu
with gpu(2, Path(sys.argv[1])) as index:
    print(index, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_runs_are_spread_over_the_gpus_and_give_them_back(tmp_path):
    with ExitStack() as runs:
        taken = [runs.enter_context(cores_and_gpus.gpu(3, tmp_path)) for _ in range(5)]
        assert taken == [0, 1, 2, 0, 1]
    with cores_and_gpus.gpu(3, tmp_path) as first, cores_and_gpus.gpu(3, tmp_path) as second:
        assert (first, second) == (0, 1)


def test_a_gpu_is_free_again_when_its_run_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    with cores_and_gpus.gpu(2, tmp_path) as index:
        assert index == 1
    process.kill()
    process.communicate(timeout=60)
    with cores_and_gpus.gpu(2, tmp_path) as index:
        assert index == 0


def test_processes_that_see_different_gpus_agree_on_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with cores_and_gpus.gpu(2, tmp_path) as index:
        assert index == 0  # GPU 4 of the machine
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,4")
        with cores_and_gpus.gpu(2, tmp_path) as other:
            assert other == 0  # GPU 7
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
            with cores_and_gpus.gpu(2, tmp_path) as third:
                assert third == 1  # GPU 5, as 4 is taken


def test_a_gpu_that_others_have_filled_is_not_taken(tmp_path):
    GB = 10**9
    with ExitStack() as runs:
        free = [3 * GB, 70 * GB, 79 * GB]
        taken = [runs.enter_context(cores_and_gpus.gpu(3, tmp_path, free)) for _ in range(4)]
        assert taken == [2, 1, 2, 1]  # the emptiest first, then the fewest of our runs
        emptied = [80 * GB, 70 * GB, 79 * GB]
        assert runs.enter_context(cores_and_gpus.gpu(3, tmp_path, emptied)) == 0
    with cores_and_gpus.gpu(2, tmp_path, [0, 0]) as index:
        assert index == 0


@pytest.mark.unix
def test_the_folder_of_locks_is_the_users_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"cl-run-gpus-{os.getuid()}"
    assert cores_and_gpus.lock_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert cores_and_gpus.lock_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert cores_and_gpus.lock_folder() is None
    with cores_and_gpus.gpu(2, free=[1, 5]) as index:
        assert index == 1
    assert not list((tmp_path / "elsewhere").iterdir())

    other = os.getuid() + 1
    (tmp_path / f"cl-run-gpus-{other}").mkdir()  # by us, whom that user need not trust
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert cores_and_gpus.lock_folder() is None
    assert "is another user's: GPUs are chosen by their free memory alone" in caplog.text


def test_free_memory_is_asked_of_the_gpus_that_are_visible(monkeypatch):
    said = "GPU-aa, 100\nGPU-bb, 200\nGPU-cc, 300\n"
    visible = [SimpleNamespace(uuid="cc"), SimpleNamespace(uuid="aa")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: visible[i])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert cores_and_gpus.free_memory() == [300 * 2**20, 100 * 2**20]
    visible[1].uuid = "a part of aa"
    assert cores_and_gpus.free_memory() is None

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert cores_and_gpus.free_memory() is None


@pytest.mark.parametrize(
    ("name", "settings", "jobs", "expected"),
    [
        ("joblib_launcher.JoblibLauncher", {"n_jobs": 3}, 12, 3),
        ("joblib_launcher.JoblibLauncher", {"n_jobs": 3}, 2, 2),
        ("joblib_launcher.JoblibLauncher", {"n_jobs": -1}, 0, cores_and_gpus.cores()),
        ("joblib_launcher.JoblibLauncher", {"n_jobs": -1000}, 0, 1),
        ("submitit_launcher.LocalLauncher", {}, 5, 5),
        ("submitit_launcher.SlurmLauncher", {}, 5, 1),
        ("basic_launcher.BasicLauncher", {}, 5, 1),
    ],
)
def test_how_many_jobs_run_at_once(name, settings, jobs, expected):
    assert cores_and_gpus.at_once({"_target_": f"any.{name}", **settings}, jobs) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's way to give cores")
def test_cores_are_those_that_the_process_may_use():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores_and_gpus.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
