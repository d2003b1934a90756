"""Strategies that keep old tasks apart: separate networks, frozen features; and IMM's average."""

from __future__ import annotations

import pytest
import torch

from cl_runner.engine import evaluate, initial_state, train_task
from cl_runner.errors import UserError
from cl_runner.functional.importance import fisher_diagonal

TOY = ("benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2", "scenario=task")


def run(prepared, *overrides: str):
    """Environment, the states after each task (copied), and R without its first row."""
    config, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    states, rows = [], []
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        rows.append(evaluate(strategy, s, env)["test", config.scenario])
        states.append(s._replace(theta=s.theta.detach().clone()))
    return env, states, rows


def test_separate_networks_forget_exactly_nothing_and_transfer_nothing(prepared):
    env, states, rows = run(prepared, "strategy=separate", "optimizer=adam")
    for t, row in enumerate(rows):
        for later in rows[t:]:
            assert later[t] == row[t]
    _, first, _ = run(prepared, "strategy=naive", "optimizer=adam")
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


def test_frozen_features_are_frozen_bit_for_bit_after_the_first_task(prepared):
    _, states, rows = run(prepared, "strategy=frozen_features")
    output = states[0].memory["output"]
    assert int(output.sum()) == 10 * (24 + 1)
    for s in states[1:]:
        assert torch.equal(s.theta[~output], states[0].theta[~output])
    assert not torch.equal(states[1].theta[output], states[0].theta[output])
    assert all(later[0] == rows[0][0] for later in rows)  # multi-head: nothing is forgotten


def test_mean_imm_averages_the_weights_after_each_task(prepared):
    env, states, _ = run(prepared, "strategy=imm", "strategy.merge=mean")
    merged = env.flat.views(states[-1].memory["merged"])
    trained = [env.flat.views(s.theta) for s in states]
    hidden = torch.stack([v["layers.0.weight"] for v in trained]).mean(0)
    torch.testing.assert_close(merged["layers.0.weight"], hidden)
    for t in range(5):  # a task's own outputs: from that task on
        rows = slice(2 * t, 2 * t + 2)
        own = torch.stack([v["layers.1.weight"][rows] for v in trained[t:]]).mean(0)
        torch.testing.assert_close(merged["layers.1.weight"][rows], own)


def test_mode_imm_weighs_by_the_fisher_information(prepared):
    env, states, _ = run(prepared, "strategy=imm", "scenario=class")
    terms = []
    for s, task in zip(states, env.stream, strict=True):
        live = env.commit(s)
        terms.append(fisher_diagonal(live, task, env, labels="exact", samples=None))
    total = sum(terms)
    expected = sum(F * s.theta for F, s in zip(terms, states, strict=True)) / total
    known = total > 1e-6
    merged = states[-1].memory["merged"]
    torch.testing.assert_close(merged[known], expected[known], rtol=1e-3, atol=1e-4)
