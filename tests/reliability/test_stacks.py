"""Runs that are trained together lose nothing either, wherever they are killed.

The short form kills `cl-run` once in each of the two ways to train runs together;
CL_RUNNER_KILLS and CL_RUNNER_KILL_SEED (see test_resume.py) take more kills, and others.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import outcome
from test_resume import CHECKPOINT, KILL_SEED, KILLS, Killed, command, kill_at

from cl_runner.errors import Diverged
from cl_runner.results.files import read_rows
from cl_runner.results.status import going_on
from cl_runner.running import checkpoint, loop
from cl_runner.sweeping.dispatch import run_all
from cl_runner.sweeping.job import Job

pytestmark = pytest.mark.slow

TOY = (
    *("benchmark.num_tasks=2", "benchmark.train_samples=60"),  # of permuted digits
    *("model.hidden_sizes=[12]", "training.batch_size=8", "training.iterations=5"),
    *("strategy.buffer_size=20", "precision=float32", "verbose=false"),
)
SEEDS = range(3)


def jobs_of(configure, out: Path, *overrides: str, each: tuple[str, ...] = ()) -> list[Job]:
    """A job per seed in a folder of its own, each with one of the overrides `each`."""
    own = [*each, *([""] * len(SEEDS))]
    configs = [
        configure(*TOY, *overrides, f"seed={seed}", *filter(None, own[seed : seed + 1]))
        for seed in SEEDS
    ]
    folders = [out / f"seed={seed}" for seed in SEEDS]
    return [Job(going_on(c, f), f, ["x"]) for c, f in zip(configs, folders, strict=True)]


def outcomes(jobs: list[Job]) -> list[dict[str, object]]:
    return [outcome(job.out) for job in jobs]


def killed(monkeypatch, jobs: list[Job], patch: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Train the jobs until what is patched in raises Killed."""
    with monkeypatch.context() as own:
        patch(own)
        with pytest.raises(Killed):
            run_all(jobs)


def raising(function: Callable[..., object], number: int) -> Callable[..., object]:
    """The function, whose process ends right after its call of this number, from 1."""
    count = iter(range(1, 10**9))

    def counted(*args: object, **options: object) -> object:
        result = function(*args, **options)
        if next(count) == number:
            raise Killed
        return result

    return counted


@pytest.mark.usefixtures("traced_once")
def test_every_moment_of_a_stack(configure, monkeypatch, tmp_path):
    case = ("strategy=er", "checkpoint.every=0", "eval.every=2", "eval.online=true")
    whole = jobs_of(configure, tmp_path / "unbroken", *case)
    run_all(whole)
    expected = outcomes(whole)
    assert [read_rows(j.out / "summary.csv")[0]["stacked_members"] for j in whole] == ["3"] * 3
    # Before the first step, in the middle, at the end of a task, and the same of the next one.
    for saves in (1, 4, 6, 7, 8, 11, 14):
        out = tmp_path / str(saves)
        save_all = raising(checkpoint.save_all, saves)
        killed(
            monkeypatch,
            jobs_of(configure, out, *case),
            lambda own, save_all=save_all: own.setattr(checkpoint, "save_all", save_all),
        )
        again = jobs_of(configure, out, *case)
        run_all(again)
        assert outcomes(again) == expected, saves
        assert not [p for job in again for p in job.out.glob("*.safetensors")]


PLAIN = ("strategy=er", "checkpoint.every_steps=3")


@pytest.fixture(scope="module")
def unbroken(configure, tmp_path_factory) -> list[dict[str, object]]:
    jobs = jobs_of(configure, tmp_path_factory.mktemp("unbroken"), *PLAIN)
    run_all(jobs)
    return outcomes(jobs)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("call", [4, 5, 6])
@pytest.mark.parametrize("name", ["write_bytes", "sync_folder"])
def test_within_a_save_all_get_the_new_checkpoint_or_none(
    configure, monkeypatch, tmp_path, unbroken, name, call
):
    """Three are written beside the old ones, then three renamed; the second save is cut short."""
    out = tmp_path / "killed"
    cut = raising(getattr(checkpoint, name), call)
    killed(
        monkeypatch, jobs_of(configure, out, *PLAIN), lambda own: own.setattr(checkpoint, name, cut)
    )
    again = jobs_of(configure, out, *PLAIN)
    checkpoint.settle([job.out for job in again])
    assert len({checkpoint.position(job.out) for job in again}) == 1
    run_all(again)
    assert outcomes(again) == unbroken


@pytest.mark.parametrize(
    "kind", [pytest.param("pipe", marks=pytest.mark.unix), "text", "folder", "cut"]
)
def test_what_is_no_checkpoint_takes_the_place_of_none(configure, tmp_path, kind):
    jobs = jobs_of(configure, tmp_path, *PLAIN, "checkpoint.keep=true")[:1]
    loop.run(jobs[0].config, jobs[0].out, ["x"])
    kept = (jobs[0].out / CHECKPOINT).read_bytes()
    foreign = jobs[0].out / checkpoint.NEXT
    if kind == "pipe":
        os.mkfifo(foreign)
    elif kind == "folder":
        foreign.mkdir()
    else:
        foreign.write_bytes(b"text" if kind == "text" else kept[:-1])
    checkpoint.settle([job.out for job in jobs])
    assert (jobs[0].out / CHECKPOINT).read_bytes() == kept
    if kind == "folder":
        foreign.rmdir()
    foreign.write_bytes(kept)
    checkpoint.settle([job.out for job in jobs])
    assert not foreign.exists() and (jobs[0].out / CHECKPOINT).read_bytes() == kept


