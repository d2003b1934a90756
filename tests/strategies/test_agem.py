"""A-GEM: whose gradient the reference is, and that the step keeps the constraint."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError

TOY = (
    "strategy=agem",
    "benchmark=split_digits",
    "strategy.buffer_size=60",
    "strategy.replay_batch_size=20",
    "model.hidden_sizes=[24]",
    "optimizer.lr=0.1",
    "training.batch_size=16",
    "training.epochs=1",
)
POLICIES = ("reservoir", "ring", "class_balanced")


def run(mid_run, *overrides: str, tasks: int = 2):
    """The state after some tasks, and the first batches of the next."""
    strategy, env, s, batches = mid_run(*TOY, *overrides, tasks=tasks)
    return strategy, env, s, batches[:15]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_reference_is_drawn_from_previous_tasks_only(mid_run, policy):
    strategy, env, s, batches = run(mid_run, f"strategy.policy={policy}")
    drawn: set[int] = set()
    with torch.no_grad():
        for batch in batches:
            replay = strategy.draw(s, batch, env)
            filled = replay.weight > 0
            assert int(filled.sum()) == 20
            assert set(replay.task[filled].tolist()) <= {0, 1}
            drawn |= set(replay.index[filled].tolist())
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    if policy == "reservoir":  # which by now holds samples of this task
        assert bool((s.memory["buffer_task"] == 2).any())
    assert len(drawn) > 20  # not one batch kept per task


@pytest.mark.parametrize("policy", POLICIES)
def test_in_the_first_task_there_is_no_reference(mid_run, policy):
    strategy, env, s, batches = run(mid_run, f"strategy.policy={policy}", tasks=0)
    with torch.no_grad():
        for batch in batches:
            assert not strategy.draw(s, batch, env).weight.any()
            before = s.theta.detach().clone()
            g, _ = env.grad_and_value(strategy.loss)(before, s, batch, env)
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
            torch.testing.assert_close(s.theta.detach(), before - 0.1 * g)


def test_the_step_is_along_equation_11(mid_run):
    strategy, env, s, batches = run(mid_run)

    def gradient(batch):
        loss = F.cross_entropy(env.net(s.theta, batch.x, batch.task), batch.y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, env.flat.parameters)])

    conflicts = 0
    for batch in batches:
        g, g_ref = gradient(batch), gradient(strategy.draw(s, batch, env))
        expected = g
        if g @ g_ref < 0:
            conflicts += 1
            expected = g - (g @ g_ref) / (g_ref @ g_ref) * g_ref
        with torch.no_grad():
            after, _ = strategy.step(s, batch, env)
        moved = s.theta.detach() - after.theta
        torch.testing.assert_close(moved, 0.1 * expected, rtol=1e-4, atol=1e-6)
        assert float(moved @ g_ref) >= -1e-5
        s = env.commit(after)
    assert conflicts > 3


def test_weighting_is_refused(prepared):
    with pytest.raises(UserError, match=r"strategy\.weighting has no meaning for strategy=agem"):
        prepared(*TOY, "strategy.weighting=task_share")
