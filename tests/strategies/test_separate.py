"""Separate networks: nothing is forgotten, nothing is transferred."""

from __future__ import annotations

import pytest
import torch

from cl_runner.errors import UserError

TOY = ("benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2", "scenario=task")


def test_separate_networks_forget_exactly_nothing_and_transfer_nothing(after_each_task):
    env, states, rows = after_each_task(*TOY, "strategy=separate", "optimizer=adam")
    for t, row in enumerate(rows):
        for later in rows[t:]:
            assert later[t] == row[t]
    _, first, _ = after_each_task(*TOY, "strategy=naive", "optimizer=adam")
    assert torch.equal(states[0].theta, first[0].theta)
    # The second network did not start from the first, nor did its optimizer.
    assert int(states[1].opt["steps"]) == -(-len(env.stream[1].train) // 128) * 2


def test_separate_networks_are_for_task_incremental_learning(prepared):
    with pytest.raises(UserError, match="strategy=separate does not support scenario=class"):
        prepared("strategy=separate", "benchmark=split_digits")
    with pytest.raises(UserError, match="BatchNorm"):
        prepared(
            "strategy=separate",
            "benchmark=split_digits",
            "scenario=task",
            "model=reduced_resnet18",
            "model.width=2",
        )
