"""Progressive networks: nothing old moves, nothing is forgotten, and the laterals are used."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.running.evaluation import evaluate
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    "strategy=pnn",
    "scenario=task",
    "benchmark=split_digits",
    "model.hidden_sizes=[24,16]",
    "training.epochs=1",
)
OPTIMIZERS = {
    "adam": ("optimizer=adam", "optimizer.lr=0.01", "optimizer.weight_decay=0.1"),
    "adamw": ("optimizer=adamw", "optimizer.weight_decay=0.1"),
    "momentum": ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.1"),
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def run(prepared, *overrides: str):
    """Environment, the states before the first and after each task (copied), and R's rows."""
    config, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    states, rows = [s._replace(theta=s.theta.detach().clone())], []
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        rows.append(evaluate(strategy, s, env)["test", config.scenario])
        states.append(s._replace(theta=s.theta.detach().clone()))
    return env, states, rows


def test_the_adapters_are_as_small_as_asked_for(prepared):
    _, _, env = prepared(*TOY, "strategy.adapter_size=3")
    parts = env.flat.views(env.flat.theta)
    assert {len(parts[f"adapters.{layer}.c"][0]) for layer in (0, 1)} == {3}


@optimizers
def test_only_the_current_column_moves_and_the_others_not_by_a_bit(prepared, optimizer):
    env, states, rows = run(prepared, *optimizer)
    owner = states[0].memory["owner"]
    for t, (before, after) in enumerate(pairwise(states)):
        assert torch.equal(before.theta[owner != t], after.theta[owner != t])
        moved = env.flat.views((before.theta != after.theta) & (owner == t))
        own = env.flat.views(owner == t)
        for name, values in moved.items():
            assert values.any() or not own[name].any(), name  # laterals too
    for i, row in enumerate(rows):
        assert all(later[i] == row[i] for later in rows[i:])


def test_a_new_column_starts_from_its_own_values_with_a_fresh_optimizer(prepared):
    env, states, _ = run(prepared, "optimizer=adam")
    W = env.flat.views(states[0].theta)["W.0"]
    assert len({float(w.sum()) for w in W}) == len(env.stream)
    assert int(states[-1].opt["steps"]) == -(-len(env.stream[4].train) // 128)
    owner = states[0].memory["owner"]
    assert not states[-1].opt["m"][owner != 4].any()  # there is nothing left of the older columns


def test_the_first_column_is_naive_finetuning_on_the_first_task(prepared):
    env, states, _ = run(prepared, "optimizer=adam", "benchmark.num_tasks=2")
    mine = env.flat.views(states[1].theta)
    _, strategy, env = prepared(*TOY, "strategy=naive", "optimizer=adam", "benchmark.num_tasks=2")
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    for i in range(3):
        naive = env.flat.views(s.theta)
        torch.testing.assert_close(mine[f"W.{i}"][0], naive[f"layers.{i}.weight"])
        torch.testing.assert_close(mine[f"b.{i}"][0], naive[f"layers.{i}.bias"])


def test_laterals_carry_a_gradient_and_change_the_output(mid_run):
    """The Mammoth bug: laterals that exist and are never used."""
    strategy, env, s, batches = mid_run(*TOY, tasks=2)
    grad, _ = env.grad_and_value(strategy.loss)(s.theta, s, batches[0], env)
    gradient = {name: g.clone() for name, g in env.flat.views(grad).items()}
    owner = env.flat.views(s.memory["owner"])
    for layer in (0, 1):
        for part in ("alpha", "V", "c", "U"):
            name = f"adapters.{layer}.{part}"
            of_column = gradient[name][owner[name] == 2]
            assert of_column.any(), name
            assert not gradient[name][owner[name] != 2].any(), name
        assert all(gradient[f"adapters.{layer}.alpha"][1:3] != 0)  # from either old column

    x = env.stream.normalise(env.stream.held_out("test", env.stream[1])[0])
    for name in ("adapters.0.U", "adapters.1.U"):
        without = s.theta.detach().clone()
        env.flat.views(without)[name].zero_()
        for task in (0, 1):
            cut = strategy.predict(s._replace(theta=without), x, task, env)
            assert torch.equal(cut, strategy.predict(s, x, task, env)) == (task == 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=cnn",), "strategy=pnn needs model=mlp"),
        (("model.hidden_sizes=[]",), r"model.hidden_sizes, got \[\]"),
        (("model.norm=batch",), "strategy=pnn needs model=mlp, model.norm=none, adapter=none and"),
        (("scenario=class",), "strategy=pnn does not support scenario=class"),
        (("strategy.adapter_size=0",), "strategy.adapter_size must be at least 1, got 0"),
        (("strategy.alpha_init=0",), "strategy.alpha_init must be positive, got 0"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    mlp = [override for override in TOY if override.startswith("model.")]
    base = [override for override in TOY if override not in mlp]
    with pytest.raises(UserError, match=message):
        prepared(*base, *([] if "model=cnn" in overrides else mlp), *overrides)
