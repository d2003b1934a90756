"""Incremental moment matching: the average of the tasks' networks."""

from __future__ import annotations

import torch

from cl_runner.functional.importance import fisher_diagonal

TOY = ("benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2", "scenario=task")


def test_mean_imm_averages_the_weights_after_each_task(after_each_task):
    env, states, _ = after_each_task(*TOY, "strategy=imm", "strategy.merge=mean")
    merged = env.flat.views(states[-1].memory["merged"])
    trained = [env.flat.views(s.theta) for s in states]
    hidden = torch.stack([v["layers.0.weight"] for v in trained]).mean(0)
    torch.testing.assert_close(merged["layers.0.weight"], hidden)
    for t in range(5):  # a task's own outputs: from that task on
        rows = slice(2 * t, 2 * t + 2)
        own = torch.stack([v["layers.1.weight"][rows] for v in trained[t:]]).mean(0)
        torch.testing.assert_close(merged["layers.1.weight"][rows], own)


def test_mode_imm_weighs_by_the_fisher_information(after_each_task):
    env, states, _ = after_each_task(*TOY, "strategy=imm", "scenario=class")
    terms = []
    for s, task in zip(states, env.stream, strict=True):
        live = env.commit(s)
        terms.append(fisher_diagonal(live, task, env, labels="exact", samples=None))
    total = sum(terms)
    expected = sum(F * s.theta for F, s in zip(terms, states, strict=True)) / total
    known = total > 1e-6
    merged = states[-1].memory["merged"]
    torch.testing.assert_close(merged[known], expected[known], rtol=1e-3, atol=1e-4)
