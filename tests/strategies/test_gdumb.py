"""GDumb: what the buffer holds, and that nothing else is learnt from.

The sampler itself is tested item by item in tests/functional/test_buffers.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    "strategy=gdumb",
    "benchmark=split_digits",
    "strategy.buffer_size=50",
    "strategy.epochs=3",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
)


def start(prepared, *overrides: str, tasks: int = 1):
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    for task in env.stream[:tasks]:
        s = train_task(strategy, s, task, env)
    return strategy, env, s


def held(s) -> list[tuple[int, int]]:
    """(row, task) of every filled slot."""
    index, task = s.memory["buffer_index"], s.memory["buffer_task"]
    return [(int(i), int(t)) for i, t in zip(index, task, strict=True) if i >= 0]


@pytest.mark.parametrize(
    ("benchmark", "scenario"),
    [("split_digits", "class"), ("split_digits", "task"), ("permuted_digits", "domain")],
)
def test_the_buffer_is_full_and_balanced_after_each_task(prepared, benchmark, scenario):
    overrides = (f"benchmark={benchmark}", f"scenario={scenario}", "benchmark.num_tasks=5")
    for tasks in (1, 3, 5):
        _, env, s = start(prepared, *overrides, tasks=tasks)
        rows = held(s)
        assert len(set(rows)) == 50
        assert all(row in env.stream[task].train for row, task in rows)
        bins = Counter(
            (task if scenario == "domain" else 0, int(env.stream.y[row])) for row, task in rows
        )
        assert len(bins) == (10 if scenario == "domain" else 2) * tasks
        assert max(bins.values()) - min(bins.values()) <= 1


def test_what_is_held_is_drawn_by_the_seed(prepared):
    rows = [held(start(prepared, "strategy.epochs=1", f"seed={seed}")[2]) for seed in (0, 1)]
    assert len({*rows[0], *rows[1]}) > 70  # of 50 each, from 280


def test_a_buffer_with_room_for_all_trains_on_all(prepared):
    """The first row of the training set, too."""
    _, env, s = start(prepared, "strategy.buffer_size=2000", "strategy.epochs=1", tasks=5)
    assert sorted(row for row, _ in held(s)) == list(range(len(env.stream.x)))
    assert env.meter.samples == sum(len(t.train) * (5 - t.index) for t in env.stream)


def test_the_weights_before_do_not_matter(prepared):
    """Trained from scratch: weights, the optimizer's momentum and BatchNorm's statistics."""
    model = ("model=reduced_resnet18", "model.width=2", "strategy.epochs=1")
    toy = [override for override in TOY if "hidden" not in override]
    states = []
    for disturbed in (False, True):
        _, strategy, env = prepared(*toy, *model, "optimizer.momentum=0.9", "optimizer.reset=false")
        s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
        if disturbed:
            opt = s.opt | {"momentum": s.opt["momentum"] + 1}
            s = env.commit(s._replace(theta=s.theta.detach() * 2, opt=opt))
            for value in s.buffers.values():
                value.add_(3)
        states.append(train_task(strategy, s, env.stream[1], env))
    assert torch.equal(states[0].theta, states[1].theta)
    assert all(torch.equal(v, states[1].buffers[k]) for k, v in states[0].buffers.items())


def test_nothing_but_the_buffer_is_learnt_from(prepared):
    """Other images do not matter; those in the buffer do."""
    _, _, first = start(prepared, tasks=2)
    rows = torch.tensor([row for row, _ in held(first)])
    trained = {}
    for name in ("others", "buffer"):
        _, strategy, env = prepared(*TOY)
        blank = torch.ones(len(env.stream.x), dtype=torch.bool)
        blank[rows] = False
        env.stream.x[blank if name == "others" else ~blank] = 0
        s = initial_state(strategy, env)
        for task in env.stream[:2]:
            s = train_task(strategy, s, task, env)
        trained[name] = s
    assert torch.equal(trained["others"].theta, first.theta)
    assert not torch.equal(trained["buffer"].theta, first.theta)


def test_the_meter_counts_the_passes_over_the_buffer_and_no_others(prepared):
    _, env, s = start(prepared, "training.iterations=7", tasks=3)
    assert len(held(s)) == 50
    assert env.meter.steps == 3 * 3 * 4  # tasks, epochs, batches of 16 in 50
    assert env.meter.samples == 3 * 3 * 50


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.buffer_size=9", "at least one place for each of 10 classes"),
        ("strategy.buffer_size=0", "strategy.buffer_size must lie between 1 and 1000000, got 0"),
        ("strategy.epochs=0", "strategy.epochs must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(prepared, override, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, override)
