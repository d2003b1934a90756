"""DER++: the loss by hand."""

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
def test_derpp_adds_cross_entropy_on_a_draw_of_its_own(mid_run, holding, replanned, scenario, held):
    """Over the outputs of the samples' own tasks; of a buffer with few samples, over those."""
    own = ("strategy=derpp", "strategy.beta=0.3", f"scenario={scenario}")
    strategy, env, s, (batch, *_) = mid_run(*TOY, *own, tasks=2)
    s = holding(s, held)
    batch = replanned(strategy, s, batch, env)
    first, second = strategy.draw(s, batch, env), strategy.draw(s, batch, env, "_labels")
    if held == 40:
        assert set(first.index.tolist()) != set(second.index.tolist())
    loss, _ = strategy.loss(s.theta, s, batch, env)
    without, _ = type(strategy).__mro__[1].loss(strategy, s.theta, s, batch, env)
    filled = second.weight > 0
    assert int(filled.sum()) == min(held, 10)
    logits = env.net(s.theta, second.x, second.task)
    if scenario == "task":
        logits = logits.masked_fill(~env.own_classes[second.task], -torch.inf)
    labelled = F.cross_entropy(logits[filled], second.y[filled])
    torch.testing.assert_close(loss - without, 0.3 * labelled)
