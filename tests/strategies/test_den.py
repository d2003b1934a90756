"""DEN: what each phase may change, when units are added, dropped and divided, and who sees them."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import Tensor

from cl_runner.core import TrainState
from cl_runner.errors import UserError
from cl_runner.functional.growing import connected, within
from cl_runner.nn.growing import hidden_sizes, layers, units
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.den import DEN, Expansion

TOY = (
    "strategy=den",
    "benchmark=split_digits",
    "scenario=task",
    "benchmark.num_tasks=3",
    "benchmark.train_samples=300",
    "model.hidden_sizes=[12,8]",
    "training.batch_size=16",
    "training.epochs=2",
    "strategy.expand=3",
    "strategy.duplicates=4",
)
NO_EXPANSION = "strategy.tau=1000"
NO_SPLIT = "strategy.sigma=1000"


class Recorder:
    """Keeps each phase's state before it and after it, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: dict[str, TrainState] = {}
        self.after: dict[str, TrainState] = {}
        phase = DEN.phase

        def recorded(den, s, learner, trainable, task, env, name):
            memory = s.memory | {"trainable": trainable}
            self.before[name] = s._replace(theta=s.theta.detach().clone(), memory=memory)
            s = phase(den, s, learner, trainable, task, env, name)
            self.after[name] = s._replace(theta=s.theta.detach().clone())
            return s

        monkeypatch.setattr(DEN, "phase", recorded)


def after_one(prepared, *overrides: str):
    """(strategy, env, state after the first task)."""
    _, strategy, env = prepared(*TOY, *overrides)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    return strategy, env, s._replace(theta=s.theta.detach().clone())


def second(strategy, env, s: TrainState) -> TrainState:
    s = train_task(strategy, env.commit(s), env.stream[1], env)
    return s._replace(theta=s.theta.detach().clone())


def logits(strategy, env, s: TrainState, task: int) -> Tensor:
    images, _ = env.stream.held_out("test", env.stream[task])
    with torch.no_grad():
        return strategy.predict(s, env.stream.normalise(images), task, env)[
            :, env.own_classes[task]
        ]


def count(s: TrainState, stamp: int) -> int:
    return int((s.memory["stamp"] == stamp).sum())


def test_the_network_starts_as_the_configured_one(prepared):
    _, strategy, env = prepared(*TOY)
    shared = [o for o in TOY if not o.startswith("strategy.")]
    _, _, plain = prepared(*shared, "strategy=naive")
    s = initial_state(strategy, env)
    assert hidden_sizes(env.flat) == [12 + 2 * 7, 8 + 2 * 7]
    assert count(s, 0) == 20 and count(s, 3) == 28
    x = env.stream.normalise(env.stream.x[:50])
    expected = plain.net(plain.flat.theta, x, torch.zeros(50, dtype=torch.int64))
    torch.testing.assert_close(strategy.predict(s, x, 0, env), expected)


def test_the_first_task_leaves_exact_zeros_and_later_heads_alone(prepared):
    _, env, s = after_one(prepared, "strategy.mu=0.01")
    used = within(units(env.flat, s.memory["stamp"] == 0, env.own_classes[0]))
    assert 0.1 < (s.theta[used] == 0).float().mean() < 1
    initial = initial_state(*prepared(*TOY, "strategy.mu=0.01")[1:]).theta.detach()
    assert torch.equal(s.theta[~used], initial[~used])
    _, _, dense = after_one(prepared, "strategy.mu=0")
    assert not (dense.theta[used] == 0).any()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_each_phase_trains_its_own_weights_and_no_others(prepared, monkeypatch, optimizer):
    """Bit for bit, whatever the optimizer adds of its own."""
    decay = ("optimizer.weight_decay=0.1", "optimizer=" + optimizer)
    strategy, env, s = after_one(prepared, *decay, "strategy.gamma=0", "strategy.sigma=0")
    recorder = Recorder(monkeypatch)
    second(strategy, env, s)
    assert [*recorder.before] == ["outputs", "expansion", "split"]
    own = env.own_classes[1]
    for name, before in recorder.before.items():
        theta, trainable = recorder.after[name].theta, before.memory["trainable"]
        assert torch.equal(theta[~trainable], before.theta[~trainable]), name
        assert (theta[trainable] != before.theta[trainable]).float().mean() > 0.3, name
        assert not (trainable & env.flat.output_mask(~own)).any(), name
    old = within(units(env.flat, s.memory["stamp"] == 0, torch.ones_like(own)))
    assert not (recorder.before["expansion"].memory["trainable"] & old).any()
    assert torch.equal(
        recorder.before["outputs"].memory["trainable"].nonzero(),
        (
            env.flat.output_mask(own) & within(units(env.flat, s.memory["stamp"] == 0, own))
        ).nonzero(),
    )


