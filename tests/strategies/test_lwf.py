"""Learning without forgetting: whose answers are kept, over which classes, by which weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cl_runner.errors import Diverged, UserError
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.naive import Naive
from cl_runner.training.batches import Source

TOY = (
    "strategy=lwf",
    "benchmark=split_digits",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)


def mid_run(prepared, *overrides: str, tasks: int = 2):
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    for task in env.stream[:tasks]:
        s = train_task(strategy, s, task, env)
    s = strategy.begin_task(s._replace(t=torch.full_like(s.t, tasks)), env.stream[tasks], env)
    old = s.theta.detach().clone()
    source = Source(env, s, tasks, env.stream[tasks].train, tasks, strategy)
    batches = list(source.epoch(0, 4))
    with torch.no_grad():
        s, _ = strategy.step(s, batches[0], env)  # so that old and new network differ
        s = env.commit(s)
    return strategy, env, s, batches[1:], old


def kept(strategy, env, s, batch) -> float:
    loss, _ = strategy.loss(s.theta, s, batch, env)
    return (loss - Naive(name="naive").loss(s.theta, s, batch, env)[0]).item()


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
@pytest.mark.parametrize("weight", ["fixed", "growing"])
def test_the_distillation_by_hand(prepared, scenario, weight):
    strategy, env, s, (batch, *_), old = mid_run(
        prepared,
        f"scenario={scenario}",
        f"strategy.weight={weight}",
        "strategy.lambda=0.7",
        "strategy.temperature=3",
    )
    answers = env.net(old, batch.x, batch.task).detach()
    logits = env.net(s.theta, batch.x, batch.task).detach()
    heads = {"task": [[0, 1], [2, 3]], "class": [[0, 1, 2, 3]], "domain": [[0, 1]]}[scenario]
    terms = [
        -((answers[:, c] / 3).softmax(1) * (logits[:, c] / 3).log_softmax(1)).sum(1).mean()
        for c in heads
    ]
    expected = 0.7 * float(sum(terms)) / len(terms) * (2 if weight == "growing" else 1)
    assert kept(strategy, env, s, batch) == pytest.approx(expected, rel=1e-4)


def test_one_old_task_counts_once(prepared):
    case = ("scenario=task", "strategy.weight=fixed", "strategy.temperature=3")
    strategy, env, s, (batch, *_), old = mid_run(prepared, *case, tasks=1)
    answers = (env.net(old, batch.x, batch.task).detach()[:, :2] / 3).softmax(1)
    log_q = (env.net(s.theta, batch.x, batch.task).detach()[:, :2] / 3).log_softmax(1)
    expected = -float((answers * log_q).sum(1).mean())
    assert kept(strategy, env, s, batch) == pytest.approx(expected, rel=1e-4)


def test_over_seen_the_new_classes_have_target_zero(prepared):
    case = ("scenario=class", "strategy.temperature=3", "strategy.over=seen")
    case = (*case, "strategy.weight=fixed")
    strategy, env, s, (batch, *_), old = mid_run(prepared, *case)
    answers = env.net(old, batch.x, batch.task).detach()[:, :4]
    log_q = (env.net(s.theta, batch.x, batch.task).detach()[:, :6] / 3).log_softmax(1)
    expected = -((answers / 3).softmax(1) * log_q[:, :4]).sum(1).mean()
    assert kept(strategy, env, s, batch) == pytest.approx(float(expected), rel=1e-4)


def test_by_default_the_weight_is_the_papers_sum_over_old_tasks(prepared):
    strategy, env, s, (batch, *_), old = mid_run(prepared, "scenario=task", tasks=3)
    answers = env.net(old, batch.x, batch.task).detach() / 2
    log_q = env.net(s.theta, batch.x, batch.task).detach() / 2
    heads = ([0, 1], [2, 3], [4, 5])
    terms = (answers[:, c].softmax(1) * log_q[:, c].log_softmax(1) for c in heads)
    expected = -sum(float(term.sum(1).mean()) for term in terms)
    assert kept(strategy, env, s, batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weight", ["fixed", "growing"])
@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_both_terms_weigh_at_most_max_weight_together(prepared, scenario, weight):
    case = (f"scenario={scenario}", f"strategy.weight={weight}", "strategy.lambda=6")
    together = 1 + 6 * (2 if weight == "growing" else 1)  # in the third task
    losses = {}
    for most in ("null", "8", "5"):
        strategy, env, s, (batch, *_), _ = mid_run(prepared, *case)
        strategy = dataclasses.replace(strategy, max_weight=None if most == "null" else float(most))
        losses[most] = strategy.loss(s.theta, s, batch, env)[0].item()
    for most in ("8", "5"):
        shrunk = min(1.0, float(most) / together)
        assert losses[most] == pytest.approx(shrunk * losses["null"], rel=1e-5)


def test_max_weight_changes_nothing_in_the_first_task(prepared):
    _, strategy, env = prepared(*TOY, "strategy.weight=fixed", "strategy.lambda=30")
    s = initial_state(strategy, env)
    batch = env.gather(env.stream[0].train[:8], 0, s.t)
    naive, _ = Naive(name="naive").loss(s.theta, s, batch, env)
    assert torch.equal(strategy.loss(s.theta, s, batch, env)[0], naive)


@pytest.mark.slow
def test_dozens_of_tasks_do_not_diverge_by_default(configure, tmp_path):
    """49 times the distillation does, with plain SGD, on the years of weather."""
    short = ("strategy=lwf", "benchmark=weather", "seed=1", "eval.tasks=none", "verbose=false")
    run(configure(*short), tmp_path / "capped")
    with pytest.raises(Diverged):
        run(configure(*short, "strategy.max_weight=null"), tmp_path / "whole")


def test_over_seen_is_for_class_incremental_learning(prepared):
    with pytest.raises(UserError, match=r"strategy.over=seen is for scenario=class"):
        prepared(*TOY, "scenario=task", "strategy.over=seen")


def test_the_factor_of_the_squared_temperature(prepared):
    strategy, env, s, (batch, *_), _ = mid_run(
        prepared, "strategy.temperature=3", "strategy.max_weight=null"
    )
    scaled = dataclasses.replace(strategy, squared_temperature=True)
    plain = kept(strategy, env, s, batch)
    assert plain > 0
    assert kept(scaled, env, s, batch) == pytest.approx(9 * plain, rel=1e-4)


def test_the_first_task_has_nothing_to_keep(prepared):
    strategy, env, s, (batch, *_), _ = mid_run(prepared, tasks=0)
    assert kept(strategy, env, s, batch) == 0


def test_warm_up_trains_the_new_outputs_only(prepared):
    _, strategy, env = prepared(*TOY, "scenario=task", "strategy.warm_up=2")
    s = strategy.begin_task(initial_state(strategy, env), env.stream[0], env)
    assert bool(s.memory["free"].all())  # the first task has no warm-up
    s = train_task(strategy, s, env.stream[0], env)
    s = strategy.begin_task(s._replace(t=torch.ones_like(s.t)), env.stream[1], env)
    source = Source(env, s, 1, env.stream[1].train, 1, strategy)
    own = env.flat.output_mask(env.own_classes[1])
    assert int(own.sum()) == 2 * (24 + 1)
    before = s.theta.detach().clone()
    changed = []
    with torch.no_grad():
        for batch in source.epoch(0, 3):
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
            changed.append(s.theta.detach() != before)
    for step in (0, 1):
        assert bool((changed[step] <= own).all()) and bool(changed[step].any())
    assert bool((changed[2] & ~own).any())


NOISY = [
    ("model.hidden_sizes=[24]", "model.dropout=0.5"),
    ("model=reduced_resnet18", "model.width=2", "benchmark.train_samples=60"),
]


@pytest.mark.parametrize("model", NOISY, ids=["dropout", "batchnorm"])
def test_the_old_network_answers_as_it_did_at_the_end_of_its_task(prepared, monkeypatch, model):
    """Without dropout, with its own statistics; nothing that it does moves those of the new one."""
    toy = (o for o in TOY if not o.startswith("model."))
    _, strategy, env = prepared(*toy, *model)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    batch = env.gather(env.stream[1].train[:16], 1, torch.tensor(1))
    env.flat.module.eval()
    expected = env.net(s.theta, batch.x, batch.task).detach()
    env.flat.module.train()
    s = strategy.begin_task(s._replace(t=torch.ones_like(s.t)), env.stream[1], env)
    received, answers = [], env.answers

    def watched(*given):
        before = {k: v.clone() for k, v in env.flat.buffers.items()}
        received.append(answers(*given))
        assert all(torch.equal(v, before[k]) for k, v in env.flat.buffers.items())
        return received[-1]

    monkeypatch.setattr(env, "answers", watched)
    with torch.no_grad():
        for _ in range(3):  # the new network moves, and its statistics do
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    assert len(received) == 3
    for given in received:
        torch.testing.assert_close(given, expected)
