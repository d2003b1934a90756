"""Joint training: once, on everything."""

from __future__ import annotations

import pytest
import torch

from cl_runner.running.evaluation import evaluate

TOY = ("strategy=naive", "benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2")


def test_joint_trains_once_on_the_union_of_all_tasks(counted_run):
    """The known bug: joint training that saw only the first task."""
    strategy, s, env, counts = counted_run(*TOY, "strategy=joint", "training.batch_size=64")
    assert counts[0][1] == 2 * len(env.stream.x)
    assert counts[1:] == [(0, 0)] * 4
    assert min(evaluate(strategy, s, env)["test", "class"]) > 0.3


def test_the_budget_of_joint_is_that_of_the_sequence(counted_run):
    _, _, _, counts = counted_run(*TOY, "strategy=joint", "training.iterations=7")
    assert [steps for steps, _ in counts] == [5 * 7, 0, 0, 0, 0]


@pytest.mark.parametrize("active", ["seen", "all", "current"])
def test_joint_scores_all_classes_from_the_start(counted_run, active):
    _, s, _, _ = counted_run(*TOY, "strategy=joint", f"training.active_classes={active}", tasks=1)
    assert torch.isfinite(s.theta).all()
