"""Synaptic intelligence: the path integral and the importance that follows from it."""

from __future__ import annotations

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task
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
    path = torch.linspace(-1, 1, len(s.theta))
    s = s._replace(memory=s.memory | {"path": path.clone()})
    moved = s.theta.detach() - first.theta
    end = strategy.end_task(s, env.stream[0], env)
    expected = (path.clamp_min(0) if clip == "true" else path) / (moved**2 + 0.5)
    torch.testing.assert_close(end.memory["importance"], expected)
    assert torch.equal(end.memory["anchor"], s.theta.detach())
    assert not end.memory["path"].any()


@pytest.mark.parametrize("gradient", ["task", "total"])
def test_the_gradient_is_without_the_penalty_unless_asked(prepared, gradient):
    strategy, env, _, s, _, batch = steps(
        prepared, 5, f"strategy.gradient={gradient}", "strategy.lambda=3", "strategy.penalty=loss"
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
    strategy, env, _, s, _, batch = steps(prepared, 5, "strategy.lambda=3", "strategy.penalty=loss")
    importance = torch.rand_like(s.memory["anchor"])
    s = s._replace(theta=s.theta.detach() + 0.1, memory=s.memory | {"importance": importance})
    grad, _ = env.grad_and_value(papers_loss)(s.theta, s, batch, env)
    after, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(after.theta, s.theta - 0.01 * grad, rtol=1e-5, atol=1e-7)


def test_the_importance_of_the_tasks_adds_up(prepared):
    _, strategy, env = prepared(*TOY, "benchmark.num_tasks=3", "strategy.damping=0.5")
    s = initial_state(strategy, env)
    total, gained = torch.zeros_like(s.theta, requires_grad=False), []
    for task in env.stream:
        watched = Watched(strategy)
        s = train_task(watched, s, task, env)
        path, moved = watched.end
        gained.append(path.clamp_min(0) / (moved.square() + 0.5))
        total += gained[-1]
        torch.testing.assert_close(s.memory["importance"], total)
    assert all(float(g.sum()) > 0.1 * float(total.sum()) for g in gained)


class Watched:
    """A strategy that remembers path and move of a task when it ends."""

    def __init__(self, strategy) -> None:
        self.strategy = strategy

    def __getattr__(self, name):
        return getattr(self.strategy, name)

    def end_task(self, s, task, env):
        self.end = s.memory["path"].clone(), s.theta.detach() - s.memory["anchor"]
        return self.strategy.end_task(s, task, env)


def test_the_proximal_step_is_the_closed_form_and_part_of_the_path(prepared):
    """argmin_z |z - theta'|^2 / (2 lr) + c sum Omega (z - theta*)^2, theta' after SGD."""
    strategy, env, _, s, _, batch = steps(prepared, 5, "strategy.lambda=30")
    Omega, anchor = torch.rand_like(s.memory["anchor"]), s.memory["anchor"]
    memory = s.memory | {"importance": Omega, "path": torch.zeros_like(anchor)}
    s = s._replace(theta=s.theta.detach() + 0.1, memory=memory)
    grad, _ = env.grad_and_value(Naive(name="naive").loss)(s.theta, s, batch, env)
    moved, pull = s.theta - 0.01 * grad, 2 * 0.01 * 30 * Omega
    after, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(after.theta, (moved + pull * anchor) / (1 + pull))
    torch.testing.assert_close(after.memory["path"], -grad * (after.theta - s.theta))
    assert float((after.theta - moved).norm()) > 0.1 * float((0.01 * grad).norm())


def test_the_total_gradient_needs_the_penalty_in_the_loss(prepared):
    with pytest.raises(UserError, match=r"gradient=total needs strategy.penalty=loss"):
        prepared("strategy=si", "strategy.gradient=total")
