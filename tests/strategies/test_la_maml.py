"""La-MAML against algorithm 2 in plain Python, by autograd through the inner steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from cl_runner.errors import UserError
from cl_runner.running.messages import notes

TOY = (
    *("benchmark=split_digits", "strategy=la_maml", "model.hidden_sizes=[5]"),
    *("strategy.buffer_size=9", "strategy.replay_batch_size=4", "strategy.inner_steps=3"),
    *("training.batch_size=8", "benchmark.train_samples=200"),
)


def by_hand(strategy, env, s, batch):
    """theta and alpha after a step; the fast weights are a graph of both, the g_i constants."""
    theta = s.theta.detach().clone().requires_grad_()
    alpha = s.memory["rates"].clone().requires_grad_()

    def mean_loss(weights, x, y):
        logits = functional_call(env.flat.module, env.flat.views(weights), (x, None))
        return F.cross_entropy(logits, y)

    replay = strategy.draw(s, batch, env)
    there = replay.weight > 0
    x = torch.cat([batch.x, replay.x[there]])
    y = torch.cat([batch.y, replay.y[there]])
    fast, losses = theta, []
    for part in torch.arange(len(batch.y)).split(3):  # 8 samples in 3 parts: 3, 3 and 2
        at = fast.detach().requires_grad_()
        (g,) = torch.autograd.grad(mean_loss(at, batch.x[part], batch.y[part]), at)
        fast = fast - g * F.relu(alpha)
        losses.append(mean_loss(fast, x, y))
    (sum(losses) / 3).backward()
    torch.nn.utils.clip_grad_norm_([theta], strategy.clip_norm)
    torch.nn.utils.clip_grad_norm_([alpha], strategy.clip_norm)
    with torch.no_grad():
        new = alpha - strategy.alpha_lr * alpha.grad
        if strategy.variant == "c_maml":
            new = alpha
        rate = F.relu(new) if strategy.variant == "la_maml" else env.optimizer.lr
        return theta - rate * theta.grad, new


@pytest.mark.parametrize("variant", ["la_maml", "sync", "c_maml"])
@pytest.mark.parametrize("clip", [2.0, 0.01])
def test_it_is_algorithm_2(mid_run, variant, clip):
    own = (f"strategy.variant={variant}", f"strategy.clip_norm={clip}", "strategy.alpha_init=0.002")
    own += ("strategy.alpha_lr=0.3",)
    strategy, env, s, batches = mid_run(*TOY, *own, tasks=1)
    for batch in batches[:3]:
        theta, alpha = by_hand(strategy, env, s, batch)
        with torch.no_grad():
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
        torch.testing.assert_close(s.theta.detach(), theta.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(s.memory["rates"], alpha.detach(), rtol=1e-4, atol=1e-6)
    if variant != "c_maml" and clip == 2:  # so that relu has something to do
        assert bool((alpha < 0).any() & (alpha > 0.002).any())


def test_it_says_that_the_optimizer_has_no_part(prepared):
    for variant, said in (("la_maml", 1), ("sync", 0)):
        own = (*TOY, f"strategy.variant={variant}")
        _, strategy, env = prepared(*own)
        lines = list(notes(strategy, env))
        assert sum("optimizer.* has no part in it" in line for line in lines) == said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.variant=maml",), "strategy.variant must be one of la_maml, sync, c_maml"),
        (("strategy.inner_steps=0",), "strategy.inner_steps must be at least 1"),
        (("strategy.alpha_init=0",), "strategy.alpha_init must be positive"),
        (("strategy.alpha_lr=-1",), "strategy.alpha_lr must be at least 0"),
        (("strategy.clip_norm=0",), "strategy.clip_norm must be positive"),
        (("model=reduced_resnet18", "model.width=2"), "needs a model without BatchNorm"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    toy = [t for t in TOY if "hidden_sizes" not in t] if len(overrides) > 1 else TOY
    with pytest.raises(UserError, match=message):
        prepared(*toy, *overrides)
