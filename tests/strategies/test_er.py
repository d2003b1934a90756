"""Experience replay: what is in the buffer, and what is trained on."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.replay import bins_of, places
from cl_runner.training import batches
from cl_runner.training.batches import Source

TOY = (
    "strategy=er",
    "benchmark=split_digits",
    "strategy.buffer_size=60",
    "strategy.replay_batch_size=10",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)
FEW = ("benchmark.train_samples=600",)  # of all, or of each task in domain-IL: some 60 of a class


class Wrapped(torch.nn.Module):
    """A network that shows nothing but its logits."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x, task)
        return logits


def run(prepared, *overrides: str, tasks: int = 5):
    config, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    for task in env.stream[:tasks]:
        s = train_task(strategy, s, task, env)
    return config, strategy, env, s


def held(s) -> list[tuple[int, int]]:
    """(row, task) of every filled slot."""
    index, task = s.memory["buffer_index"], s.memory["buffer_task"]
    return [(int(i), int(t)) for i, t in zip(index, task, strict=True) if i >= 0]


def test_the_reservoir_holds_distinct_samples_of_all_tasks_with_their_own_task(prepared):
    _, _, env, s = run(prepared)
    rows = held(s)
    assert len(set(rows)) == 60
    for row, task in rows:
        assert row in env.stream[task].train
    assert {task for _, task in rows} == set(range(5))
    assert int(s.memory["seen"].sum()) == len(env.stream.x)


def test_two_epochs_offer_every_sample_twice_and_a_buffer_with_room_holds_both(prepared):
    own = ("strategy.buffer_size=1000", "benchmark.train_samples=100", "training.epochs=2")
    _, _, env, s = run(prepared, *own)
    assert sorted(held(s)) == sorted(2 * [(int(i), t.index) for t in env.stream for i in t.train])


