"""Every command as it is installed, once, in the order in which one uses them.

Slower tests (test_cli.py and reliability/) have the cases; here the program starts at all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CL_RUN = Path(sys.executable).with_name("cl-run")
CL_COMPARE = CL_RUN.with_name("cl-compare")
TINY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "benchmark.train_samples=60"),
    *("training.iterations=2", "training.batch_size=8", "model.hidden_sizes=[8]"),
    *("threads=1", "device=cpu"),
)
SWEEP = ("-m", *TINY, "strategy=naive,er", "strategy.buffer_size=9", "missing_keys=skip")
COMMANDS: dict[str, tuple[object, ...]] = {
    "help": (CL_RUN, "--help"),
    "list": (CL_RUN, "list"),
    "explain": (CL_RUN, "explain", "er"),
    "run": (CL_RUN, *TINY, "hydra.run.dir=run"),
    "resume": (CL_RUN, "resume=run"),
    "sweep": (CL_RUN, *SWEEP, "hydra.sweep.dir=sweep"),
    "status": (CL_RUN, "status", "run", "sweep"),
    "compare": (CL_COMPARE, "run", "sweep"),
    "verify": (CL_COMPARE, "verify", "run", "sweep"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    env = os.environ | {"CL_RUNNER_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    return {
        name: subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        for name, command in COMMANDS.items()
    }


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("help", "cl-run explain NAME"),
        ("list", "Elastic weight consolidation"),
        ("explain", "Scenarios: task, domain, class"),
        ("run", "class-IL"),
        ("run", " s · results in run\n"),
        ("sweep", "2 runs · results in sweep/summary.csv"),
        ("status", "3 jobs: 3 complete"),
        ("compare", "split_digits, 2 tasks, class-IL"),
    ],
)
def test_a_command_does_what_it_says(results, command: str, said: str) -> None:
    result = results[command]
    assert (result.returncode, said in result.stdout) == (0, True), result.stdout + result.stderr


def test_a_complete_run_is_left_as_it_is(results) -> None:
    assert (results["resume"].returncode, results["resume"].stderr) == (0, "")


def test_a_job_of_a_sweep_runs_without_the_key_that_it_lacks(results, folder: Path) -> None:
    jobs = sorted(path.name.rpartition("-")[0] for path in folder.glob("sweep/*/"))
    assert jobs == ["strategy=er_strategy.buffer_size=9", "strategy=naive"]
    note = "strategy.buffer_size is no key of strategy=naive, which runs without it\n"
    assert note in results["sweep"].stdout


def test_each_job_of_a_sweep_says_one_line(results) -> None:
    before = results["sweep"].stdout.partition("benchmark ")[0].splitlines()
    lines = [line for line in before if "missing_keys" not in line and "runs without" not in line]
    assert len(lines) == 2, before
    for i, line in enumerate(lines, 1):
        found = r"strategy=\S+-[0-9a-f]{8} · ACC 0\.\d{3}, forgetting -?0\.\d{3} · \d+\.\d s"
        assert re.fullmatch(rf"job {i} of 2 · {found}", line), line


def test_what_was_run_is_verified(results) -> None:
    result = results["verify"]
    assert (result.returncode, result.stderr) == (0, "3 runs verified: all in order\n")
