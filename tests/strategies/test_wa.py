"""Weight aligning: the loss by hand, the clipped output layer, and the alignment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.outputs import output_units, with_output_units
from cl_runner.strategies.wa import WA

TOY = (
    "strategy=wa",
    "benchmark=split_digits",
    "benchmark.train_samples=300",
    "strategy.buffer_size=40",
    "strategy.replay_batch_size=10",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)


def test_the_loss_by_hand(mid_run):
    """Cross-entropy over 6 classes seen, and 4 / 6 of the distillation over the 4 old ones."""
    more = ("strategy.lambda=0.7", "strategy.temperature=3")
    strategy, env, s, (batch, *_) = mid_run(*TOY, *more, tasks=2)
    s = strategy.begin_task(s, env.stream[2], env)
    old, theta = s.memory["old"].clone(), s.theta.detach() * 1.2
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, aux = strategy.loss(theta, s, both, env)
    logits, z = (env.net(w, both.x, both.task) for w in (theta, old))
    expected = F.cross_entropy(logits[:, :6], both.y)
    p, log_q = (z[:, :4] / 3).softmax(1), (logits[:, :4] / 3).log_softmax(1)
    expected = expected - 0.7 * 4 / 6 * (p * log_q).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(aux["logits"], logits)
    assert set(both.y[-10:].tolist()) <= {0, 1, 2, 3} and both.y[:16].min() == 4


def test_the_first_task_has_nothing_to_keep(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=0)
    s = strategy.begin_task(s, env.stream[0], env)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, aux = strategy.loss(s.theta, s, both, env)
    torch.testing.assert_close(loss, F.cross_entropy(aux["logits"][:16, :2], batch.y))


def test_the_output_layer_stays_at_or_above_zero_and_has_no_biases(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=1)
    s = strategy.begin_task(s, env.stream[1], env)
    before = s.theta.detach().clone()
    with torch.no_grad():
        new, _ = strategy.step(s, batch, env)
        plain, _ = super(type(strategy), strategy).step(s, batch, env)
    units, free = (output_units(v.theta, env) for v in (new, plain))
    assert float(free[:, :-1].min()) < 0 and bool(free[:, -1].any())
    torch.testing.assert_close(units[:, :-1], free[:, :-1].clamp_min(0))
    assert not units[:, -1].any()
    below = len(before) - units.numel()
    assert torch.equal(new.theta[:below], plain.theta[:below])


@pytest.mark.parametrize(("length", "gamma"), [(4.0, 0.5), (1.0, 1.0)])
def test_new_weights_become_as_long_as_old_ones_or_stay(prepared, length, gamma):
    """Old units of length 2 in the mean, new ones of length 4 and 1."""
    _, strategy, env = prepared(*TOY)
    s = initial_state(strategy, env)
    units = F.normalize(torch.rand(10, 25, generator=torch.Generator().manual_seed(0)))
    units[:, -1] = 0
    units = F.normalize(units) * torch.tensor([1.0, 3.0] + [length] * 2 + [7.0] * 6)[:, None]
    s = s._replace(theta=with_output_units(s.theta.detach(), units, env), t=torch.ones_like(s.t))
    after = output_units(strategy.end_task(s, env.stream[1], env).theta, env)
    torch.testing.assert_close(after[2:4], gamma * units[2:4])
    assert torch.equal(after[:2], units[:2]) and torch.equal(after[4:], units[4:])


def test_classes_without_a_task_so_far_come_last(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=1)
    logits = strategy.predict(s, batch.x, 1, env)
    assert bool((logits[:, :4].amin(1) > logits[:, 4:].amax(1)).all())
    plain = env.net(s.theta, batch.x, batch.task)
    assert torch.equal(logits[:, :4], plain[:, :4])
    assert torch.equal(logits[:, 4:].argsort(1), plain[:, 4:].argsort(1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scenario=task", "strategy=wa"),
        ("training.active_classes=current", "training.active_classes must be all or seen"),
        ("benchmark.boundaries=fuzzy", "benchmark.boundaries=fuzzy does not go with strategy=wa"),
    ],
)
def test_what_cannot_be_is_refused(prepared, override, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, override)


@pytest.mark.slow
def test_aligned_it_keeps_more_where_old_samples_are_rare(after_each_task, monkeypatch):
    """What the paper claims: replay and distillation, with against without the alignment."""
    rare = ("optimizer=adam", "strategy.replay_batch_size=4", "training.epochs=10")
    more = ("benchmark.train_samples=400", "strategy.buffer_size=100")
    toy = [o for o in TOY if o.partition("=")[0] not in {"training.epochs", "model.hidden_sizes"}]
    acc = []
    for aligned in (True, False):
        if not aligned:
            monkeypatch.setattr(WA, "end_task", ER.end_task)
        _, _, rows = after_each_task(*toy, *rare, *more)
        acc.append(sum(rows[-1]) / 5)
    assert acc[0] > acc[1] + 0.05, acc