def test_class_balanced_holds_equal_shares_of_the_classes_seen(prepared):
    for tasks in (1, 3, 5):
        _, _, env, s = run(prepared, "strategy.policy=class_balanced", tasks=tasks)
        classes = [int(env.stream.y[row]) for row, _ in held(s)]
        assert [classes.count(c) for c in range(2 * tasks)] == [60 // (2 * tasks)] * (2 * tasks)


def test_class_balanced_draws_by_the_seed(prepared):
    own = ("strategy.policy=class_balanced", "training.iterations=1")
    rows = [held(run(prepared, *own, f"seed={seed}", tasks=1)[-1]) for seed in (0, 1)]
    assert len({*rows[0], *rows[1]}) > 90  # of 60 each, from 280


def test_a_place_that_holds_the_first_row_is_filled(prepared):
    _, _, env = prepared(*TOY)
    slots = {"index": torch.tensor([0, -1]), "task": torch.zeros(2, dtype=torch.int64)}
    bins, filled, _ = bins_of(slots, env.stream[0], env)
    assert filled.tolist() == [True, False]
    assert int(env.stream.y[0]) != int(env.stream.y[1])
    assert int(bins[0]) == int(env.stream.y[0])


def test_the_smallest_buffers_and_the_largest(prepared):
    _, strategy, env = prepared(*TOY)
    for own in ({"buffer_size": 10, "policy": "ring"}, {"buffer_size": 1}):
        memory = dataclasses.replace(strategy, **own).init(env.flat.theta.detach(), env)
        assert memory["buffer_index"].tolist() == [-1] * own["buffer_size"]
    assert places(None, 100_000, env) == 1_000_000


def test_the_ring_holds_the_latest_of_each_class(prepared):
    _, _, env, s = run(prepared, "strategy.policy=ring")
    classes = [int(env.stream.y[row]) for row, _ in held(s)]
    assert [classes.count(c) for c in range(10)] == [6] * 10


def test_in_domain_incremental_learning_the_ring_keeps_every_task(prepared):
    """A ring per shared class would hold nothing but the last task."""
    _, _, _, s = run(
        prepared,
        "benchmark=permuted_digits",
        "strategy.policy=ring",
        "strategy.buffer_size=100",
        *FEW,
    )
    tasks = [task for _, task in held(s)]
    assert [tasks.count(t) for t in range(5)] == [20] * 5


def assert_best_of_a_class(env, s, task, label: int, mine: list[int]) -> None:
    """Each of the rows is the next exemplar of a class by algorithm 4 of iCaRL as it is written.

    Or as good as that: candidates may be equally near but for rounding.
    """
    rows = [int(i) for i in env.stream[task].train if int(env.stream.y[i]) == label]
    x = env.gather(torch.tensor(rows), task, s.t).x.flatten(1)
    for layer in env.flat.module.layers[:-1]:
        x = F.relu(layer(x))
    features = (x / x.norm(dim=1, keepdim=True)).detach().double()
    chosen: list[int] = []
    for row in mine:
        distance = {
            i: float((features.mean(0) - features[[*chosen, i]].mean(0)).norm())
            for i in range(len(rows))
            if i not in chosen
        }
        chosen.append(rows.index(row))
        assert distance[chosen[-1]] <= min(distance.values()) + 1e-6


@pytest.mark.parametrize("strategy", ["er", "er_ace", "der", "derpp", "agem", "icarl"])
@pytest.mark.slow
def test_herding_holds_the_best_of_new_classes_and_keeps_the_best_of_old_ones(prepared, strategy):
    own = [] if strategy == "icarl" else ["strategy.policy=herding"]
    small = [override for override in TOY if "replay" not in override or strategy != "icarl"]
    _, strategy, env = prepared(*small[1:], *FEW, f"strategy={strategy}", *own)
    s = initial_state(strategy, env)
    ranked: dict[int, list[int]] = {}
    for task in env.stream[:3]:
        s = train_task(strategy, s, task, env)
        share = 60 // (2 * task.index + 2)
        by_class = rows_by_class(env, s)
        for label in task.classes:
            ranked[label] = by_class[label]
            assert len(by_class[label]) == share
            assert_best_of_a_class(env, s, task.index, label, by_class[label])
        assert by_class == {label: ranked[label][:share] for label in range(2 * task.index + 2)}


SHARES = ("strategy.buffer_size=null", "strategy.per_class=7")


def rows_by_class(env, s) -> dict[int, list[int]]:
    """What is held of each class, in the order of the slots."""
    rows: dict[int, list[int]] = {}
    for row, _ in sorted(held(s), key=lambda item: int(env.stream.y[item[0]])):
        rows.setdefault(int(env.stream.y[row]), []).append(row)
    return rows


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *product(("er",), ("class_balanced", "herding", "ring")),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in product(
                ("er_ace", "der", "derpp", "agem", "latent_replay"),
                ("class_balanced", "herding", "ring"),
            )
        ),
        ("icarl", "herding"),
    ],
)
def test_each_class_has_its_share_from_its_own_task_on(prepared, name, policy):
    """As many of each, in a buffer of full size from the start; old classes keep what they hold."""
    toy = [o for o in TOY[1:] if "buffer_size" not in o and ("replay" not in o or name != "icarl")]
    own = [] if name == "icarl" else [f"strategy.policy={policy}"]
    _, strategy, env = prepared(*toy, *own, *SHARES, *FEW, f"strategy={name}")
    s = initial_state(strategy, env)
    assert s.memory["buffer_index"].tolist() == [-1] * 70
    before: dict[int, list[int]] = {}
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        rows = rows_by_class(env, s)
        assert {label: len(own) for label, own in rows.items()} == dict.fromkeys(
            range(2 * task.index + 2), 7
        )
        assert {label: sorted(rows[label]) for label in before} == before
        if policy == "herding":
            for label in task.classes:
                assert_best_of_a_class(env, s, task.index, label, rows[label])
        before = {label: sorted(own) for label, own in rows.items()}
    assert len(s.memory["buffer_index"]) == 70


def test_a_class_with_fewer_samples_than_its_share_holds_all_of_them(prepared):
    own = ("strategy.policy=class_balanced", "strategy.buffer_size=null", "strategy.per_class=400")
    _, strategy, env = prepared(*TOY, *own)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    assert len(s.memory["buffer_index"]) == 4000
    assert sorted(row for row, _ in held(s)) == sorted(env.stream[0].train.tolist())


def test_in_domain_incremental_learning_a_share_is_that_of_a_tasks_class(prepared):
    own = ("benchmark=permuted_digits", "strategy.policy=class_balanced", *SHARES, *FEW)
    _, _, env, s = run(prepared, *own)
    bins = [(task, int(env.stream.y[row])) for row, task in held(s)]
    assert [bins.count((t, c)) for t in range(5) for c in range(10)] == [7] * 50


def test_samples_are_drawn_from_all_shares(prepared):
    """The uniforms that a step declares are as many as the places."""
    toy = (*SHARES, "strategy.policy=class_balanced", "strategy.replay_batch_size=100")
    strategy, env, s, batch = next_batch(prepared, *toy, task=2)
    assert batch.noise["draw"].shape == (70,)
    replay = strategy.draw(s, batch, env)
    assert replay.weight.tolist() == [1.0] * 28 + [0.0] * 42
    assert sorted(replay.index[:28].tolist()) == sorted(row for row, _ in held(s))


