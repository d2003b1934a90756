"""Expandable head: which outputs take part when, and what a new one begins as."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    "benchmark=split_digits",
    "benchmark.train_samples=300",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=2",
)
HEAD = ("strategy=expandable_head", *TOY)


def trained(prepared, *overrides: str, tasks: int = 2):
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    for task in env.stream[:tasks]:
        s = train_task(strategy, s, task, env)
    return strategy, env, s


def output_layer(env, theta):
    """(weight [K, D], bias [K]) by the names of the MLP."""
    views = env.flat.views(theta.detach())
    return views["layers.1.weight"].clone(), views["layers.1.bias"].clone()


def begun(prepared, *overrides: str):
    """The environment; output layers at the start, after task 1, at the start of task 2; thetas."""
    strategy, env, s = trained(prepared, *HEAD, *overrides, tasks=0)
    start = output_layer(env, s.theta)
    s = train_task(strategy, s, env.stream[0], env)
    before = s._replace(theta=s.theta.detach().clone())
    after = strategy.begin_task(s._replace(t=s.t + 1), env.stream[1], env)
    layers = (start, output_layer(env, before.theta), output_layer(env, after.theta))
    return env, layers, before.theta, after.theta


@pytest.mark.parametrize("active", ["all", "seen"])
def test_training_is_naive_fine_tuning_on_the_classes_seen(prepared, active):
    _, _, s = trained(
        prepared, "strategy=expandable_head", f"training.active_classes={active}", tasks=3
    )
    _, _, naive = trained(
        prepared, "strategy=naive", "scenario=class", "training.active_classes=seen", tasks=3
    )
    assert torch.equal(s.theta, naive.theta)


def test_unseen_outputs_get_no_gradient_and_rank_last_in_their_own_order(prepared):
    strategy, env, s = trained(prepared, *HEAD)
    batch = env.gather(env.stream[1].train[:50], 1, s.t)
    gradient, _ = env.grad_and_value(strategy.loss)(s.theta, s, batch, env)
    weight, bias = output_layer(env, gradient)
    assert not weight[4:].any() and not bias[4:].any()
    assert weight[:4].any(1).all()
    plain = env.net(s.theta, batch.x, batch.task)
    logits = strategy.predict(s, batch.x, 1, env)
    assert torch.equal(logits[:, :4], plain[:, :4])
    torch.testing.assert_close(logits[:, 4:].amax(1), logits[:, :4].amin(1) - 1)
    assert torch.equal(logits[:, 4:].argsort(1), plain[:, 4:].argsort(1))


@pytest.mark.parametrize("tasks", [0, 5])
def test_before_the_first_task_and_after_the_last_all_outputs_take_part(prepared, tasks):
    strategy, env, s = trained(prepared, *HEAD, "training.epochs=1", tasks=tasks)
    batch = env.gather(env.stream[2].train[:20], 2, s.t)
    logits = strategy.predict(s, batch.x, 2, env)
    torch.testing.assert_close(logits, env.net(s.theta, batch.x, batch.task), rtol=0, atol=0)


@pytest.mark.parametrize("new_units", ["initial", "zero", "mean", "imprinted"])
def test_beginning_a_task_changes_its_own_units_and_nothing_else(prepared, new_units):
    env, _, before, after = begun(prepared, f"strategy.new_units={new_units}")
    own = env.flat.output_mask(env.own_classes[1])
    assert torch.equal(before[~own], after[~own])


def test_initial_units_are_those_of_the_initialisation_whatever_decayed_since(prepared):
    _, (start, before, after), _, _ = begun(prepared, "optimizer.weight_decay=0.1")
    assert not torch.allclose(before[0][2:4], start[0][2:4], rtol=0.01)
    assert torch.equal(after[0][2:4], start[0][2:4]) and torch.equal(after[1][2:4], start[1][2:4])


def test_zero_units_are_zero(prepared):
    _, (_, _, (weight, bias)), _, _ = begun(prepared, "strategy.new_units=zero")
    assert not weight[2:4].any() and not bias[2:4].any()


def test_mean_units_are_the_mean_of_the_old_ones(prepared):
    _, (_, before, after), _, _ = begun(prepared, "strategy.new_units=mean")
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new[2], old[:2].mean(0))
        assert torch.equal(new[2], new[3])


def test_imprinted_units_point_where_the_class_s_features_do(prepared):
    """Sample by sample, with the MLP's first layer written out."""
    env, (_, (weight, bias), after), theta, _ = begun(prepared, "strategy.new_units=imprinted")
    hidden = env.flat.views(theta)
    for c in (2, 3):
        total = torch.zeros(24)
        for row in env.stream[1].train:
            batch = env.gather(row[None], 1, torch.tensor(1))
            if int(batch.y) == c:
                h = F.relu(hidden["layers.0.weight"] @ batch.x.flatten() + hidden["layers.0.bias"])
                total += h / h.norm()
        length = (weight[0].norm() + weight[1].norm()) / 2
        torch.testing.assert_close(after[0][c], length * total / total.norm())
        assert abs(float(bias[:2].sum())) > 1e-3
        torch.testing.assert_close(after[1][c], (bias[0] + bias[1]) / 2)


def test_outputs_of_the_current_task_only_are_refused(prepared):
    message = "training.active_classes must be all or seen for strategy=expandable_head.*current"
    with pytest.raises(UserError, match=message):
        prepared(*HEAD, "training.active_classes=current")
