"""Latent replay: what is stored, what is replayed, and what stays as it is."""

from __future__ import annotations

import csv

import pytest
import torch
import torch.nn.functional as F

from cl_runner.core import concatenate
from cl_runner.errors import UserError
from cl_runner.running.loop import run
from cl_runner.running.tasks import train_task
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.latent_replay import lower_parameters

TOY = (
    "benchmark=split_digits",
    "strategy=latent_replay",
    "strategy.buffer_size=40",
    "strategy.replay_batch_size=10",
    "strategy.layer=2",
    "model.hidden_sizes=[24,12]",
    "training.batch_size=16",
    "training.epochs=1",
)


def lower_and_upper(env, s) -> tuple[torch.Tensor, torch.Tensor]:
    lower = torch.cat(
        [
            torch.full_like(v, n.startswith(("layers.0", "layers.1"))).flatten()
            for n, v in env.flat.views(s.theta.detach()).items()
        ]
    ).bool()
    theta = s.theta.detach().clone()
    return theta[lower], theta[~lower]


def test_what_is_stored_are_the_activations_of_the_network_at_the_time(mid_run):
    """Above a lower part that moves, they differ from those of the network now."""
    strategy, env, s, batches = mid_run(*TOY, "strategy.lower_lr_factor=1", tasks=1)
    of_the_first_task = set(s.memory["buffer_index"].tolist())
    seen, answers = int(s.memory["seen"].sum()), {}
    with torch.no_grad():
        for batch in batches[:8]:
            latent = env.net(s.theta, batch.x, batch.task, last=2).clone()
            answers |= dict(zip(batch.index.tolist(), latent, strict=True))
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
        held = [i for i in s.memory["buffer_index"].tolist() if i not in of_the_first_task]
        assert held and int(s.memory["seen"].sum()) == seen + 8 * 16
        places = [s.memory["buffer_index"].tolist().index(i) for i in held]
        stored = s.memory["buffer_latent"][places]
        torch.testing.assert_close(stored, torch.stack([answers[i] for i in held]))
        again = env.gather(torch.tensor(held), 1, s.t)
        assert not torch.allclose(env.net(s.theta, again.x, again.task, last=2), stored, atol=1e-3)


def test_what_is_replayed_is_what_was_stored(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=2)
    other = torch.rand(40, 12)
    s = s._replace(memory=s.memory | {"buffer_latent": other})
    loss, _ = strategy.loss(s.theta, s, batch, env)
    replay = strategy.draw(s, batch, env)
    latent = torch.cat([env.net(s.theta, batch.x, batch.task, last=2), other[replay.noise["slot"]]])
    logits = latent @ env.flat.module.layers[2].weight.T + env.flat.module.layers[2].bias
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.cat([batch.y, replay.y])))


@pytest.mark.parametrize("policy", ["reservoir", "ring", "class_balanced", "herding"])
@pytest.mark.parametrize("where", ["scenario=task", "benchmark=permuted_digits"])
def test_above_a_frozen_part_it_is_er(mid_run, policy, where):
    """The loss is that of the stored samples' inputs: of the first task's and of later ones'."""
    strategy, env, s, (batch, *_) = mid_run(
        *TOY,
        where,
        "benchmark.num_tasks=4",
        "benchmark.train_samples=400",
        f"strategy.policy={policy}",
        "strategy.weighting=task_share",
        "strategy.lower_lr_factor=0",
        tasks=3,
    )
    assert set(s.memory["buffer_task"].tolist()) == {0, 1, 2}
    loss, _ = strategy.loss(s.theta, s, batch, env)
    replay = strategy.draw(s, batch, env)
    new = batch._replace(weight=torch.full((16,), 1 / 4 / 16))
    both = concatenate(new, replay._replace(weight=torch.full((10,), 3 / 4 / 10)))
    expected, _ = super(type(strategy).__mro__[1], strategy).loss(s.theta, s, both, env)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "optimizer",
    [
        ("optimizer.momentum=0.9", "optimizer.weight_decay=0.1"),
        ("optimizer=adam", "optimizer.weight_decay=0.1"),
        ("optimizer=adamw", "optimizer.weight_decay=0.1"),
    ],
)
def test_the_lower_part_stays_what_the_first_task_made_of_it(mid_run, optimizer):
    strategy, env, s, _ = mid_run(*TOY, *optimizer, "strategy.lower_lr_factor=0", tasks=0)
    untrained, _ = lower_and_upper(env, s)
    s = train_task(strategy, s, env.stream[0], env)
    lower, upper = lower_and_upper(env, s)
    assert not torch.equal(lower, untrained)
    s = train_task(strategy, s, env.stream[1], env)
    later, moved = lower_and_upper(env, s)
    assert torch.equal(later, lower) and not torch.equal(moved, upper)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_factor_is_one_on_the_learning_rate_of_the_lower_part(mid_run, optimizer):
    """For Adam too, whose steps a factor on the gradient would leave as they are."""
    moves = {}
    for factor in (1.0, 0.25):
        strategy, env, s, (batch, *_) = mid_run(
            *TOY, f"optimizer={optimizer}", f"strategy.lower_lr_factor={factor}", tasks=0
        )
        s = s._replace(t=torch.ones_like(s.t))
        before = lower_and_upper(env, s)
        with torch.no_grad():
            new, _ = strategy.step(s, batch, env)
        after = lower_and_upper(env, new)
        moves[factor] = [a - b for a, b in zip(after, before, strict=True)]
        if factor == 1:
            plain, _ = Strategy.step(strategy, s, batch, env)
            torch.testing.assert_close(new.theta, plain.theta.detach())
    torch.testing.assert_close(moves[0.25][0], 0.25 * moves[1.0][0], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(moves[0.25][1], moves[1.0][1], rtol=0, atol=0)


def test_the_second_task_replays_what_is_held_of_the_first(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=1)
    assert strategy.draw(s, batch, env).weight.tolist() == [1.0] * 10


def test_places_without_activations_show_those_of_the_batch(mid_run, monkeypatch):
    """So that BatchNorm above the layer sees nothing else."""
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=0)
    passed, net = [], env.net

    def watched(theta, x, task, **where):
        passed.append((x, where))
        return net(theta, x, task, **where)

    monkeypatch.setattr(env, "net", watched)
    strategy.loss(s.theta, s, batch, env)
    (x, where) = passed[-1]
    assert where == {"first": 2}
    torch.testing.assert_close(x[16:], x[:10])


