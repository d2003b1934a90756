"""ER-ACE: the loss by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

TOY = (
    "benchmark=split_digits",
    "strategy.buffer_size=40",
    "strategy.replay_batch_size=10",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("held", [40, 3])
def test_er_ace_scores_incoming_samples_on_their_own_classes_only(
    mid_run, holding, replanned, scenario, held
):
    """And replayed ones over their own task's outputs; of a buffer with few samples, those few."""
    own = ("strategy=er_ace", f"scenario={scenario}")
    strategy, env, s, (batch, *_) = mid_run(*TOY, *own, tasks=2)
    s = holding(s, held)
    batch = replanned(strategy, s, batch, env)
    replay = strategy.draw(s, batch, env)
    both = strategy.join(s, batch, replay)
    loss, aux = strategy.loss(s.theta, s, both, env)
    present = batch.y.unique()
    assert present.tolist() == [4, 5]
    new = env.net(s.theta, batch.x, batch.task)[:, present]
    expected = F.cross_entropy(new, torch.searchsorted(present, batch.y))
    filled = replay.weight > 0
    old = env.net(s.theta, replay.x, replay.task)
    if scenario == "task":
        old = old.masked_fill(~env.own_classes[replay.task], -torch.inf)
    expected = expected + F.cross_entropy(old[filled], replay.y[filled])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(aux["logits"], env.net(s.theta, both.x, both.task))
