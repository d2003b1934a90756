"""Sweeps beyond one process, with the real plugins: files, exit codes, preemption, and kills.

The short form kills a sweep on joblib twice; the long form, with 12 jobs on two workers:

    CL_RUNNER_SWEEP_KILLS=5 CL_RUNNER_KILL_SEED=1 python -m pytest tests/reliability -k killed_sweep
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from outcomes import outcome

from cl_runner.cli import overview
from cl_runner.results import status

pytestmark = pytest.mark.slow

CL_RUN = Path(sys.executable).with_name("cl-run")
KILLS = int(os.environ.get("CL_RUNNER_SWEEP_KILLS", "2"))
KILL_SEED = int(os.environ.get("CL_RUNNER_KILL_SEED", "0"))
TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "benchmark.train_samples=100"),
    *("training.iterations=3", "model.hidden_sizes=[8]", "device=cpu", "verbose=false"),
)


def plugin(name: str, *settings: str) -> object:
    there = find_spec(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher") is not None
    reason = f"hydra/launcher={name}: pip install '.[{name.partition('_')[0]}]'"
    slow = [] if name == "joblib" else [pytest.mark.slow]
    args = (f"hydra/launcher={name}", *settings)
    return pytest.param(args, id=name, marks=[pytest.mark.skipif(not there, reason=reason), *slow])


JOBLIB = plugin("joblib", "hydra.launcher.n_jobs=2")
INIT = "+hydra.launcher.ray.init"
RAY = plugin("ray", f"{INIT}.num_cpus=2", f"{INIT}.include_dashboard=false")
SUBMITIT = plugin("submitit_local")


@pytest.fixture
def start(cl_run_started) -> Callable[..., Any]:
    """start(arg, ..., cwd=...): the command at work, with what subprocess.Popen has."""
    return cl_run_started


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(folder: Path) -> list[str]:
    return sorted(status.state(out) for out in overview.found(folder))


def wait_for(process: Any, condition: object, seconds: float = 120) -> None:
    """Until condition() is true. Fails if the process ends, or nothing happens for long."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("launcher", [JOBLIB, SUBMITIT, RAY])
def test_four_jobs_one_of_which_fails(start, launcher, data_root, tmp_path):
    args = (*launcher, *TOY, f"data.root={data_root}", "hydra.sweep.dir=S")
    process = start("-m", *args, "seed=0", "optimizer.lr=0.1,0.2,1e30,0.3", cwd=tmp_path)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert states(tmp_path / "S") == ["complete"] * 3 + ["failed"]
    (failed,) = (out for out in overview.found(tmp_path / "S") if status.state(out) == "failed")
    reason = status.read(failed)["reason"]
    assert f"1 of 4 runs failed:\n  S/{failed.name}: {reason}\n" in stderr
    merged = {row["run"]: row for row in rows(tmp_path / "S")}
    assert sorted(row["status"] for row in merged.values()) == ["complete"] * 3 + ["failed"]
    for run, row in merged.items():
        (own,) = rows(tmp_path / "S" / run)
        assert own.items() <= row.items()
        used = "threads=" in (tmp_path / "S" / run / "cl-run.log").read_text()
        assert used == (launcher[0] != "hydra/launcher=ray")
        assert (tmp_path / "S" / run / "accuracy_matrix.csv").exists()
    again = start("-m", *args, "seed=0", "optimizer.lr=0.1", "resume=true", cwd=tmp_path)
    assert "1 of 4 runs failed" in again.communicate(timeout=300)[1]


