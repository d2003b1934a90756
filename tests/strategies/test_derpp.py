"""DER++: the loss by hand."""

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


def test_derpp_adds_cross_entropy_on_a_draw_of_its_own(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, "strategy=derpp", "strategy.beta=0.3", tasks=2)
    first, second = strategy.replay(s, batch, env), strategy.replay(s, batch, env, "_labels")
    assert set(first.index.tolist()) != set(second.index.tolist())
    loss, _ = strategy.loss(s.theta, s, batch, env)
    without, _ = type(strategy).__mro__[1].loss(strategy, s.theta, s, batch, env)
    labelled = F.cross_entropy(env.net(s.theta, second.x, second.task), second.y)
    torch.testing.assert_close(loss - without, 0.3 * labelled)
