"""Naive fine-tuning is what anyone would write: the whole run against a loop by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cl_runner.running.tasks import initial_state, train_task
from cl_runner.training.batches import Source


def test_a_task_is_plain_gradient_descent_on_the_mean_cross_entropy(prepared):
    options = ("benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2")
    _, strategy, env = prepared(*options, "strategy=naive", "optimizer.lr=0.1")
    s = initial_state(strategy, env)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10)
    )
    with torch.no_grad():
        for mine, start in zip(network.parameters(), env.flat.views(s.theta).values(), strict=True):
            mine.copy_(start)
    source = Source(env, s, 0, env.stream[0].train, 0, strategy)
    steps = -(-len(env.stream[0].train) // 128)
    for epoch in (0, 1):
        for batch in source.epoch(epoch, steps):
            network.zero_grad()
            F.cross_entropy(network(batch.x), batch.y).backward()
            with torch.no_grad():
                for p in network.parameters():
                    p.sub_(0.1 * p.grad)
    s = train_task(strategy, s, env.stream[0], env)
    expected = torch.cat([p.detach().flatten() for p in network.parameters()])
    torch.testing.assert_close(s.theta.detach(), expected, rtol=1e-5, atol=1e-6)