def test_what_is_kept_of_a_sample_moves_with_it(prepared):
    """DER's logits belong to the sample, at the end of the sample's own task."""
    _, strategy, env = prepared(*TOY[1:], "strategy=der", "strategy.policy=herding")
    s = initial_state(strategy, env)
    answers: dict[int, torch.Tensor] = {}
    for task in env.stream[:3]:
        s = train_task(strategy, s, task, env)
        x = env.gather(task.train, task.index, s.t).x
        logits = env.net(s.theta, x, torch.full_like(task.train, task.index)).detach()
        answers |= {int(i): z for i, z in zip(task.train, logits, strict=True)}
    for (row, _), stored in zip(held(s), s.memory["buffer_logits"], strict=True):
        torch.testing.assert_close(stored, answers[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["class_balanced", "herding"])
def test_in_domain_incremental_learning_every_task_has_its_share(prepared, policy):
    _, _, env, s = run(
        prepared,
        "benchmark=permuted_digits",
        f"strategy.policy={policy}",
        "strategy.buffer_size=100",
        *FEW,
    )
    bins = [(task, int(env.stream.y[row])) for row, task in held(s)]
    assert [bins.count((t, c)) for t in range(5) for c in range(10)] == [2] * 50


def test_herding_needs_a_network_that_shows_its_features(prepared, monkeypatch):
    monkeypatch.setattr(ER, "wrap", lambda *arguments: Wrapped(arguments[1]()))
    prepared(*TOY)
    with pytest.raises(UserError, match="policy=herding needs the features before the output"):
        prepared(*TOY, "strategy.policy=herding")


def next_batch(prepared, *overrides: str, task: int = 2):
    _, strategy, env, s = run(prepared, *overrides, tasks=task)
    s = s._replace(t=torch.full_like(s.t, task))
    source = Source(env, s, task, env.stream[task].train, task, strategy)
    return strategy, env, s, next(iter(source.epoch(0, 1)))


@pytest.mark.parametrize("weighting", ["concatenation", "task_share"])
def test_the_loss_is_the_stated_mean_over_new_and_old(prepared, weighting):
    strategy, env, s, batch = next_batch(prepared, f"strategy.weighting={weighting}")
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, _ = strategy.loss(s.theta, s, both, env)
    losses = F.cross_entropy(env.net(s.theta, both.x, both.task), both.y, reduction="none")
    new, old = losses[:16].mean(), losses[16:].mean()
    expected = (16 * new + 10 * old) / 26 if weighting == "concatenation" else new / 3 + 2 * old / 3
    torch.testing.assert_close(loss, expected)
    assert {*both.task[16:].tolist()} <= {0, 1}


@pytest.mark.parametrize("task", [0, 2])
def test_a_step_replays_what_was_held_before_it_and_then_remembers_its_batch(prepared, task):
    """Not the incoming samples, which would count twice: the first step replays nothing."""
    strategy, env, s, batch = next_batch(prepared, "strategy.buffer_size=500", task=task)
    before = {row for row, _ in held(s)}
    replay = strategy.draw(s, batch, env)
    old = replay.index[replay.weight > 0]
    assert len(old) == (10 if task else 0) and set(old.tolist()) <= before
    x = torch.cat([batch.x, env.gather(old, replay.task[replay.weight > 0], s.t).x])
    y = torch.cat([batch.y, env.stream.labels(old, replay.task[replay.weight > 0])])
    tasks = torch.zeros_like(y)
    theta = s.theta.detach().clone().requires_grad_()
    loss = F.cross_entropy(env.net(theta, x, tasks), y)
    expected = theta - float(s.opt["lr"]) * torch.autograd.grad(loss, theta)[0]
    with torch.no_grad():
        new, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(new.theta, expected.detach(), rtol=1e-5, atol=1e-6)
    if task == 0:
        assert {row for row, _ in held(new)} == set(batch.index.tolist())


def test_what_needs_no_answer_of_the_network_gathers_no_images(prepared, monkeypatch):
    """Plain ER keeps rows; the images of a large buffer would be hundreds of MB."""
    _, strategy, env, s = run(prepared, "strategy.policy=class_balanced", tasks=1)
    monkeypatch.setattr(env, "gather", None)
    strategy.end_task(s, env.stream[0], env)


@pytest.mark.parametrize("name", ["der", "latent_replay"])
def test_what_is_kept_at_the_end_of_a_task_is_computed_in_chunks(prepared, monkeypatch, name):
    own = (*TOY[1:], f"strategy={name}", "strategy.policy=class_balanced")
    _, strategy, env = prepared(*own)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    whole = strategy.end_task(s, env.stream[0], env).memory
    sizes, gather = [], env.gather
    monkeypatch.setattr("cl_runner.strategies.parts.replay.FOLD_CHUNK", 7)
    monkeypatch.setattr(env, "gather", lambda i, *more: (sizes.append(len(i)), gather(i, *more))[1])
    parts = strategy.end_task(s, env.stream[0], env).memory
    assert sizes and max(sizes) == 7 and sum(sizes) <= 60
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("benchmark", ["split_digits", "permuted_digits", "rotated_digits"])
def test_a_replayed_sample_looks_as_it_did_in_its_own_task(prepared, benchmark):
    strategy, env, s, batch = next_batch(
        prepared, f"benchmark={benchmark}", "benchmark.num_tasks=5"
    )
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    for x, y, row, task in zip(
        both.x[16:], both.y[16:], both.index[16:], both.task[16:], strict=True
    ):
        own = env.gather(row[None], int(task), s.t)
        assert torch.equal(own.x[0], x) and int(own.y[0]) == int(y)


def test_one_replayed_sample_has_the_whole_share(prepared):
    strategy, env, s, batch = next_batch(prepared, "strategy.weighting=task_share")
    replay = strategy.draw(s, batch, env)
    one = replay._replace(weight=torch.eye(10)[3])
    both = strategy.join(s, batch, one)
    torch.testing.assert_close(both.weight[16:], torch.eye(10)[3] * 2 / 3)


def test_an_empty_buffer_changes_nothing(prepared):
    strategy, env, s, batch = next_batch(prepared, task=0)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    assert both.weight is not None and both.weight.tolist() == [1.0] * 16 + [0.0] * 10
    loss, _ = strategy.loss(s.theta, s, both, env)
    plain, _ = strategy.loss(s.theta, s, batch, env)
    torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.per_class=5",), "per_class=5 takes the place of strategy.buffer_size=60: set"),
        (("strategy.buffer_size=null",), "one of strategy.buffer_size and strategy.per_class must"),
        (
            ("strategy.buffer_size=null", "strategy.per_class=0", "strategy.policy=ring"),
            "strategy.per_class must lie between 1 and 1000000, got 0",
        ),
        (SHARES, "strategy.per_class has no meaning for strategy.policy=reservoir"),
        (
            ("strategy.buffer_size=null", "strategy.per_class=100001", "strategy.policy=ring"),
            "strategy.per_class=100001 for each of 10 classes makes 1000010 places",
        ),
        (("strategy.buffer_size=0",), "strategy.buffer_size must lie between 1 and 1000000, got 0"),
        (("strategy.buffer_size=9", "strategy.policy=ring"), "one place for each of 10 classes"),
        (("strategy.buffer_size=9", "strategy.policy=herding"), "one place for each of 10 classes"),
        (("strategy.buffer_size=10", "strategy.policy=dual"), "classes, besides those of its ring"),
        ((*SHARES, "strategy.policy=dual"), "policy=dual, whose ring knows none; use ring"),
        (("strategy.replay_batch_size=0",), "strategy.replay_batch_size"),
        (("strategy.policy=fifo",), "strategy.policy must be one of reservoir"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *overrides)


@pytest.mark.parametrize("policy", ["reservoir", "ring", "dual"])
def test_how_many_steps_are_planned_at_once_changes_nothing(prepared, monkeypatch, policy):
    """One step, a few, or as many as there are."""
    states = []
    for steps in (1, 3, 64):
        monkeypatch.setattr(batches, "LARGEST_PLAN", steps * 60)
        monkeypatch.setattr(batches, "PREPARED_BYTES", steps * 4000)
        own = (f"strategy.policy={policy}", "strategy.buffer_size=60", "training.epochs=2")
        _, _, _, s = run(prepared, *own)
        states.append((s.theta.detach().clone(), s.memory))
    for theta, memory in states[1:]:
        assert torch.equal(theta, states[0][0])
        assert all(torch.equal(memory[key], value) for key, value in states[0][1].items())


def test_a_dual_buffer_holds_the_latest_and_equal_shares_of_the_classes_dropped(prepared):
    """Also where the first row of the training set, 0, has no class in the first task."""
    order = ("benchmark.class_order=shuffled", "benchmark.seed=0")
    _, _, env, s = run(prepared, "strategy.policy=dual", *order)
    assert env.stream.labels(torch.tensor([0]), 0).tolist() == [-1]
    index, task = s.memory["buffer_index"], s.memory["buffer_task"]
    assert len(index) == 60
    labels = env.stream.labels(index.clamp_min(0), task)
    latest, rest = index[:6], labels[6:56].view(10, 5)
    assert set(latest.tolist()) <= set(env.stream[len(env.stream) - 1].train.tolist())
    assert rest.tolist() == [[c] * 5 for c in range(10)]
    assert index[56:].tolist() == [-1] * 4  # what does not divide by the classes
