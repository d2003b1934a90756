"""LUCIR: the loss by hand, what is fixed, how new outputs begin; the layer of cosines."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.nn import by_hand
from cl_runner.nn.cosine import CosineLinear
from cl_runner.running.tasks import initial_state

TOY = (
    "strategy=lucir",
    "benchmark=split_digits",
    "benchmark.train_samples=300",
    "strategy.buffer_size=40",
    "strategy.replay_batch_size=10",
    "training.batch_size=16",
    "training.epochs=1",
)
MLP = ("model.hidden_sizes=[24]",)


def weights_of(theta: torch.Tensor, env) -> torch.Tensor:
    """The output layer's [10, D]."""
    return env.flat.views(theta)["layers.1.weight"]


def cosines(theta: torch.Tensor, features: torch.Tensor, env) -> torch.Tensor:
    weights = weights_of(theta, env)
    lengths = features.norm(dim=1)[:, None] * weights.norm(dim=1)
    return features @ weights.T / lengths


def test_the_loss_by_hand(mid_run):
    more = ("strategy.lambda=3", "strategy.margin=0.9", "strategy.negatives=1")
    strategy, env, s, (batch, *_) = mid_run(*TOY, *MLP, *more, tasks=2)
    s = strategy.begin_task(s, env.stream[2], env)
    old, theta = s.memory["old"].clone(), s.theta.detach() * 1.1 + 0.01
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, aux = strategy.loss(theta, s, both, env)
    f, before = (env.net(w, both.x, both.task, last=-1) for w in (theta, old))
    c = cosines(theta, f, env)
    eta = float(env.flat.views(theta)["layers.1.scale"])
    torch.testing.assert_close(aux["logits"], eta * c)
    expected = F.cross_entropy(eta * c[:, :6], both.y)
    expected += 3 * math.sqrt(4 / 2) * (1 - F.cosine_similarity(f, before)).mean()
    hard = [0.9 - c[i, both.y[i]] + c[i, 4:6].max() for i in range(16, 26)]  # the replayed ones
    expected += torch.stack(hard).clamp_min(0).mean()
    assert sum(float(h) > 0 for h in hard) > 1
    torch.testing.assert_close(loss, expected)


def test_its_gradient_is_the_same_by_both_ways_through_the_scale(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, *MLP, tasks=1)
    s = strategy.begin_task(s, env.stream[1], env)
    s = env.commit(s)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    live, _ = env.grad_and_value(strategy.loss)(s.theta, s, both, env)
    other, _ = env.grad_and_value(strategy.loss)(s.theta.detach().clone(), s, both, env)
    torch.testing.assert_close(live, other)


def test_old_weights_are_fixed_and_new_ones_begin_as_mean_directions(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, *MLP, tasks=1)
    before = weights_of(s.theta.detach(), env).clone()
    s = strategy.begin_task(s, env.stream[1], env)
    begun = weights_of(s.theta.detach(), env).clone()
    task, length = env.stream[1], before[:2].norm(dim=1).mean()
    every = env.gather(task.train, 1, s.t)
    for c in (2, 3):
        f = F.normalize(env.net(s.theta, every.x, every.task, last=-1)[every.y == c])
        torch.testing.assert_close(begun[c], (length * F.normalize(f.mean(0), dim=0)).detach())
    assert torch.equal(begun[:2], before[:2]) and torch.equal(begun[4:], before[4:])
    with torch.no_grad():
        new, _ = strategy.step(s, batch, env)
    after = weights_of(new.theta, env)
    assert torch.equal(after[:2], begun[:2])
    assert not torch.equal(after[2:4], begun[2:4])
    assert not torch.equal(new.theta[:100], s.theta.detach()[:100])


def test_the_first_task_learns_by_the_cross_entropy_alone(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, *MLP, tasks=0)
    s = strategy.begin_task(s, env.stream[0], env)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, aux = strategy.loss(s.theta, s, both, env)
    torch.testing.assert_close(loss, F.cross_entropy(aux["logits"][:16, :2], batch.y))


MODELS = [
    MLP,
    ("model.hidden_sizes=[]",),
    ("model=cnn", "model.channels=[2]", "model.hidden_size=8"),
    ("model=resnet18", "model.width=2"),
    ("model=resnet32", "model.width=2"),
]


@pytest.mark.parametrize("model", MODELS, ids=" ".join)
def test_every_network_has_its_outputs_replaced(prepared, model):
    _, strategy, env = prepared(*TOY, *model)
    *_, layer = (m for m in env.flat.module.modules() if isinstance(m, torch.nn.Linear))
    assert type(layer) is CosineLinear and layer.bias is None
    assert not by_hand.applies_to(env.flat.module)
    s = strategy.begin_task(initial_state(strategy, env), env.stream[0], env)
    batch = env.gather(env.stream[0].train[:4], 0, s.t, weight=torch.ones(4))
    loss, aux = strategy.loss(s.theta, s, batch, env)
    assert aux["logits"].shape == (4, 10) and bool((aux["logits"].abs() <= 10).all())
    assert bool(loss.isfinite())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scenario=task", "strategy=lucir"),
        ("training.active_classes=current", "training.active_classes must be all or seen"),
        ("benchmark.boundaries=fuzzy", "benchmark.boundaries=fuzzy does not go with"),
    ],
)
def test_what_cannot_be_is_refused(prepared, override, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, override)