def test_at_the_end_of_the_first_task_alone_what_is_held_is_computed_anew(mid_run):
    own = ("strategy.lower_lr_factor=1",)
    strategy, env, s, _ = mid_run(*TOY, *own, tasks=2)
    moved = s._replace(theta=s.theta.detach() * 1.1)
    later = strategy.end_task(moved, env.stream[1], env)
    assert torch.equal(later.memory["buffer_latent"], s.memory["buffer_latent"])
    index = s.memory["buffer_index"].index_fill(0, torch.tensor([0]), 0)  # the first row, too
    s = s._replace(memory=s.memory | {"buffer_index": index})
    first = strategy.end_task(s, env.stream[0], env)
    held = env.gather(index, s.memory["buffer_task"], s.t)
    expected = env.net(s.theta, held.x, held.task, last=2).detach()
    torch.testing.assert_close(first.memory["buffer_latent"], expected)


def test_the_first_task_replays_nothing(mid_run):
    """Its activations are those of a lower part that is still moving."""
    strategy, env, s, batches = mid_run(*TOY, tasks=0)
    with torch.no_grad():
        for batch in batches[:3]:
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    assert int((s.memory["buffer_index"] >= 0).sum()) == 40
    loss, _ = strategy.loss(s.theta, s, batches[3], env)
    logits = env.net(s.theta, batches[3].x, batches[3].task)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batches[3].y))


def test_activations_are_counted_and_inputs_are_not(configure, tmp_path):
    run(configure(*TOY, "benchmark.num_tasks=2", "verbose=false"), tmp_path)
    with (tmp_path / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    seen = 8 * 10  # how many of each class came by
    assert (row["buffer_samples"], row["buffer_bytes"]) == ("40", str(40 * 12 * 4))
    assert row["memory_bytes"] == str(seen)


@pytest.mark.parametrize(
    ("model", "layer", "names"),
    [
        ("model.hidden_sizes=[24,12]", 1, {"layers.0"}),
        ("model.hidden_sizes=[24,12]", 2, {"layers.0", "layers.1"}),
        ("model=cnn", 2, {"convolutions.0", "convolutions.1"}),
        ("model=cnn", 3, {"convolutions.0", "convolutions.1", "hidden"}),
    ],
)
def test_the_lower_parameters_are_those_of_the_lower_stages(prepared, model, layer, names):
    _, _, env = prepared("benchmark=split_digits", model)
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert lower_parameters(env, layer) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.layer=0",), "strategy.layer must lie between 1 and 2, since .* 3 stages"),
        (("strategy.layer=3",), "strategy.layer must lie between 1 and 2, .*, got 3"),
        (("strategy.lower_lr_factor=2",), r"strategy.lower_lr_factor must lie in \[0, 1\], got 2"),
        (
            ("model=reduced_resnet18", "model.width=2"),
            "needs a model without BatchNorm below strategy.layer=2",
        ),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    toy = [o for o in TOY if not o.startswith("model")] if "model" in overrides[0] else TOY
    with pytest.raises(UserError, match=message):
        prepared(*toy, *overrides)
