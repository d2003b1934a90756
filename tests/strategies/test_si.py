"""Synaptic intelligence: the path integral and the importance that follows from it."""

from __future__ import annotations

import pytest
import torch

from cl_runner.engine import initial_state
from cl_runner.strategies.naive import Naive

TOY = (
    "strategy=si",
    "benchmark.num_tasks=2",
    "benchmark.train_samples=200",
    "model.hidden_sizes=[16]",
    "optimizer.lr=0.01",
)


def steps(prepared, number: int, *overrides: str):
    """Full-batch steps from the start: states before, after, losses, and the environment."""
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    batch = env.gather(env.stream[0].train, 0, s.t)
    first = s._replace(theta=s.theta.detach().clone())
    losses = []
    with torch.no_grad():
        for _ in range(number):
            s, aux = strategy.step(s, batch, env)
            losses.append(float(aux["loss"]))
            s = env.commit(s)
        losses.append(strategy.loss(s.theta, s, batch, env)[0].item())
    return strategy, env, first, s, losses, batch


def test_the_contributions_add_up_to_the_decrease_of_the_loss(prepared):
    """Equation 3: the sum over parameters of the path integral is the change of the loss."""
    _, _, _, s, losses, _ = steps(prepared, 300)
    assert losses[0] - losses[-1] > 0.1
    assert float(s.memory["path"].sum()) == pytest.approx(losses[0] - losses[-1], rel=0.02)


def test_one_step_of_gradient_descent_contributes_lr_times_the_squared_gradient(prepared):
    _, env, first, s, _, batch = steps(prepared, 1)
    grad, _ = env.grad_and_value(Naive(name="naive").loss)(first.theta, first, batch, env)
    torch.testing.assert_close(s.memory["path"], 0.01 * grad.square(), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("clip", ["true", "false"])
def test_importance_is_contribution_over_squared_distance(prepared, clip):
    strategy, env, first, s, _, _ = steps(
        prepared, 20, f"strategy.clip={clip}", "strategy.damping=0.5"
    )
    s = s._replace(memory=s.memory | {"path": s.memory["path"] - 1e-6})  # some below zero
    path = s.memory["path"].clone()
    moved = s.theta.detach() - first.theta
    end = strategy.end_task(s, env.stream[0], env)
    expected = (path.clamp_min(0) if clip == "true" else path) / (moved**2 + 0.5)
    torch.testing.assert_close(end.memory["importance"], expected)
    assert torch.equal(end.memory["anchor"], s.theta.detach())
    assert not end.memory["path"].any()


@pytest.mark.parametrize("gradient", ["task", "total"])
def test_the_gradient_is_without_the_penalty_unless_asked(prepared, gradient):
    strategy, env, _, s, _, batch = steps(
        prepared, 5, f"strategy.gradient={gradient}", "strategy.lambda=3"
    )
    memory = s.memory | {
        "importance": torch.rand_like(s.memory["anchor"]),
        "path": torch.zeros_like(s.memory["anchor"]),
    }
    s = s._replace(theta=s.theta.detach().clone(), memory=memory)
    loss = Naive(name="naive").loss if gradient == "task" else papers_loss
    grad, _ = env.grad_and_value(loss)(s.theta, s, batch, env)
    after, _ = strategy.step(s, batch, env)
    expected = -grad * (after.theta - s.theta)
    torch.testing.assert_close(after.memory["path"], expected, rtol=1e-3, atol=1e-7)


def papers_loss(theta, s, batch, env):
    """Equation 4, with c = 3."""
    loss, aux = Naive(name="naive").loss(theta, s, batch, env)
    distance = (theta - s.memory["anchor"]) ** 2
    return loss + 3 * (s.memory["importance"] * distance).sum(), aux


def test_the_step_is_along_the_gradient_of_the_papers_loss(prepared):
    """Without a half before the penalty."""
    strategy, env, _, s, _, batch = steps(prepared, 5, "strategy.lambda=3")
    importance = torch.rand_like(s.memory["anchor"])
    s = s._replace(theta=s.theta.detach() + 0.1, memory=s.memory | {"importance": importance})
    grad, _ = env.grad_and_value(papers_loss)(s.theta, s, batch, env)
    after, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(after.theta, s.theta - 0.01 * grad, rtol=1e-5, atol=1e-7)