@pytest.mark.usefixtures("traced_once")
def test_a_member_that_diverges_leaves_the_others_as_they_go_on(configure, monkeypatch, tmp_path):
    case = ("strategy=l2", "checkpoint.every=0")
    each = ("strategy.lambda=0.1", "strategy.lambda=1e9", "strategy.lambda=1.0")
    options = tuple(o for o in TOY if "buffer_size" not in o)
    monkeypatch.setattr(sys.modules[__name__], "TOY", options)
    whole = jobs_of(configure, tmp_path / "unbroken", *case, each=each)
    run_all(whole)
    assert [type(job.outcome) for job in whole] == [float, Diverged, float]
    out = tmp_path / "killed"
    save_all = raising(checkpoint.save_all, 6 + 1 + 4)  # within the second task, which it ends
    killed(
        monkeypatch,
        jobs_of(configure, out, *case, each=each),
        lambda own: own.setattr(checkpoint, "save_all", save_all),
    )
    again = jobs_of(configure, out, *case, each=each)
    run_all(again)
    assert [str(job.outcome) for job in again] == [str(job.outcome) for job in whole]
    assert outcomes(again) == outcomes(whole)


@pytest.mark.parametrize(
    "options",
    [
        ("eval.every=2", "eval.tasks=last:1"),
        ("budget.samples=30", "optimizer.schedule=cosine", "eval.online=true"),
        ("eval.online=true", "eval.online_window=2", "training.iterations=12"),
        ("eval.online=true", "eval.online_window=2", "training.passes=2"),
        ("budget.flops=2e5", "eval.every=1"),
        ("eval.calibration=true",),
        ("eval.features=true",),
    ],
    ids=" ".join,
)
def test_a_stack_has_what_runs_alone_have(configure, tmp_path, options):
    """Budgets stop at the same step, and what is measured between the steps is the same."""
    case = ("strategy=er", *options)
    jobs = jobs_of(configure, tmp_path / "stack", *case)
    run_all(jobs)
    for seed, job in zip(SEEDS, jobs, strict=True):
        alone = tmp_path / f"alone{seed}"
        loop.run(configure(*TOY, *case, f"seed={seed}"), alone, ["x"])
        mine, other = (read_rows(out / "summary.csv")[0] for out in (job.out, alone))
        assert mine["stacked_members"] == "3"
        for name in ("steps", "samples", "flops", "evaluation_flops", "budget_stopped"):
            assert mine.get(name) == other.get(name), name
        if "eval.online=true" in options:
            own, theirs = (read_rows(out / "online.csv") for out in (job.out, alone))
            assert own == theirs != []
        own, theirs = (read_rows(out / "accuracies.csv") for out in (job.out, alone))
        assert [{**row, "accuracy": 0} for row in own] == [{**row, "accuracy": 0} for row in theirs]
        pairs = zip(own, theirs, strict=True)
        assert max(abs(float(a["accuracy"]) - float(b["accuracy"])) for a, b in pairs) < 0.05


LONG = (
    *("benchmark=split_digits", "benchmark.num_tasks=3", "model.hidden_sizes=[12]"),
    *("training.batch_size=8", "training.iterations=40", "verbose=false", "precision=float32"),
    *("strategy=derpp", "strategy.buffer_size=30", "strategy.replay_batch_size=8"),
)


@pytest.mark.parametrize(
    "together",
    [
        ("seeds=[0,1,2]", "hydra.run.dir"),
        ("-m hydra/launcher=vectorized seed=0,1,2", "hydra.sweep.dir"),
    ],
    ids=["seeds", "vectorized"],
)
def test_sigkill_of_a_stack_changes_no_byte(cl_run_started, data_root, tmp_path, together):
    how, folder = together[0].split(), together[1]
    draw = random.Random(f"{KILL_SEED} {how}")
    args = (*how, *command(LONG, data_root))
    whole = tmp_path / "unbroken"
    unbroken = cl_run_started(*args, f"{folder}={whole}", cwd=tmp_path)
    assert unbroken.wait() == 0, unbroken.said()

    out = tmp_path / "killed"
    again = (*args, f"{folder}={out}", "resume=true")
    kills = max(1, KILLS // 9)
    for task, step in sorted((draw.randrange(3), draw.randint(0, 30)) for _ in range(kills)):
        process = cl_run_started(*again, "checkpoint.every=0", cwd=tmp_path)
        while not (members := sorted(out.glob("*seed=0*"))) and process.poll() is None:
            time.sleep(0.001)
        assert kill_at(process, members[0], task, step, draw.uniform(0, 0.02)), "it was done before"
    process = cl_run_started(*again, cwd=tmp_path)
    assert (process.wait(), process.said()[1]) == (0, "")
    members = sorted(path.name for path in whole.glob("*seed=*"))
    assert len(members) == 3 and members == sorted(path.name for path in out.glob("*seed=*"))
    for name in members:
        assert outcome(out / name) == outcome(whole / name), name
        assert read_rows(out / name / "summary.csv")[0]["stacked_members"] == "3"
        assert not list((out / name).glob("*.safetensors"))
    assert CHECKPOINT not in {path.name for path in out.rglob("*")}
