"""Supervised contrastive replay: the loss by loops, the second view, the nearest mean."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from cl_runner.core import Batch
from cl_runner.data.augment import shift
from cl_runner.functional.losses import supervised_contrastive
from cl_runner.running.tasks import initial_state

TOY = (
    "strategy=scr",
    "benchmark=split_digits",
    "benchmark.train_samples=200",
    "strategy.buffer_size=20",
    "strategy.replay_batch_size=6",
    "model.hidden_sizes=[12]",
    "training.batch_size=8",
    "training.epochs=1",
)


def by_loops(z: torch.Tensor, y: list[int], temperature: float) -> list[float | None]:
    """The loss of each sample, compared with all others; None: there is no other of its class."""
    losses: list[float | None] = []
    for i, own in enumerate(y):
        others = [a for a in range(len(y)) if a != i]
        total = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in others)
        same = [p for p in others if y[p] == own]
        terms = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / total) for p in same]
        losses.append(-sum(terms) / len(terms) if terms else None)
    return losses


def test_the_contrastive_loss_by_loops():
    z = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))
    y = torch.tensor([0, 1, 0, 2, 1, 1, 0])
    among = ~torch.eye(7, dtype=torch.bool)
    losses, some = supervised_contrastive(z, z, y[:, None] == y, among, 0.3)
    expected = by_loops(z, y.tolist(), 0.3)
    assert some.tolist() == [value is not None for value in expected]
    torch.testing.assert_close(losses, torch.tensor([value or 0.0 for value in expected]))


@pytest.mark.parametrize("held", [20, 2])
def test_the_loss_is_the_mean_over_both_views_of_what_is_there(mid_run, holding, replanned, held):
    """Of a buffer with few samples, those few."""
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=2)
    s = holding(s, held)
    batch = replanned(strategy, s, batch, env)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, aux = strategy.loss(s.theta, s, both, env)
    assert aux == {}
    there = both.weight > 0
    assert int(there.sum()) == 8 + min(6, held)
    views = torch.cat([both.x[there], strategy.second_view(both, env)[there]])
    z = F.normalize(env.net(s.theta, views, both.task)).detach()
    assert z.shape == (2 * int(there.sum()), 128)
    expected = by_loops(z, both.y[there].repeat(2).tolist(), 0.07)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def batch_of(env, uniform: torch.Tensor) -> Batch:
    batch = env.gather(env.stream[0].train[: len(uniform)], 0, torch.tensor(0))
    batch.noise["view"] = uniform
    return batch


def test_the_second_view_of_an_image_is_shifted(prepared):
    _, strategy, env = prepared(*TOY)
    assert strategy.noise(8, env)["view"] == (8 + 6, 3)
    batch = batch_of(env, torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.5, 0.0]]))
    view = strategy.second_view(batch, env)
    assert torch.equal(view[0], batch.x[0])
    assert torch.equal(view[1, :, :-1], batch.x[1, :, 1:]) and not view[1, :, -1].any()


def test_an_image_is_shifted_before_its_task_permutes_it(prepared):
    _, strategy, env = prepared(*TOY, "benchmark=permuted_digits")
    index, uniform = env.stream[1].train[:2], torch.tensor([[0.9, 0.5, 0.0], [0.1, 0.9, 0.0]])
    batch = env.gather(index, 1, torch.tensor(1))
    batch.noise["view"] = uniform
    moved = env.stream.transform(shift(env.stream.x[index], uniform), 1, env.stream.tables)
    assert torch.equal(strategy.second_view(batch, env), env.inputs(moved))
    assert not torch.equal(moved, shift(env.stream.images(index, 1), uniform))


def test_the_second_view_of_a_run_that_augments_is_another_draw(prepared):
    _, strategy, env = prepared(*TOY, "training.augment=crop_flip")
    uniform = torch.tensor([[0.2, 0.7, 0.3]])
    batch = batch_of(env, uniform)
    shown = env.inputs(env.stream.images(batch.index, 0), uniform)
    assert torch.equal(strategy.second_view(batch, env), shown)
    assert not torch.equal(shown, batch.x)


def test_the_second_view_of_features_has_some_of_another_sample(prepared):
    _, strategy, env = prepared(*TOY)
    env.stream = dataclasses.replace(env.stream, x=env.stream.x.view(-1, 1, 1, 64))
    env.input_shape = (1, 1, 64)
    assert strategy.noise(8, env)["view"] == (8 + 6, 64)
    uniform = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    batch = batch_of(env, uniform)
    view = strategy.second_view(batch, env)
    for i in range(3):
        before = batch.x[i - 1]
        taken = (uniform[i] < 0.3).view_as(before)
        assert torch.equal(view[i], torch.where(taken, before, batch.x[i]))


def test_a_sample_is_of_the_class_whose_mean_is_nearest(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=2)
    env.flat.module.eval()
    index, task = s.memory["buffer_index"], s.memory["buffer_task"]
    held = env.gather(index, task, s.t)
    f = F.normalize(env.net(s.theta, held.x, held.task, last=-1)).detach()
    g = F.normalize(env.net(s.theta, batch.x, batch.task, last=-1)).detach()
    scores = strategy.predict(s, batch.x, 2, env)
    there = held.y.unique().tolist()
    assert 2 <= len(there) <= 4
    for c in range(10):
        if c in there:
            mean = F.normalize(f[held.y == c].mean(0), dim=0)
            torch.testing.assert_close(scores[:, c], -(g - mean).square().sum(1))
        else:
            assert bool((scores[:, c] < -4).all())


def test_before_any_training_no_class_is_preferred_and_nothing_fails(prepared):
    _, strategy, env = prepared(*TOY)
    s = initial_state(strategy, env)
    batch = env.gather(env.stream[0].train[:4], 0, s.t)
    assert strategy.predict(s, batch.x, 0, env).unique().tolist() == [-5.0]
