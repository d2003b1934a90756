"""L2: EWC with every importance 1."""

from __future__ import annotations

import torch

from cl_runner.core import generator_for
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.naive import Naive

TOY = ("benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2", "strategy=l2")


def test_the_penalty_is_half_the_squared_distance_to_the_last_tasks_weights(prepared):
    _, strategy, env = prepared(*TOY, "strategy.lambda=5")
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    anchor = s.theta.detach().clone()
    noise = torch.randn(anchor.shape, generator=generator_for(env.device, 0, "test"))
    theta = anchor + 0.1 * noise
    batch = env.gather(env.stream[1].train[:8], 1, s.t)
    loss, _ = strategy.loss(theta, s, batch, env)
    plain, _ = Naive(name="naive").loss(theta, s, batch, env)
    torch.testing.assert_close(loss - plain, 5 / 2 * (0.1 * noise).square().sum())


def test_only_the_latest_weights_are_the_anchor(prepared):
    _, strategy, env = prepared(*TOY)
    s = initial_state(strategy, env)
    for task in env.stream[:3]:
        s = train_task(strategy, s, task, env)
    assert torch.equal(s.memory["anchor"], s.theta.detach())
    assert bool((s.memory["importance"] == 1).all())


def test_a_large_lambda_keeps_the_weights(prepared):
    moved = []
    for value in (0, 1, 9):
        _, strategy, env = prepared(*TOY, f"strategy.lambda={value}")
        s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
        start = s.theta.detach().clone()
        s = train_task(strategy, s, env.stream[1], env)
        moved.append(float((s.theta.detach() - start).norm()))
    assert moved[0] > moved[1] > moved[2] and moved[2] < moved[0] / 2
