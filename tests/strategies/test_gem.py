"""GEM: what the memories hold, how many constraints there are, and that the step keeps them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import Diverged, UserError
from cl_runner.functional.projection import project_cone
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies import gem

TOY = (
    "strategy=gem",
    "benchmark=split_digits",
    "strategy.buffer_size=64",
    "model.hidden_sizes=[24]",
    "optimizer.lr=0.1",
    "training.batch_size=16",
    "training.epochs=1",
)


def run(mid_run, *overrides: str, tasks: int = 3):
    """The state after some tasks, and the first batches of the next."""
    strategy, env, s, batches = mid_run(*TOY, *overrides, tasks=tasks)
    return strategy, env, s, batches[:15]


def test_each_task_s_memory_is_the_last_samples_of_it(mid_run):
    strategy, env, s, batches = run(mid_run, tasks=1)
    assert len(strategy.recall(s, 0, env).y) == 64 // 5
    assert set(strategy.recall(s, 0, env).index.tolist()) <= set(env.stream[0].train.tolist())
    seen: list[int] = []
    with torch.no_grad():
        for batch in batches:
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
            seen += batch.index.tolist()
            held = strategy.recall(s, 1, env)
            assert set(held.index.tolist()) == set(seen[-12:])
            assert set(held.y.tolist()) <= {2, 3}


def test_one_place_for_each_task_is_enough_and_the_first_row_is_one_of_a_task(prepared):
    _, strategy, env = prepared(*TOY, "strategy.buffer_size=5")
    s = initial_state(strategy, env)
    assert len(strategy.recall(s, 0, env).y) == 0
    s.memory["buffer_index"][1] = 0
    assert strategy.recall(s, 1, env).index.tolist() == [0]


@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_there_is_one_constraint_for_each_previous_task(mid_run, tasks, monkeypatch):
    strategy, env, s, (batch, *_) = run(mid_run, tasks=tasks)
    received = []

    def watched(g, references, margin):
        received.extend([g, *references])
        return project_cone(g, references, margin)

    monkeypatch.setattr(gem, "project_cone", watched)
    with torch.no_grad():
        strategy.step(s, batch, env)
    assert len(received) == 1 + tasks
    for k, g in enumerate(received[1:]):
        held = strategy.recall(s, k, env)
        loss = F.cross_entropy(env.net(s.theta, held.x, held.task), held.y)
        expected = torch.autograd.grad(loss, env.flat.parameters)
        torch.testing.assert_close(g, torch.cat([e.flatten() for e in expected]))


@pytest.mark.parametrize("margin", [0, 0.5])
def test_no_step_raises_a_previous_task_s_loss_to_first_order(mid_run, margin):
    strategy, env, s, batches = run(mid_run, f"strategy.margin={margin}")
    conflicts = 0
    for batch in batches:
        loss = env.grad_and_value(strategy.loss)
        frozen = s._replace(theta=s.theta.detach().clone())
        g, _ = loss(frozen.theta, frozen, batch, env)
        G = torch.stack(
            [loss(frozen.theta, frozen, strategy.recall(s, k, env), env)[0] for k in range(3)]
        )
        with torch.no_grad():
            s, _ = strategy.step(s, batch, env)
        direction = (frozen.theta - s.theta) / 0.1
        s = env.commit(s)
        if bool((G @ g >= 0).all()):
            torch.testing.assert_close(direction, g, rtol=1e-3, atol=1e-5)
            continue
        conflicts += 1
        tolerance = 1e-4 * float(G.norm() * direction.norm())
        assert float((G @ direction).min()) >= -tolerance
    assert conflicts > 3


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_what_is_recalled_is_a_task_s_own(mid_run, scenario):
    """Its samples as it shows them, its label, and in task-IL its classes alone."""
    strategy, env, s, _ = run(mid_run, f"scenario={scenario}", "benchmark=permuted_digits")
    for k in range(3):
        held = strategy.recall(s, k, env)
        assert bool((held.task == k).all())
        assert torch.equal(held.y, env.stream.labels(held.index, k))
        shown = env.stream.normalise(env.stream.images(held.index, k))
        assert torch.equal(held.x, shown)
        if scenario == "task":
            assert torch.equal(held.active, env.own_classes[k].expand(len(held.y), -1))
        else:
            assert held.active is None


def test_gradients_that_are_not_finite_are_said_to_diverge(prepared):
    """After the first task a program is solved, whose solver would complain in its own words."""
    _, strategy, env = prepared(*TOY, "training.iterations=5")
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    s = env.commit(s._replace(theta=torch.full_like(s.theta, torch.nan)))
    with pytest.raises(Diverged, match=r"task 2 at step 1"):
        train_task(strategy, s, env.stream[1], env)


def test_too_small_a_memory_is_refused(prepared):
    with pytest.raises(UserError, match="at least one place for each of 5 tasks"):
        prepared(*TOY, "strategy.buffer_size=4")
