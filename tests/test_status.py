"""What `status.json` and `cl-run status` say, and fail_fast."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cl_runner.cli import overview
from cl_runner.errors import Diverged, UserError
from cl_runner.machine import locks
from cl_runner.results import status
from cl_runner.results.files import read_rows
from cl_runner.results.names import STATES
from cl_runner.sweeping import callback, folders

TINY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "training.iterations=2"),
    *("model.hidden_sizes=[8]", "threads=1", "device=cpu", "verbose=false"),
)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
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


def test_the_state_of_a_job(jobs: Path) -> None:
    states = {name: status.state(jobs / name) for name in "abcde"}
    assert list(states.values()) == ["complete", "interrupted", "failed", "killed", "missing"]
    for name in "bcde":
        with locks.locked(jobs / name):
            assert status.state(jobs / name) == "running"
    about = status.read(jobs / "c")
    assert (about["reason"], about["exception"]) == ("the loss is\nNaN", "Diverged")
    assert (about["task"], about["tasks"], about["step"]) == (2, 5, 7)


@pytest.mark.slow
def test_the_command_shows_every_job_and_why(cl_run, jobs: Path) -> None:
    result = cl_run("status", jobs, cwd=jobs)
    assert result.returncode == 1
    header, *lines, last = [re.split("  +", line) for line in result.stdout.splitlines()]
    assert header == ["state", "task", "folder", "reason"]
    assert lines == [
        ["complete", "5 of 5", f"{jobs}/a"],
        ["interrupted", "3 of 5", f"{jobs}/b"],
        ["failed", "2 of 5", f"{jobs}/c", "the loss is NaN"],
        ["killed", "2 of 5", f"{jobs}/d"],
        ["missing", f"{jobs}/e"],
    ]
    assert last == ["5 jobs: 1 complete, 1 interrupted, 1 failed, 1 killed, 1 missing"]
    assert cl_run("status", jobs / "a", cwd=jobs).returncode == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["empty"], "no runs in empty: there is no status.json and no jobs.json"),
        ([], "cl-run status PATH...: the folders of runs or sweeps; see cl-run status --help"),
        (["-x"], "cl-run status PATH...: the folders of runs or sweeps; see cl-run status --help"),
    ],
)
def test_a_wrong_path_is_one_line(forked, args: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = forked("main()", "status", *args, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"cl-run: {message}\n"


def test_help_explains_every_state(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["-h"], ["--help"], ["some/folder", "--help"]):
        assert overview.main(args) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {state} " in text for state in STATES)


def test_the_command_needs_no_torch(jobs: Path) -> None:
    code = f"import sys; from cl_runner.cli.overview import overview; from pathlib import Path\n\
overview([Path({str(jobs)!r})]); import cl_runner.cli.app; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_failure_before_the_first_task_is_told_too(tmp_path: Path) -> None:
    status.fail(tmp_path, UserError("no data"))
    assert overview.overview([tmp_path])[0].splitlines()[1].split() == [
        *("failed", str(tmp_path), "no", "data"),
    ]


@pytest.mark.unix
def test_a_file_of_someone_else_is_no_state(tmp_path: Path) -> None:
    for text in ("[]", "nonsense", "", "[" * 10**5, '{"state": "fine"}', '{"state": [1]}'):
        (tmp_path / "status.json").write_text(text)
        assert status.state(tmp_path) == "missing"
    (tmp_path / "status.json").write_text(json.dumps({"state": "complete", "x": "x" * 2**16}))
    assert status.state(tmp_path) == "missing"
    (tmp_path / "status.json").unlink()
    os.mkfifo(tmp_path / "status.json")
    assert status.state(tmp_path) == "missing"


@pytest.mark.parametrize(
    "about",
    [{"reason": 5}, {"reason": None}, {"task": [1], "tasks": {}}, {"tasks": 5}, {"pid": "x"}],
)
def test_a_value_of_another_kind_is_left_out(about: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "failed"} | about))
    _, line, _ = overview.overview([tmp_path])[0].splitlines()
    assert line.split() == ["failed", str(tmp_path)]


@pytest.mark.unix
def test_a_reason_commands_no_terminal_and_is_one_line(tmp_path: Path) -> None:
    reason = "lost\x1b]0;title\x07\r\n\x9b2J\u202e in \N{GREEK SMALL LETTER ALPHA}"
    (tmp_path / "status.json").write_text(json.dumps({"state": "failed", "reason": reason}))
    (tmp_path / "a\x1bb").mkdir()
    status.write(tmp_path / "a\x1bb", "running")
    lines = overview.overview([tmp_path])[0].splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[1].endswith("lost ]0;title 2J in \N{GREEK SMALL LETTER ALPHA}")


def test_jobs_outside_a_sweep_are_none_of_its_own(tmp_path: Path) -> None:
    sweep_, elsewhere = tmp_path / "sweep", tmp_path / "x"
    for folder in (sweep_ / "a", elsewhere):
        folder.mkdir(parents=True)
        status.write(folder, "complete")
    asked = {"a": [], f"{elsewhere}": [], "../x": [], "a/../../x": [], ".": [], "b": "x=1"}
    (sweep_ / "jobs.json").write_text(json.dumps(asked))
    assert overview.found(sweep_) == [sweep_ / "a"]
    status.ask_for(sweep_, {"c": ["x=2"]})
    assert json.loads((sweep_ / "jobs.json").read_text()) == {"a": [], "c": ["x=2"]}


def test_a_complete_run_is_never_called_failed(tmp_path: Path) -> None:
    status.write(tmp_path, "complete", task=2, tasks=2)
    status.fail(tmp_path, UserError("of another configuration"))
    assert status.state(tmp_path) == "complete"


@pytest.mark.unix
def test_only_processes_of_this_command_are_told_to_stop(tmp_path: Path, monkeypatch) -> None:
    """Whatever number a status.json may hold: -1 stands for all processes of the user."""
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(folders, "SAVING", 0)
    monkeypatch.setattr(folders, "sweeps", [tmp_path])
    for name, pid in (("a", -1), ("b", 1), ("c", os.getppid()), ("d", worker.pid)):
        status.write(tmp_path / name, "running")
        about = json.loads((tmp_path / name / "status.json").read_text())
        (tmp_path / name / "status.json").write_text(json.dumps(about | {"pid": pid}))
    folders.stop_jobs()
    worker.communicate()
    assert killed == [worker.pid]


@pytest.mark.parametrize("name", ["s", "a b", "a,b", "it's", "x=1", 'a"b', "ä", "a\\", "a\\'", "#"])
def test_the_hint_how_to_go_on_can_be_pasted(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folders, "sweeps", [tmp_path / name])
    hint = folders.how_to_go_on().removeprefix("; to go on: the same command with ")
    where, resume = shlex.split(hint)
    assert Path(OverridesParser.create().parse_override(where).value()) == tmp_path / name
    assert resume == "resume=true"


def test_a_job_that_has_ended_holds_no_configuration() -> None:
    """Hydra keeps what jobs return: some hundred kilobytes each, until the sweep ends."""
    returned = SimpleNamespace(cfg={"a": 1}, hydra_cfg={"b": 2}, return_value=0.5)
    callback.Folders().on_job_end(config=None, job_return=returned)
    assert returned == SimpleNamespace(cfg=None, hydra_cfg=None, return_value=0.5)


# Real sweeps


@pytest.mark.parametrize("subdir", ["/tmp/x", "a/../../x"])
@pytest.mark.slow
def test_a_job_stays_in_its_sweeps_folder(cl_run, subdir: str, tmp_path: Path) -> None:
    args = ("-m", *TINY, "seed=0", "hydra.sweep.dir=S", f"hydra.sweep.subdir={subdir}")
    result = cl_run(*args, cwd=tmp_path)
    assert result.returncode == 2
    message = f"cl-run: hydra.sweep.subdir={subdir} leads out of the sweep's folder\n"
    assert result.stderr == message
    assert not list(tmp_path.iterdir())


@pytest.mark.unix
@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["hydra.run.dir=" + 300 * "x"], "x: File name too long"),
        (["-m", "seed=0", "hydra.sweep.dir=/dev/null"], "/dev/null/.stop: Not a directory"),
    ],
    ids=["name", "device"],
)
@pytest.mark.slow
def test_a_folder_that_cannot_be_is_one_line(
    cl_run, args: list[str], reason: str, tmp_path: Path
) -> None:
    result = cl_run(*args, cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(rf"cl-run: .*{re.escape(reason)}\n", result.stderr), result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_job_refused_in_the_folder_of_a_complete_run_leaves_it_complete(
    cl_run, tmp_path: Path
) -> None:
    """Numbered folders, and a sweep that is asked for in another order."""
    args = ("-m", *TINY, "hydra.sweep.dir=S", "hydra.sweep.subdir=${hydra.job.num}", "resume=true")
    assert cl_run(*args, "seed=0,1", cwd=tmp_path).returncode == 0
    result = cl_run(*args, "seed=1,0", cwd=tmp_path)
    assert result.returncode == 2
    assert "2 of 2 runs failed" in result.stderr
    assert "S/0/config.yaml is of another configuration: " in result.stderr
    assert "seed is 0 there and 1 here" in result.stderr
    assert states(tmp_path / "S") == ["complete"] * 2
    assert [row["status"] for row in read_rows(tmp_path / "S/summary.csv")] == ["complete"] * 2


def states(folder: Path) -> list[str]:
    return sorted(status.state(out) for out in overview.found(folder))


@pytest.mark.parametrize("more", [[], ["hydra/launcher=vectorized"]], ids=["basic", "vectorized"])
@pytest.mark.slow
def test_fail_fast_begins_no_more_jobs(cl_run, more: list[str], tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_fail_fast_of_seeds(cl_run, tmp_path: Path) -> None:
    lr = ("optimizer.lr=1e30", "model.hidden_sizes=[500,500]", "training.batch_size=512")
    args = (*TINY, "seeds=[0,1,2,3,4,5]", *lr, "hydra.run.dir=R", "fail_fast=true")
    result = cl_run(*args, cwd=tmp_path)
    assert result.returncode == 1
    assert "missing" in states(tmp_path / "R")
    assert {*states(tmp_path / "R")} <= {"failed", "missing"}


@pytest.mark.slow
def test_adding_a_seed_runs_that_seed_only(cl_run, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_what_makes_no_other_run_cannot_be_swept(cl_run, tmp_path: Path) -> None:
    result = cl_run("-m", *TINY[:-3], "threads=1,2", "hydra.sweep.dir=S", cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(r"cl-run: .*threads=2 and .*threads=1 are one job: .*\n", result.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_sweep_shows_killed_and_missing_jobs(cl_run_started, tmp_path: Path) -> None:
    slow = [arg for arg in TINY if "iterations" not in arg]
    args = ("-m", *slow, "training.iterations=100000", "seed=0,1", "hydra.sweep.dir=S")
    process = cl_run_started(*args, cwd=tmp_path)
    while "running" not in (seen := states(tmp_path / "S")):
        assert process.poll() is None
        time.sleep(0.02)
    assert seen in (["missing", "running"], ["running"])
    while not list((tmp_path / "S").glob("*/summary.csv")):
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    assert states(tmp_path / "S") == ["killed", "missing"]
