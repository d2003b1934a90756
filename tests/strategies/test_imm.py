"""Incremental moment matching: the average of the tasks' networks."""

from __future__ import annotations

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.parts.importance import fisher_diagonal
from cl_runner.training.env import statistics

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


@pytest.mark.parametrize("merge", ["mean", "mode"])
def test_the_merged_network_predicts(prepared, merge):
    _, strategy, env = prepared(*TOY, "strategy=imm", f"strategy.merge={merge}")
    s = initial_state(strategy, env)
    for task in env.stream[:2]:
        s = train_task(strategy, s, task, env)
    x = env.gather(env.stream[0].train[:9], 0, s.t).x
    task = torch.zeros(9, dtype=torch.int64)
    actual = strategy.predict(s, x, 0, env)
    torch.testing.assert_close(actual, env.net(s.memory["merged"], x, task))
    assert not torch.allclose(actual, env.net(s.theta, x, task), atol=0.01)


@pytest.mark.parametrize("merge", ["mean", "mode"])
def test_the_merged_network_has_the_mean_of_the_tasks_batchnorm_statistics(prepared, merge):
    _, strategy, env = prepared(
        *("strategy=imm", f"strategy.merge={merge}", "benchmark=split_digits", "scenario=task"),
        *("model=reduced_resnet18", "model.width=2", "benchmark.train_samples=90"),
        *("training.epochs=1", "training.batch_size=9", "benchmark.num_tasks=3"),
    )
    s = initial_state(strategy, env)
    seen = []
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        seen.append({k: v.clone() for k, v in s.buffers.items()})
    held = statistics(s.memory, "merged")
    assert held.keys() == s.buffers.keys()
    moving = [k for k in held if k.endswith(("running_mean", "running_var"))]
    for name in moving:
        torch.testing.assert_close(held[name], torch.stack([b[name] for b in seen]).mean(0))
    assert not torch.allclose(held["bn.running_mean"], seen[-1]["bn.running_mean"], rtol=0.01)
    x = env.gather(env.stream[0].train[:9], 0, s.t).x
    env.flat.module.eval()
    for name, value in env.flat.buffers.items():
        value.copy_(held[name])
    env.commit(s._replace(theta=s.memory["merged"]))
    expected = env.net(env.flat.theta, x, torch.zeros(9, dtype=torch.int64)).detach()
    for name, value in env.flat.buffers.items():
        value.copy_(seen[-1][name])
    torch.testing.assert_close(strategy.predict(s, x, 0, env), expected)


@pytest.mark.parametrize("labels", ["exact", "true", "predicted"])
@pytest.mark.parametrize("samples", ["7", "null"])
def test_mode_imm_asks_the_label_rule_and_so_many_samples(prepared, labels, samples):
    case = (f"strategy.fisher_labels={labels}", f"strategy.fisher_samples={samples}")
    few = "training.iterations=3"  # so that the likeliest class is not yet the true one
    _, strategy, env = prepared(*TOY, "strategy=imm", *case, few)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)

    def fisher(labels: str, number: int | None):
        return fisher_diagonal(s, env.stream[0], env, labels=labels, samples=number)

    number = None if samples == "null" else 7
    torch.testing.assert_close(s.memory["weight"], fisher(labels, number))
    others = [fisher(rule, number) for rule in ("exact", "true", "predicted") if rule != labels]
    for other in (*others, fisher(labels, None if number else 7)):
        assert float((s.memory["weight"] - other).norm()) > 0.02 * float(other.norm())


@pytest.mark.parametrize("key", ["fisher_labels=true", "fisher_samples=10"])
def test_what_the_mean_does_not_ask_is_refused(prepared, key):
    with pytest.raises(UserError, match=f"strategy.{key} has no meaning with strategy.merge=mean"):
        prepared("strategy=imm", "strategy.merge=mean", f"strategy.{key}")
