"""ER-ACE: the loss by hand."""

from __future__ import annotations

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


def test_er_ace_scores_incoming_samples_on_their_own_classes_only(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, "strategy=er_ace", tasks=2)
    replay = strategy.replay(s, batch, env)
    both = strategy.join(s, batch, replay)
    loss, _ = strategy.loss(s.theta, s, both, env)
    present = batch.y.unique()
    assert present.tolist() == [4, 5]
    new = env.net(s.theta, batch.x, batch.task)[:, present]
    expected = F.cross_entropy(new, torch.searchsorted(present, batch.y))
    expected = expected + F.cross_entropy(env.net(s.theta, replay.x, replay.task), replay.y)
    torch.testing.assert_close(loss, expected)