@pytest.mark.parametrize("launcher", [SUBMITIT])
def test_a_preempted_job_is_saved_queued_again_and_goes_on(start, launcher, data_root, tmp_path):
    """Submitit's signal, as Slurm sends it; the queue is submitit's own on this machine."""
    long = ("training.iterations=3000", "checkpoint.every=null", "threads=1")
    args = ("-m", *TOY, f"data.root={data_root}", *long, "seed=3")
    process = start(*args, *launcher, "hydra.sweep.dir=S", cwd=tmp_path)

    def second_task() -> bool:
        return any(status.read(out).get("task") == 2 for out in overview.found(tmp_path / "S"))

    wait_for(process, second_task)
    (out,) = overview.found(tmp_path / "S")
    first = status.read(out)["pid"]
    time.sleep(0.1)
    os.kill(first, signal.SIGUSR2)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    assert status.state(out) == "complete"
    assert status.read(out)["pid"] != first
    assert re.search(r"goes on in task 2 after step \d+", (out / "cl-run.log").read_text()) or any(
        "goes on in task 2" in path.read_text() for path in (tmp_path / "S").rglob("*_log.*")
    )
    process = start(*args, "hydra.sweep.dir=unbroken", cwd=tmp_path)
    process.communicate(timeout=300)
    assert outcome(out) == outcome(tmp_path / "unbroken" / out.name)


@pytest.mark.unix
@pytest.mark.parametrize("launcher", [JOBLIB])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_jobs_of_all_workers(launcher, number, code, data_root, tmp_path):
    """With workers that begin as slowly as they do."""
    long = ("training.iterations=200000", "threads=1", "seed=0,1,2")
    args = ("-m", *launcher, *TOY, *long, f"data.root={data_root}", "hydra.sweep.dir=S")
    process = subprocess.Popen(
        [CL_RUN, *args],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    began = "accuracy_matrix.csv"
    wait_for(process, lambda: len(list((tmp_path / "S").glob(f"*/{began}"))) == 2)
    time.sleep(0.2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert re.fullmatch(r"cl-run: interrupted; to go on: the same command with .*\n", stderr)
    assert states(tmp_path / "S") == ["interrupted", "interrupted", "missing"]
    assert len(list((tmp_path / "S").glob("*/checkpoint.safetensors"))) == 2


@pytest.mark.unix
@pytest.mark.slow
@pytest.mark.parametrize("launcher", [JOBLIB])
def test_a_killed_sweep_ends_with_the_bytes_of_an_unbroken_one(
    start, launcher, data_root, tmp_path
):
    """SIGKILL of all its processes, at seeded moments, until nothing is left to be done."""
    draw = random.Random(KILL_SEED)
    jobs = 12 if KILLS > 2 else 4
    seeds = ",".join(map(str, range(jobs // 2)))
    case = (*TOY, "training.iterations=400", "threads=1", "checkpoint.every=0.05")
    sweep = ("-m", *case, f"data.root={data_root}", "strategy=ewc,derpp", f"seed={seeds}")
    unbroken = start(*sweep, "hydra.sweep.dir=unbroken", cwd=tmp_path)

    here = tmp_path / "S"
    args = (*sweep, *launcher, "hydra.sweep.dir=S", "resume=true")
    for kill in range(KILLS):
        process = start(*args, cwd=tmp_path)
        before = progress(here)
        wait_for(process, lambda before=before: progress(here) > before)  # it does something
        time.sleep(draw.uniform(0, 0.7))  # much less than what is left takes on a fast machine
        assert process.poll() is None, f"done before kill {kill + 1}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    process = start(*args, cwd=tmp_path)
    _, stderr = process.communicate(timeout=600)
    assert (process.returncode, stderr) == (0, "")
    assert states(here) == ["complete"] * jobs

    assert unbroken.communicate(timeout=600) and unbroken.returncode == 0
    for out in overview.found(tmp_path / "unbroken"):
        assert outcome(here / out.name) == outcome(out), out.name
    assert [r["run"] for r in rows(here)] == [r["run"] for r in rows(tmp_path / "unbroken")]


def progress(folder: Path) -> float:
    """The time of the last checkpoint in a sweep."""
    times = [0.0]
    for path in folder.glob("*/checkpoint.safetensors"):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:  # its run is complete now
            continue
    return max(times)