def test_selective_retraining_moves_the_connected_subnetwork_only(prepared, monkeypatch):
    strategy, env, s = after_one(prepared, "strategy.mu=0.004", NO_EXPANSION, NO_SPLIT)
    recorder = Recorder(monkeypatch)
    new = second(strategy, env, s)
    outputs = recorder.after["outputs"]
    subnetwork = connected(layers(env.flat, outputs.theta), env.own_classes[1])
    sizes = [int(m.sum()) for m in subnetwork[1:]]
    assert 0 < sizes[0] < 12 or 0 < sizes[1] < 8, sizes
    subnetwork[0] = torch.ones_like(subnetwork[0])
    chosen = within(subnetwork)
    assert torch.equal(new.memory["trainable"], chosen)
    assert torch.equal(new.theta[~chosen], outputs.theta[~chosen])
    assert (new.theta[chosen] != outputs.theta[chosen]).any()


def test_the_loss_adds_what_the_docstring_says(mid_run):
    strategy, env, s, batches = mid_run(*TOY, "strategy.lambda=0.7", "strategy.l2=0.2", tasks=2)
    s = strategy.begin_task(s, env.stream[2], env)
    past = within(
        units(env.flat, s.memory["stamp"] < 2, torch.zeros(env.num_classes, dtype=torch.bool))
    )
    theta = s.memory["old"] + 0.1 * torch.randn(
        len(s.theta), generator=torch.Generator().manual_seed(0)
    )
    total, aux = strategy.loss(theta, s, batches[0], env)
    masked = aux["logits"].masked_fill(~env.own_classes[2], float("-inf"))
    expected = torch.nn.functional.cross_entropy(masked, batches[0].y)
    expected += 0.35 * (theta - s.memory["old"])[past].square().sum() + 0.1 * theta.square().sum()
    torch.testing.assert_close(total, expected)


def test_units_are_added_where_the_loss_exceeds_tau_and_only_there(prepared):
    for tau, expected in ((1000, 0), (0, 6)):  # 3 in each hidden layer
        strategy, env, s = after_one(prepared, NO_SPLIT, "strategy.gamma=0", f"strategy.tau={tau}")
        new = second(strategy, env, s)
        assert count(new, 1) == expected and count(new, 0) == 20


def test_what_new_units_have_learnt_stays(prepared, monkeypatch):
    strategy, env, s = after_one(prepared, NO_SPLIT, "strategy.gamma=0", "strategy.tau=0")
    recorder = Recorder(monkeypatch)
    new = second(strategy, env, s)
    used = within(units(env.flat, new.memory["stamp"] <= 1, torch.ones_like(env.own_classes[0])))
    assert torch.equal(new.theta[used], recorder.after["expansion"].theta[used])
    assert not new.theta[~used].any()


def test_new_units_are_drawn_by_the_seed_alone(prepared, monkeypatch):
    drawn = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        strategy, env, s = after_one(prepared, NO_SPLIT, "strategy.tau=0")
        recorder = Recorder(monkeypatch)
        env.seed = seed
        torch.manual_seed(other)
        second(strategy, env, s)
        drawn.append(layers(env.flat, recorder.before["expansion"].theta)[0][0][12:15])
    assert drawn[0].all() and torch.equal(drawn[0], drawn[1])
    assert not (drawn[0] == drawn[2]).any()


