"""What `status.json` and `cl-run status` say, and fail_fast."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cl_runner import status, sweep
from cl_runner.errors import Diverged, UserError
from cl_runner.results import read_rows

CL_RUN = Path(sys.executable).with_name("cl-run")
TINY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "training.iterations=2"),
    *("model.hidden_sizes=[8]", "threads=1", "device=cpu", "verbose=false"),
)


def cl_run(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [CL_RUN, *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A sweep with a job in each state, but for running."""
    status.ask_for(tmp_path, {name: [f"x={name}"] for name in ("a", "b", "c", "d")})
    status.ask_for(tmp_path, {"e": ["x=e"]})
    for name in "abcd":
        (tmp_path / name).mkdir()
        status.write(tmp_path / name, "running", task=2, tasks=5, step=7)
    status.write(tmp_path / "a", "complete", task=5, tasks=5)
    status.write(tmp_path / "b", "interrupted", task=3, tasks=5)
    status.fail(tmp_path / "c", Diverged("the loss is\nNaN"))
    return tmp_path


def test_the_state_of_a_job(folders: Path) -> None:
    states = {name: status.state(folders / name) for name in "abcde"}
    assert list(states.values()) == ["complete", "interrupted", "failed", "killed", "missing"]
    for name in "bcde":
        with sweep.locked(folders / name):
            assert status.state(folders / name) == "running"
    about = status.read(folders / "c")
    assert (about["reason"], about["exception"]) == ("the loss is\nNaN", "Diverged")
    assert (about["task"], about["tasks"], about["step"]) == (2, 5, 7)


def test_the_command_shows_every_job_and_why(folders: Path) -> None:
    result = cl_run("status", folders, cwd=folders)
    assert result.returncode == 1
    header, *lines, last = [re.split("  +", line) for line in result.stdout.splitlines()]
    assert header == ["state", "task", "folder", "reason"]
    assert lines == [
        ["complete", "5 of 5", f"{folders}/a"],
        ["interrupted", "3 of 5", f"{folders}/b"],
        ["failed", "2 of 5", f"{folders}/c", "the loss is NaN"],
        ["killed", "2 of 5", f"{folders}/d"],
        ["missing", f"{folders}/e"],
    ]
    assert last == ["5 jobs: 1 complete, 1 interrupted, 1 failed, 1 killed, 1 missing"]
    assert cl_run("status", folders / "a", cwd=folders).returncode == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["empty"], "no runs in empty: there is no status.json and no jobs.json"),
        ([], "cl-run status PATH...: the folders of runs or sweeps; see cl-run status --help"),
        (["-x"], "cl-run status PATH...: the folders of runs or sweeps; see cl-run status --help"),
    ],
)
def test_a_wrong_path_is_one_line(args: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = cl_run("status", *args, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"cl-run: {message}\n"


def test_help_explains_every_state(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["-h"], ["--help"], ["some/folder", "--help"]):
        assert status.main(args) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {state} " in text for state in status.STATES)


def test_the_command_needs_no_torch(folders: Path) -> None:
    code = f"import sys; from cl_runner.status import overview; from pathlib import Path\n\
overview([Path({str(folders)!r})]); import cl_runner.cli; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_failure_before_the_first_task_is_told_too(tmp_path: Path) -> None:
    status.fail(tmp_path, UserError("no data"))
    assert status.overview([tmp_path])[0].splitlines()[1].split() == [
        *("failed", str(tmp_path), "no", "data"),
    ]


def test_a_file_of_someone_else_is_no_state(tmp_path: Path) -> None:
    for text in ("[]", "nonsense", ""):
        (tmp_path / "status.json").write_text(text)
        assert status.state(tmp_path) == "missing"


# Real sweeps


def states(folder: Path) -> list[str]:
    return sorted(status.state(out) for out in status.found(folder))


@pytest.mark.parametrize("more", [[], ["hydra/launcher=vectorized"]], ids=["basic", "vectorized"])
def test_fail_fast_begins_no_more_jobs(more: list[str], tmp_path: Path) -> None:
    args = ("-m", *more, *TINY, "seed=0", "optimizer.lr=1e30,0.1,0.2,0.3", "hydra.sweep.dir=S")
    if not more:
        result = cl_run(*args, "fail_fast=true", cwd=tmp_path)
        assert states(tmp_path / "S") == ["failed", "missing", "missing", "missing"]
        assert "fail_fast=true: 3 jobs were not begun" in result.stderr
        assert len(list((tmp_path / "S").glob("optimizer.lr=*-*"))) == 1
    else:  # a stack ends where its member fails
        result = cl_run(*args, "fail_fast=true", cwd=tmp_path)
        assert states(tmp_path / "S") == ["failed", "interrupted", "interrupted", "interrupted"]
    assert result.returncode == 1
    result = cl_run(*args, "resume=true", cwd=tmp_path)  # now without
    assert result.returncode == 1
    assert states(tmp_path / "S") == ["complete", "complete", "complete", "failed"]
    assert len(read_rows(tmp_path / "S/summary.csv")) == 4


def test_fail_fast_of_seeds(tmp_path: Path) -> None:
    lr = ("optimizer.lr=1e30", "model.hidden_sizes=[500,500]", "training.batch_size=512")
    args = (*TINY, "seeds=[0,1,2,3,4,5]", *lr, "hydra.run.dir=R", "fail_fast=true")
    result = cl_run(*args, cwd=tmp_path)
    assert result.returncode == 1
    assert "missing" in states(tmp_path / "R")
    assert {*states(tmp_path / "R")} <= {"failed", "missing"}


def test_adding_a_seed_runs_that_seed_only(tmp_path: Path) -> None:
    """However the others are written, and what failed is repeated."""
    args = ("-m", *TINY, "hydra.sweep.dir=S", "resume=true")
    first = ("strategy=ewc", "strategy.lambda=1,2", "seed=0")
    assert cl_run(*args, *first, cwd=tmp_path).returncode == 0
    (broken,) = (tmp_path / "S").glob("*lambda=2*")
    status.fail(broken, UserError("as if it had failed"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "S").glob("*lambda=1-*/*.csv")}
    assert before
    second = ("seed=0,1", "strategy.lambda=2.0,1.0", "strategy=ewc")
    assert cl_run(*args, *second, cwd=tmp_path).returncode == 0
    assert len(list((tmp_path / "S").glob("*/summary.csv"))) == 4
    assert states(tmp_path / "S") == ["complete"] * 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(json.loads((tmp_path / "S/jobs.json").read_text())) == 4


def test_what_makes_no_other_run_cannot_be_swept(tmp_path: Path) -> None:
    result = cl_run("-m", *TINY[:-3], "threads=1,2", "hydra.sweep.dir=S", cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(r"cl-run: .*threads=2 and .*threads=1 are one job: .*\n", result.stderr)
    assert not list(tmp_path.iterdir())


def test_a_killed_sweep_shows_killed_and_missing_jobs(tmp_path: Path) -> None:
    slow = [arg for arg in TINY if "iterations" not in arg]
    args = ("-m", *slow, "training.iterations=100000", "seed=0,1", "hydra.sweep.dir=S")
    process = subprocess.Popen([CL_RUN, *args], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while "running" not in (seen := states(tmp_path / "S")):
        assert process.poll() is None
        time.sleep(0.02)
    assert seen in (["missing", "running"], ["running"])
    while not list((tmp_path / "S").glob("*/summary.csv")):
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    assert states(tmp_path / "S") == ["killed", "missing"]
