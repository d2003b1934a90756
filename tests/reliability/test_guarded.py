"""A guarded run goes on bit for bit, and members of a stack are guarded each by itself."""

from __future__ import annotations

import pytest
from outcomes import outcome
from test_resume import stopped_and_resumed_as
from test_stacks import SEEDS, jobs_of, killed, outcomes, raising

from cl_runner.results.files import read_rows
from cl_runner.running import checkpoint, loop
from cl_runner.sweeping.dispatch import run_all
from cl_runner.sweeping.job import Job

pytestmark = pytest.mark.slow

ALONE = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "model.hidden_sizes=[24]"),
    *("training.iterations=12", "training.batch_size=16", "verbose=false"),
    *("strategy=er", "strategy.buffer_size=20", "optimizer.momentum=0.9"),
    *("benchmark.validation_fraction=0.2", "guard.drop=0.05", "checkpoint.every=0"),
)


@pytest.mark.parametrize("action", ["rollback", "stop", "warn"])
def test_every_moment_of_a_guarded_run(configure, monkeypatch, tmp_path, action):
    """Before and after it fires, at looks and between them, with evaluations beside them."""
    options = ("guard.every=2", "eval.every=3", f"guard.action={action}")
    config = configure(*ALONE, *options)
    loop.run(config, tmp_path / "unbroken")
    expected = outcome(tmp_path / "unbroken")
    (row,) = read_rows(tmp_path / "unbroken" / "guard.csv")
    assert row["action"] == action and 0 < int(row["step"]) < 12
    if action == "rollback":
        assert 0 < int(row["kept_step"]) < int(row["step"])
    first = 1 + 12 + 1  # before the first step, after each, after the evaluation
    steps = 12 if action == "warn" else int(row["step"])
    for saves in range(first, first + 1 + steps + 1):
        out = tmp_path / str(saves)
        assert stopped_and_resumed_as(config, monkeypatch, saves, out) == expected, saves


# Together. One member is caught at step 4 of the second task, one at step 12, one never.

STACK = (
    "benchmark=split_digits",
    "benchmark.seed=0",
    "scenario=class",
    "benchmark.train_samples=60",
)
STACK += ("strategy=er", "training.iterations=20", "guard.every=2", "optimizer.lr=0.2")
STACK += ("benchmark.validation_fraction=0.4", "guard.drop=0.1", "checkpoint.every=0")


def guarded(configure, out, *options: str) -> list[Job]:
    return jobs_of(configure, out, *STACK, *options)


BUDGET = ("budget.samples=264", "guard.every=7", "guard.drop=0.05", "optimizer.lr=0.3")


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("guard.action=rollback",), ["4", "12", ""]),
        (("guard.action=stop",), ["4", "12", ""]),
        (BUDGET, ["7", "7", "18"]),  # the last one where its budget ends, between two looks
    ],
    ids=["rollback", "stop", "budget"],
)
def test_members_are_guarded_as_runs_alone(configure, tmp_path, options, steps):
    jobs = guarded(configure, tmp_path / "stack", *options, "checkpoint.every=null")
    run_all(jobs)
    ends = []
    for seed, job in zip(SEEDS, jobs, strict=True):
        alone = tmp_path / f"alone{seed}"
        loop.run(job.config, alone, ["x"])
        mine, other = (read_rows(out / "summary.csv")[0] for out in (job.out, alone))
        assert mine["stacked_members"] == "3"
        for name in ("steps", "samples", "flops", "evaluation_flops", "rollbacks"):
            assert mine[name] == other[name], name
        (one,), (two,) = (read_rows(out / "guard.csv") for out in (job.out, alone))
        assert [one[k] for k in one if k not in ("reference", "accuracy")] == [
            two[k] for k in two if k not in ("reference", "accuracy")
        ]
        ends.append(one["step"])
        for name in ("accuracy_matrix.csv", "accuracy_matrix_validation.csv"):
            a, b = (read_rows(out / name) for out in (job.out, alone))
            assert all(
                abs(float(x[k]) - float(y[k])) < 0.05 for x, y in zip(a, b, strict=True) for k in x
            )
    assert ends == steps


# Killed after so many checkpoints: those of steps 2, 4 and 13 of the second task.
@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("action", "moments"), [("rollback", (25, 27, 36)), ("stop", (36,))])
def test_a_guarded_stack_goes_on(configure, monkeypatch, tmp_path, action, moments):
    """One that the guard has ended is saved beside the others, and waits for them again."""
    own = f"guard.action={action}"
    whole = guarded(configure, tmp_path / "unbroken", own)
    run_all(whole)
    expected = outcomes(whole)
    for saves in moments:
        out = tmp_path / str(saves)
        save_all = raising(checkpoint.save_all, saves)
        killed(
            monkeypatch,
            guarded(configure, out, own),
            lambda own, save_all=save_all: own.setattr(checkpoint, "save_all", save_all),
        )
        again = guarded(configure, out, own)
        assert len({checkpoint.position(job.out) for job in again}) == 1
        run_all(again)
        assert outcomes(again) == expected, saves