@pytest.mark.parametrize(("epochs", "sweeps"), [("null", 2), ("1", 1)])
def test_phases_have_epochs_of_their_own(prepared, epochs, sweeps):
    own = (f"strategy.phase_epochs={epochs}", "strategy.tau=0", "strategy.sigma=0")
    strategy, env, s = after_one(prepared, *own)
    per_epoch = -(-len(env.stream[1].train) // 16)
    before = env.meter.steps
    second(strategy, env, s)
    assert env.meter.steps - before == per_epoch * (2 + 3 * sweeps)  # the task's, and three phases


def test_after_the_split_the_network_is_trained_with_its_copies(prepared, monkeypatch):
    strategy, env, s = after_one(prepared, NO_EXPANSION, "strategy.sigma=0")
    recorder = Recorder(monkeypatch)
    new = second(strategy, env, s)
    assert count(new, 1) > 0
    whole = within(units(env.flat, new.memory["stamp"] <= 1, env.own_classes[1]))
    assert torch.equal(recorder.before["split"].memory["trainable"], whole)


def test_the_loss_compared_with_tau_is_the_mean_over_the_task(prepared):
    strategy, env, s = after_one(prepared)
    task = env.stream[0]
    batch = env.gather(task.train, 0, s.t)
    masked = env.net(s.theta, batch.x, batch.task).masked_fill(~env.own_classes[0], float("-inf"))
    expected = torch.nn.functional.cross_entropy(masked, batch.y).item()
    with torch.no_grad():
        assert strategy.mean_loss(s, task, env) == pytest.approx(expected, rel=1e-5)


def test_new_units_that_group_sparsity_silences_are_dropped(prepared):
    strategy, env, s = after_one(
        prepared, NO_SPLIT, "strategy.tau=0", "strategy.gamma=1000", "strategy.mu=0"
    )
    new = second(strategy, env, s)
    assert count(new, 1) == 0
    free = ~within(
        units(env.flat, new.memory["stamp"] < 3, torch.ones(env.num_classes, dtype=torch.bool))
    )
    assert not new.theta[free].any()


def test_expansion_shrinks_only_the_new_weights_of_hidden_units(mid_run):
    strategy, env, s, batches = mid_run(*TOY, "strategy.mu=0", "strategy.gamma=0.5", tasks=1)
    trainable = torch.zeros_like(s.memory["trainable"])
    parts = layers(env.flat, trainable)
    parts[0][0][2], parts[2][0][:, 1] = True, True  # a hidden unit's group, and output weights
    s = s._replace(memory=s.memory | {"trainable": trainable})
    with torch.no_grad():
        plain = layers(env.flat, strategy.step(s, batches[0], env)[0].theta)
        shrunk = layers(env.flat, Expansion(strategy).step(s, batches[0], env)[0].theta)
    row = plain[0][0][2]
    torch.testing.assert_close(
        shrunk[0][0][2], row * (1 - s.opt["lr"] * 0.5 / row.norm()), rtol=1e-5, atol=1e-8
    )
    assert (shrunk[0][0][2] != row).any()
    assert torch.equal(shrunk[2][0], plain[2][0]) and torch.equal(shrunk[0][0][3:], plain[0][0][3:])


def test_a_unit_that_drifted_is_restored_and_its_copy_carries_the_new_weights(
    prepared, monkeypatch
):
    strategy, env, s = after_one(
        prepared, NO_EXPANSION, "strategy.lambda=0", "strategy.sigma=0.004"
    )
    old = layers(env.flat, s.theta)
    recorder = Recorder(monkeypatch)
    trained: list[TrainState] = []
    split = DEN.split

    def watched(den, state, task, env):
        trained.append(state._replace(theta=state.theta.detach().clone()))
        return split(den, state, task, env)

    monkeypatch.setattr(DEN, "split", watched)
    second(strategy, env, s)
    new, result = (
        layers(env.flat, trained[0].theta),
        layers(env.flat, recorder.before["split"].theta),
    )
    stamp = recorder.before["split"].memory["stamp"].split(hidden_sizes(env.flat))
    for n, size in enumerate((12, 8)):
        rho = torch.stack(
            [
                torch.cat([new[n][0][i] - old[n][0][i], (new[n][1][i] - old[n][1][i])[None]]).norm()
                for i in range(size)
            ]
        )
        order = sorted(range(size), key=lambda i: -rho[i].item())
        divided = [i for i in order if rho[i] > 0.004][:4]
        assert 0 < len(divided) < size
        assert (stamp[n] == 1).nonzero()[:, 0].tolist() == [size + k for k in range(len(divided))]
        for k, i in enumerate(divided):
            assert torch.equal(result[n][0][i], old[n][0][i])
            assert torch.equal(result[n][1][i], old[n][1][i])
            assert torch.equal(result[n][1][size + k], new[n][1][i])
            if n == 0:
                assert torch.equal(result[n][0][size + k], new[n][0][i])


def test_dividing_all_that_moved_forgets_nothing_and_keeps_what_was_learned(prepared, monkeypatch):
    """Right after the split: the first task's logits bit for bit, the second's as trained."""
    room = ("strategy.duplicates=12", "strategy.sigma=0", "strategy.gamma=0", "strategy.lambda=0")
    strategy, env, s = after_one(prepared, *room)
    recorder = Recorder(monkeypatch)
    expansion, trained = DEN.expansion, []

    def watched(den, state, task, env):
        state = expansion(den, state, task, env)
        trained.append(state._replace(theta=state.theta.detach().clone()))
        return state

    monkeypatch.setattr(DEN, "expansion", watched)
    second(strategy, env, s)
    after = recorder.before["split"]
    assert count(after, 1) > 6
    assert torch.equal(logits(strategy, env, after, 0), logits(strategy, env, s, 0))
    assert not torch.allclose(logits(strategy, env, trained[0], 0), logits(strategy, env, s, 0))
    torch.testing.assert_close(
        logits(strategy, env, after, 1), logits(strategy, env, trained[0], 1), rtol=1e-4, atol=1e-5
    )


def test_a_task_is_predicted_without_later_units(prepared):
    strategy, env, s = after_one(prepared, "strategy.tau=0", "strategy.gamma=0")
    s = second(strategy, env, s)
    assert count(s, 1) > 0
    before = [logits(strategy, env, s, task) for task in (0, 1)]
    late = ~within(
        units(env.flat, s.memory["stamp"] < 1, torch.ones(env.num_classes, dtype=torch.bool))
    )
    changed = s._replace(theta=s.theta + late)
    assert torch.equal(logits(strategy, env, changed, 0), before[0])
    assert not torch.allclose(logits(strategy, env, changed, 1), before[1])


def test_it_warns_of_units_that_drifted_but_were_not_divided(prepared, caplog):
    strategy, env, s = after_one(prepared, "strategy.sigma=0", "strategy.duplicates=1")
    with caplog.at_level(logging.WARNING):
        second(strategy, env, s)
    assert re.search(r"task 2: 11\+[1-7] units .* strategy.duplicates=1 is the most", caplog.text)
    caplog.clear()
    strategy, env, s = after_one(prepared, NO_SPLIT)
    with caplog.at_level(logging.WARNING):
        second(strategy, env, s)
    assert "were not divided" not in caplog.text


def test_there_is_room_for_all_tasks(prepared):
    """Every task takes all it may: then the reserve is exactly used up."""
    _, strategy, env = prepared(*TOY, "strategy.sigma=0", "strategy.tau=0", "strategy.gamma=0")
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    assert [count(s, t) for t in range(4)] == [20, 14, 14, 0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=cnn",), "strategy=den needs model=mlp"),
        (("model.hidden_sizes=[]",), "strategy=den needs model=mlp with at least one hidden layer"),
        (("model.norm=batch",), "den needs model=mlp .*, model.norm=none, adapter=none and"),
        (("scenario=class",), "strategy=den does not support scenario=class"),
        (("strategy.lambda=-1",), "strategy.lambda must be at least 0, got -1"),
        (("strategy.sigma=-1",), "strategy.sigma must be at least 0"),
        (("strategy.phase_epochs=0",), "strategy.phase_epochs must be at least 1 or null, got 0"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(
            *(o for o in TOY if not o.startswith("model") or "model=cnn" not in overrides),
            *overrides,
        )
