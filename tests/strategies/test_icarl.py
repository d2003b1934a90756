"""iCaRL: what it trains on, the loss by hand, and the nearest mean by hand.

That its exemplars are those of algorithms 4 and 5 is tested with ER's, in test_er.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.running.evaluation import evaluate
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.icarl import exemplars
from cl_runner.training.batches import Source

TOY = (
    "strategy=icarl",
    "benchmark=split_digits",
    "strategy.buffer_size=47",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)


def filled(s) -> torch.Tensor:
    return s.memory["buffer_index"] >= 0


def test_the_exemplars_enter_the_training_set_with_their_own_task(mid_run):
    """van de Ven's issue 2: without them the accuracy fell from 94.6 to 72.8."""
    strategy, env, s, _ = mid_run(*TOY, tasks=2)
    index, tasks = strategy.training_set(s, env.stream, 2, env)
    exemplars = s.memory["buffer_index"][filled(s)].tolist()
    assert len(exemplars) == 4 * (47 // 4)
    assert index.tolist() == env.stream[2].train.tolist() + exemplars
    assert tasks[-len(exemplars) :].tolist() == s.memory["buffer_task"][filled(s)].tolist()
    source = Source(env, s, 2, index, tasks, strategy)
    batches = list(source.epoch(0, -(-len(index) // 16)))
    seen = {int(i): int(y) for b in batches for i, y in zip(b.index, b.y, strict=True)}
    assert {row: seen[row] for row in exemplars} == {
        row: int(env.stream.y[row]) for row in exemplars
    }


def test_a_run_trains_on_the_exemplars(prepared):
    """Their images change what the next task makes of the weights."""

    def weights(blank: bool) -> torch.Tensor:
        _, strategy, env = prepared(*TOY)
        s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
        if blank:
            env.stream.x[s.memory["buffer_index"][filled(s)]] = 0
        return train_task(strategy, s, env.stream[1], env).theta.detach().clone()

    assert not torch.allclose(weights(blank=True), weights(blank=False))


@pytest.mark.parametrize("active", ["all", "seen"])
@pytest.mark.parametrize(("tasks", "temperature"), [(0, 1.0), (2, 1.0), (2, 2.0)])
def test_the_loss_is_algorithm_3_by_hand(mid_run, active, tasks, temperature):
    own = (f"training.active_classes={active}", f"strategy.temperature={temperature}")
    strategy, env, s, _ = mid_run(*TOY, *own, tasks=tasks)
    old = s.theta.detach().clone()
    s = strategy.begin_task(s, env.stream[tasks], env)
    index, own = strategy.training_set(s, env.stream, tasks, env)
    index, own = index[-20:], own[-20:]  # new samples and exemplars
    batch = env.gather(index, own, s.t)
    theta = old * 1.1  # the network has moved on
    loss, _ = strategy.loss(theta, s, batch, env)
    g = env.net(theta, batch.x, batch.task).sigmoid().double()
    q = (env.net(old, batch.x, batch.task).double() / temperature).sigmoid()
    total = 0.0
    for i, label in enumerate(batch.y.tolist()):
        for y in range(2 * tasks + 2):  # no term for classes not seen yet
            target = float(q[i, y]) if y < 2 * tasks else float(y == label)
            total -= target * math.log(g[i, y]) + (1 - target) * math.log(1 - g[i, y])
    torch.testing.assert_close(float(loss), total / 20, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_the_samples_with_weight(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=1)
    weight = torch.tensor([1.0] * 6 + [0.0] * 10)
    part, aux = strategy.loss(s.theta, s, batch._replace(weight=weight), env)
    six = env.gather(batch.index[:6], 1, s.t)
    torch.testing.assert_close(part, strategy.loss(s.theta, s, six, env)[0])
    torch.testing.assert_close(aux["logits"], env.net(s.theta, batch.x, batch.task))


def test_a_task_is_distilled_from_the_network_at_its_beginning(mid_run):
    strategy, env, s, batches = mid_run(*TOY, tasks=1)
    s = strategy.begin_task(s, env.stream[1], env)
    before = s.theta.detach().clone()
    with torch.no_grad():
        for batch in batches[:3]:
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    assert torch.equal(s.memory["old"], before)
    assert not torch.equal(s.theta.detach(), before)


def test_the_old_network_answers_in_evaluation_mode(mid_run):
    """Without dropout, whatever the generator of the step that the new network draws from."""
    strategy, env, s, (batch, *_) = mid_run(*TOY, "model.dropout=0.5", tasks=1)
    s = strategy.begin_task(s, env.stream[1], env)
    env.net = lambda *_: torch.ones(len(batch.y), 10)  # the new one's part
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(strategy.loss(s.theta, s, batch, env)[0])
    assert torch.equal(*losses)


def test_the_old_network_has_the_batchnorm_statistics_of_its_time(mid_run):
    toy = [o for o in TOY if not o.startswith(("model", "training.epochs"))]
    own = ("model=resnet18", "model.width=2", "training.iterations=3")
    strategy, env, s, (batch, *_) = mid_run(*toy, *own, tasks=1)
    s = strategy.begin_task(s, env.stream[1], env)
    env.flat.module.eval()
    then = env.net(s.theta, batch.x, batch.task).detach()
    env.flat.module.train()
    with torch.no_grad():
        for value in s.buffers.values():
            value.add_(1)  # the new network's, in training
        env.net = lambda *_: torch.ones_like(then)
        loss, _ = strategy.loss(s.theta, s, batch, env)
    target = then.sigmoid()[:, :2], F.one_hot(batch.y, 10)[:, 2:4].float()
    expected = F.binary_cross_entropy_with_logits(torch.ones(len(then), 4), torch.cat(target, 1))
    torch.testing.assert_close(loss, 4 * expected)


def test_the_class_is_that_of_the_nearest_mean_of_exemplars(mid_run):
    strategy, env, s, _ = mid_run(*TOY, tasks=3)

    def features(x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(env.flat.module.layers[0](x.flatten(1)))
        return hidden / hidden.norm(dim=1, keepdim=True)

    images, _ = env.stream.held_out("test", env.stream[1])
    x = env.stream.normalise(images[:40])
    with torch.no_grad():
        scores = strategy.predict(s, x, 1, env)
        expected = torch.zeros(40, 6)
        for label in range(6):
            rows = [i for i in s.memory["buffer_index"][filled(s)] if env.stream.y[i] == label]
            mean = features(env.stream.normalise(env.stream.x[torch.stack(rows)])).mean(0)
            mean = mean / mean.norm()
            expected[:, label] = -((features(x) - mean) ** 2).sum(1)
    torch.testing.assert_close(scores[:, :6], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", ["[24]", "[24,16]"])
def test_classes_without_exemplars_come_last_in_the_order_of_the_outputs(mid_run, sizes):
    strategy, env, s, _ = mid_run(*TOY, f"model.hidden_sizes={sizes}", tasks=2)
    x = env.stream.normalise(env.stream.held_out("test", env.stream[4])[0][:50])
    with torch.no_grad():
        scores, outputs = strategy.predict(s, x, 4, env), env.net(s.theta, x, torch.tensor(4))
    assert bool(torch.isfinite(scores).all())
    assert bool((scores[:, :4].min(1).values > scores[:, 4:].max(1).values).all())
    assert torch.equal(scores[:, 4:].argsort(1), outputs[:, 4:].argsort(1))


def test_before_the_first_task_the_network_answers(prepared):
    _, strategy, env = prepared(*TOY)
    _, naive, other = prepared(*TOY[1:2], *TOY[3:], "strategy=naive")
    mine = evaluate(strategy, initial_state(strategy, env), env)
    assert mine == evaluate(naive, initial_state(naive, other), other)


def test_one_exemplar_for_each_class_is_enough_and_the_first_row_may_be_one(prepared):
    _, strategy, env = prepared(*TOY, "strategy.buffer_size=10")
    s = initial_state(strategy, env)
    assert [len(part) for part in exemplars(s)] == [0, 0]
    s.memory["buffer_index"][1] = 0
    assert exemplars(s)[0].tolist() == [0]


def test_a_network_without_features_is_refused(prepared, monkeypatch):
    _, strategy, env = prepared(*TOY)
    monkeypatch.setattr(env.flat, "module", torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="strategy=icarl needs the features before the output"):
        strategy.init(env.flat.theta.detach(), env)


@pytest.mark.parametrize("model", ["model.hidden_sizes=[]", "model=cnn"])
def test_any_network_with_an_output_layer_has_features(prepared, model):
    toy = [override for override in TOY if not override.startswith("model")]
    _, strategy, env = prepared(*toy, model)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    known = s.memory["means"].norm(dim=1)
    torch.testing.assert_close(known, torch.tensor([1.0] * 2 + [0.0] * 8))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.buffer_size=9", "at least one exemplar for each of 10 classes"),
        ("strategy.temperature=0", "strategy.temperature must be above 0, got 0"),
        ("strategy.per_class=5", "per_class=5 takes the place of strategy.buffer_size=47"),
        ("strategy.buffer_size=0", "strategy.buffer_size must lie between 1 and 1000000, got 0"),
        (
            "training.active_classes=current",
            "training.active_classes=current does not go with strategy=icarl",
        ),
    ],
)
def test_what_cannot_be_is_refused(prepared, override, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, override)
