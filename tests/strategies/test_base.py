"""What strategies have in common: the loss, and the prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F

TOY = ("strategy=naive", "benchmark=split_digits", "model.hidden_sizes=[8]")


def test_the_loss_is_the_weighted_mean_over_the_active_outputs(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, "scenario=task", tasks=1)
    logits = env.net(s.theta, batch.x, batch.task)
    losses = F.cross_entropy(logits[:, 2:4], batch.y - 2, reduction="none")
    loss, aux = strategy.loss(s.theta, s, batch, env)
    torch.testing.assert_close(loss, losses.mean())
    torch.testing.assert_close(aux["logits"], logits)
    weight = torch.linspace(0, 1, len(losses))
    loss, _ = strategy.loss(s.theta, s, batch._replace(weight=weight), env)
    torch.testing.assert_close(loss, (weight * losses).sum() / weight.sum())


def test_the_network_is_asked_with_the_task_of_each_input(mid_run, monkeypatch):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=1)
    asked = []
    monkeypatch.setattr(env, "net", lambda *given: asked.append(given) or torch.zeros(8, 10))
    strategy.predict(s, batch.x[:8], 3, env)
    (theta, x, task), *_ = asked
    assert theta is s.theta and torch.equal(x, batch.x[:8])
    assert task.tolist() == [3] * 8
    strategy.loss(s.theta, s, batch._replace(y=batch.y[:8] * 0, active=None, weight=None), env)
    assert torch.equal(asked[1][2], batch.task)
