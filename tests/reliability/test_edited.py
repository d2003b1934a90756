"""A run whose tasks its own model chooses goes on bit for bit, alone and in a stack."""

from __future__ import annotations

import pytest
from outcomes import outcome
from test_resume import stopped_and_resumed_as
from test_stacks import SEEDS, jobs_of, killed, outcomes, raising

from cl_runner.errors import UserError, check
from cl_runner.results.files import read_rows
from cl_runner.running import checkpoint, edits, loop
from cl_runner.sweeping.dispatch import run_all

pytestmark = pytest.mark.slow

EDITS = (
    *("benchmark=edits", "benchmark.num_tasks=3", "benchmark.epochs_per_edit=2"),
    *(
        "benchmark.pool_fraction=0.3",
        "benchmark.train_samples=200",
        "model.hidden_sizes=[12]",
        "training.iterations=6",
    ),
    *("strategy=er", "strategy.buffer_size=20", "training.batch_size=16", "precision=float32"),
    *("checkpoint.every=0", "verbose=false"),
)


def test_every_moment_of_a_run_that_edits(configure, monkeypatch, tmp_path):
    """Before the edits are chosen, right after it, and within them."""
    config = configure(*EDITS)
    loop.run(config, tmp_path / "unbroken")
    expected = outcome(tmp_path / "unbroken")
    assert len(read_rows(tmp_path / "unbroken" / "edits.csv")) == 2
    for saves in (5, 7, 8, 9, 10, 11, 14):  # 8: after the first task's evaluation
        out = tmp_path / str(saves)
        assert stopped_and_resumed_as(config, monkeypatch, saves, out) == expected, saves


def test_members_have_edits_of_their_own_and_are_as_runs_alone(configure, monkeypatch, tmp_path):
    jobs = jobs_of(configure, tmp_path / "stack", *EDITS)
    run_all(jobs)
    edited = []
    for seed, job in zip(SEEDS, jobs, strict=True):
        loop.run(configure(*EDITS, f"seed={seed}"), alone := tmp_path / f"alone{seed}")
        mine, other = (read_rows(out / "summary.csv")[0] for out in (job.out, alone))
        assert mine["stacked_members"] == "3" and other["stacked_members"] == "1"
        one, two = (read_rows(out / "edits.csv") for out in (job.out, alone))
        assert [row["samples"] for row in one] == [row["samples"] for row in two]
        for a, b in zip(one, two, strict=True):
            assert float(a["locality"]) == pytest.approx(float(b["locality"]), abs=0.02)
        edited.append(str([row["samples"] for row in one]))
    assert len(set(edited)) == 3
    expected = outcomes(jobs)
    again = jobs_of(configure, tmp_path / "again", *EDITS)
    at = raising(checkpoint.save_all, 10)  # within the first edit
    killed(monkeypatch, again, lambda patch: patch.setattr(checkpoint, "save_all", at))
    again = jobs_of(configure, tmp_path / "again", *EDITS)
    run_all(again)
    assert outcomes(again) == expected


def test_a_member_with_too_few_mistakes_leaves_the_others(configure, monkeypatch, tmp_path):
    decide = edits.decide

    def few(strategy, s, env):
        check(env.seed != 1, "too few")
        return decide(strategy, s, env)

    monkeypatch.setattr(edits, "decide", few)
    jobs = jobs_of(configure, tmp_path, *EDITS, "checkpoint.every=null")
    run_all(jobs)
    assert [isinstance(job.outcome, UserError) for job in jobs] == [False, True, False]
    rows = [read_rows(job.out / "summary.csv")[0] for job in jobs]
    assert [row["status"] for row in rows] == ["complete", "failed", "complete"]
    assert {row["stacked_members"] for row in rows} == {"3"}
    assert [(job.out / "edits.csv").exists() for job in jobs] == [True, False, True]
