"""Runs together: which share a stack, and that their files are those of runs alone."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path
from types import GenericAlias

import pytest
import torch
from omegaconf import OmegaConf

from cl_runner.machine import locks
from cl_runner.results import status
from cl_runner.results.columns import reproducible
from cl_runner.results.matrices import read_matrix
from cl_runner.results.seeds import interval
from cl_runner.running import loop
from cl_runner.running.loop import run
from cl_runner.running.prepare import read
from cl_runner.sweeping import merge, processes, stacks
from cl_runner.sweeping.dispatch import run_all, run_left
from cl_runner.sweeping.job import Job
from cl_runner.sweeping.stacks import groups, member, not_worth_it
from hydra_plugins import cl_runner_launcher
from hydra_plugins.cl_runner_launcher import VectorizedLauncher

pytestmark = pytest.mark.slow

TOY = (
    "benchmark.num_tasks=2",
    "benchmark.train_samples=120",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=2",
    "precision=float32",
    "verbose=false",
)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(cl_run, data_root, tmp_path):
    """trained("seeds=[0,1]", ...): what the command does with a small benchmark."""
    fixed = (*TOY, f"data.root={data_root}", "device=cpu", "threads=1")
    return lambda *arguments: cl_run(*arguments, *fixed, cwd=tmp_path)


def test_runs_share_a_stack_if_only_numbers_differ(configure, tmp_path):
    def job(*overrides: str) -> Job:
        return Job(configure(*TOY, *overrides), tmp_path, overrides)

    ewc = [job("strategy=ewc", f"strategy.lambda={v}", f"seed={s}") for v in (1, 2.5) for s in "01"]
    other = [
        job("strategy=ewc", "strategy.mode=online"),
        job("strategy=ewc", "strategy.fisher_samples=7"),  # an integer may be a shape
        job("strategy=ewc", "model.hidden_sizes=[12]"),
        job("strategy=er"),
    ]
    assert [len(g) for g in groups([*ewc, *other])] == [4, 1, 1, 1, 1]
    assert len(groups([job("strategy=ewc", f"optimizer.lr={v}") for v in (0.1, 0.2)])) == 1


def test_members_report_the_costs_of_runs_alone(configure, tmp_path):
    jobs = [Job(configure(*TOY, "strategy=ewc", f"seed={s}"), tmp_path / s, ()) for s in ("0", "1")]
    run_all(jobs)
    assert rows(tmp_path / "0" / "summary.csv")[0]["stacked_members"] == "2"
    for job in jobs:
        run(job.config, job.out / "alone")
        one, own = rows(job.out / "costs.csv"), rows(job.out / "alone" / "costs.csv")
        for name in own[0]:
            if reproducible(name):
                assert [row[name] for row in one] == [row[name] for row in own], name


def test_the_rule_is_on_the_size_of_a_step(prepared, monkeypatch):
    _, _, small = prepared(*TOY)
    _, _, large = prepared(*TOY, "training.batch_size=512", "model.hidden_sizes=[256,256]")
    assert not_worth_it(small) is None
    assert "fills a CPU core alone" in (not_worth_it(large) or "")
    large.device = torch.device("cuda")
    assert not_worth_it(large) is None
    monkeypatch.setattr(stacks, "SMALL_STEP_ON_GPU", 1e8)
    assert "fills a GPU alone (limit 1e+08)" in (not_worth_it(large) or "")


def test_stacked_runs_leave_the_files_of_runs_alone(configure, tmp_path):
    options = (*TOY, "strategy=er", "benchmark=split_digits")
    jobs = [Job(configure(*options, f"seed={s}"), tmp_path / str(s), ["x"]) for s in (0, 1)]
    run_all(jobs)
    for seed, job in enumerate(jobs):
        alone = tmp_path / f"alone{seed}"
        expected = run(configure(*options, f"seed={seed}"), alone, ["x"])
        assert job.outcome == pytest.approx(expected, abs=0.02)
        names = {p.name for p in job.out.iterdir()}
        assert names == {p.name for p in alone.iterdir()} | {"cl-run.log"}
        mine, other = (
            read_matrix(job.out / "accuracy_matrix.csv"),
            read_matrix(alone / "accuracy_matrix.csv"),
        )
        assert abs(mine - other).max() < 0.05
        row, reference = (rows(p / "summary.csv")[0] for p in (job.out, alone))
        assert row.keys() == reference.keys()
        assert (row["status"], row["stacked_members"]) == ("complete", "2")
        assert reference["stacked_members"] == "1"
        for key in ("seed", "steps", "samples", "parameters", "buffer_samples"):
            assert row[key] == reference[key]


def test_the_data_set_is_read_once_for_a_stack(configure, tmp_path):
    job = Job(configure(*TOY, "strategy=naive"), tmp_path, [])
    arrays = read(job.config)
    a, b = (member(job, arrays).env.stream for _ in range(2))
    assert a.x.data_ptr() == b.x.data_ptr() == arrays.x_train.data_ptr()


def test_jobs_with_tasks_of_different_sizes_are_run_otherwise(configure, tmp_path):
    options = (*TOY, "strategy=naive", "benchmark=split_digits", "benchmark.class_order=shuffled")
    jobs = [Job(configure(*options, f"seed={s}"), tmp_path / str(s), []) for s in (0, 1, 2)]
    run_all(jobs)
    for job in jobs:
        assert isinstance(job.outcome, float)
        assert rows(job.out / "summary.csv")[0]["stacked_members"] == "1"


def test_what_hydra_looks_through_for_plugins_holds_no_generic_names():
    """With them Python 3.10 would end any program that uses Hydra beside this one."""
    others = [v for v in vars(cl_runner_launcher).values() if isinstance(v, GenericAlias)]
    assert others == []


def test_the_launcher_does_not_repeat_a_job_whose_accuracy_is_zero(monkeypatch):
    monkeypatch.setattr(cl_runner_launcher, "configure_log", lambda *_: None)
    monkeypatch.setattr(cl_runner_launcher, "run_job", lambda **given: given["task_function"])
    monkeypatch.setattr(cl_runner_launcher, "compose", lambda *_: None)
    conclude = lambda _: abs  # noqa: E731
    monkeypatch.setattr(
        cl_runner_launcher, "TOGETHER", {"run": lambda _: [0.0, None], "conclude": conclude}
    )
    launcher = VectorizedLauncher()
    config = OmegaConf.create({"hydra": {"hydra_logging": {}, "verbose": False}})
    launcher.setup(hydra_context=None, task_function=max, config=config)
    done, left = launcher.launch([["a=1"], ["a=2"]], 0)
    assert done is abs and left is max


def test_a_diverged_member_fails_alone(configure, tmp_path):
    ewc = (*TOY, "strategy=ewc", "strategy.penalty=loss")
    jobs = [Job(configure(*ewc, f"strategy.lambda={v}"), tmp_path / v, []) for v in ("1", "1e9")]
    run_all(jobs)
    assert isinstance(jobs[0].outcome, float)
    assert "NaN or infinite in task 2" in str(jobs[1].outcome)
    assert [rows(job.out / "summary.csv")[0]["status"] for job in jobs] == ["complete", "failed"]


def test_processes_run_what_is_not_stacked(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "SMALL_STEP", 0)
    config = (*TOY, "strategy=naive")
    jobs = [Job(configure(*config, f"seed={s}"), tmp_path / str(s), []) for s in (0, 1)]
    run_all(jobs)
    for seed, job in enumerate(jobs):
        assert job.outcome == run(configure(*config, f"seed={seed}"), tmp_path / f"alone{seed}")
        assert rows(job.out / "summary.csv")[0]["stacked_members"] == "1"


def test_a_stack_holds_the_folders_of_its_members_and_leaves_those_of_others(
    configure, tmp_path, monkeypatch
):
    jobs = [
        Job(configure(*TOY, "strategy=naive", f"seed={s}"), tmp_path / str(s), []) for s in range(5)
    ]
    for seed in (1, 3):
        run(jobs[seed].config, jobs[seed].out)
        status.write(jobs[seed].out, "running")
    held: list[list[bool]] = []
    monkeypatch.setattr(stacks, "train", lambda *_: held.append([locks.held(j.out) for j in jobs]))
    with locks.locked(jobs[0].out):
        status.write(jobs[3].out, "complete")  # by another process, meanwhile
        assert stacks.train_stacked(jobs) == jobs
    assert held == [[True, True, True, False, True]]  # the first by someone else
    assert not any(locks.held(job.out) for job in jobs)


def test_a_job_of_another_process_is_left_to_it(configure, tmp_path):
    job = Job(configure(*TOY, "strategy=naive"), tmp_path, ["seed=0"])
    status.write(tmp_path, "running", task=1, tasks=2)
    before = (tmp_path / "status.json").read_text()
    with locks.locked(tmp_path):
        run_left([job])
        with pytest.raises(locks.Busy):
            processes.work(job.config, job.out, job.overrides)
    assert isinstance(job.outcome, locks.Busy)
    assert (tmp_path / "status.json").read_text() == before


def test_a_job_that_another_process_has_completed_is_not_repeated(configure, tmp_path, monkeypatch):
    job = Job(configure(*TOY, "strategy=naive"), tmp_path, ["seed=0"])
    expected = run(job.config, tmp_path, job.overrides)
    monkeypatch.setattr(loop, "train_task", lambda *_: pytest.fail("it is trained again"))
    run_left([job])
    assert job.outcome == expected


def test_a_complete_stack_leaves_no_file_of_a_killed_process(configure, tmp_path):
    jobs = [Job(configure(*TOY, "strategy=naive", f"seed={s}"), tmp_path / s, []) for s in "01"]
    left = [job.out / ".status.json.4711.part" for job in jobs]
    for path in left:
        path.parent.mkdir()
        path.touch()
    run_all(jobs)
    assert rows(jobs[0].out / "summary.csv")[0]["stacked_members"] == "2"
    assert not any(path.exists() for path in left)


def test_seeds_in_processes_are_running_and_nobody_elses(data_root, tmp_path):
    program = Path(sys.executable).with_name("cl-run")
    large = ("model.hidden_sizes=[800,800]", "training.iterations=1000000", "verbose=false")
    args = (
        "benchmark=split_digits",
        "strategy=naive",
        *large,
        "device=cpu",
        f"data.root={data_root}",
    )
    process = subprocess.Popen(
        [program, *args, "seeds=[0,1]", "hydra.run.dir=s"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    try:
        folders = [tmp_path / "s" / f"seed={s}" for s in "01"]
        while not all((out / "accuracies.csv").exists() for out in folders):
            assert process.poll() is None
            time.sleep(0.02)
        assert [status.state(out) for out in folders] == ["running", "running"]
        assert merge.failures(tmp_path) == {}
        command = [program, "resume=s/seed=0"]
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        message = f"cl-run: another process is at work in {folders[0]}\n"
        assert (second.returncode, second.stderr) == (2, message)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert [status.state(out) for out in folders] == ["interrupted", "interrupted"]


def test_seeds_by_the_command_line(trained, tmp_path):
    out = tmp_path / "out"
    done = trained("strategy=ewc", "seeds=[0,3]", f"hydra.run.dir={out}")
    assert done.returncode == 0, done.stderr
    summary = rows(out / "summary.csv")
    assert [row["seed"] for row in summary] == ["0", "3"]
    assert {row["seed"] for row in rows(out / "accuracies.csv")} == {"0", "3"}
    assert {row["seed"] for row in rows(out / "accuracy_matrix.csv")} == {"0", "3"}
    accs = [float(row["ACC"]) for row in summary]
    (acc,) = (row for row in rows(out / "statistics.csv") if row["metric"] == "ACC")
    assert int(acc["n"]) == 2
    assert float(acc["mean"]) == pytest.approx(sum(accs) / 2)
    assert read_matrix(out / "seed=3" / "accuracy_matrix.csv").shape == (3, 2)
    refused = trained("seeds=[1,1]")
    assert refused.returncode == 2
    assert "seeds must be one or more different numbers" in refused.stderr


def test_the_vectorized_launcher(trained, tmp_path):
    out = tmp_path / "sweep"
    done = trained(
        *("-m", "hydra/launcher=vectorized", "strategy=ewc,naive", "seed=0,1"),
        f"hydra.sweep.dir={out}",
    )
    assert done.returncode == 0, done.stderr
    summary = rows(out / "summary.csv")
    assert [(r["strategy"], r["seed"], r["stacked_members"]) for r in summary] == [
        (strategy, seed, "2") for strategy in ("ewc", "naive") for seed in "01"
    ]
    for row in summary:
        folder = out / row["run"]
        assert {"config.yaml", "overrides.yaml", "accuracies.csv", "cl-run.log"} <= {
            p.name for p in folder.iterdir()
        }


def test_a_failed_job_of_the_launcher_is_told(trained, tmp_path):
    out = tmp_path / "sweep"
    done = trained(
        *("-m", "hydra/launcher=vectorized", "strategy=ewc", "strategy.lambda=1,1e9,-1"),
        *("strategy.penalty=loss", f"hydra.sweep.dir={out}"),
    )
    assert done.returncode == 1
    assert "2 of 3 runs failed" in done.stderr
    assert "strategy.lambda must be at least 0" in done.stderr
    assert sorted(r["status"] for r in rows(out / "summary.csv")) == [
        "complete",
        "failed",
        "failed",
    ]


def test_the_interval_is_students():
    """Of 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653, half width 2.484138."""
    got = interval([1.0, 2.0, 3.0])
    assert (got["n"], got["mean"], got["sd"]) == (3, 2.0, 1.0)
    assert got["low"] == pytest.approx(2 - 2.484138, abs=1e-5)
    assert got["high"] == pytest.approx(2 + 2.484138, abs=1e-5)
    assert interval([0.5]) == {"n": 1, "mean": 0.5, "sd": None, "low": None, "high": None}
    assert interval([]) == {"n": 0, "mean": None, "sd": None, "low": None, "high": None}


def test_a_worker_whose_run_was_stopped_ends_though_nobody_lets_it(tmp_path: Path) -> None:
    """Behind a lock that a killed worker holds it would wait for ever, and the command with it."""
    code = """
import time
from types import SimpleNamespace
from cl_runner.sweeping import processes
from cl_runner.machine.signals import Interrupted
def stopped(*_):
    raise Interrupted(15)
processes.run_locked = stopped
processes.dataclasses = SimpleNamespace(replace=lambda config, **_: config)
try:
    processes.work(SimpleNamespace(threads=1), processes.Path("run"), ())
except Interrupted:
    print("told", flush=True)
time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (1, "told\n"), done.stderr
