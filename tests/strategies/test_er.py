"""Experience replay: what is in the buffer, and what is trained on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cl_runner.engine import initial_state, train_task
from cl_runner.errors import UserError
from cl_runner.fit import Source
from cl_runner.strategies.er import ER

TOY = (
    "strategy=er",
    "benchmark=split_digits",
    "strategy.buffer_size=60",
    "strategy.replay_batch_size=10",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)


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


def test_class_balanced_holds_equal_shares_of_the_classes_seen(prepared):
    for tasks in (1, 3, 5):
        _, _, env, s = run(prepared, "strategy.policy=class_balanced", tasks=tasks)
        classes = [int(env.stream.y[row]) for row, _ in held(s)]
        assert [classes.count(c) for c in range(2 * tasks)] == [60 // (2 * tasks)] * (2 * tasks)


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
    )
    tasks = [task for _, task in held(s)]
    assert [tasks.count(t) for t in range(5)] == [20] * 5


def best_of_a_class(env, s, task, label: int, k: int) -> list[int]:
    """Rows of the k exemplars of a class by algorithm 4 of iCaRL as it is written."""
    rows = [int(i) for i in env.stream[task].train if int(env.stream.y[i]) == label]
    x = env.gather(torch.tensor(rows), task, s.t).x.flatten(1)
    for layer in env.flat.module.layers[:-1]:
        x = F.relu(layer(x))
    features = (x / x.norm(dim=1, keepdim=True)).detach().double()
    chosen: list[int] = []
    for _ in range(k):
        distance = {
            i: float((features.mean(0) - features[[*chosen, i]].mean(0)).norm())
            for i in range(len(rows))
            if i not in chosen
        }
        chosen.append(min(distance, key=distance.__getitem__))
    return [rows[i] for i in chosen]


@pytest.mark.parametrize("strategy", ["er", "er_ace", "der", "derpp", "agem", "icarl"])
def test_herding_holds_the_best_of_new_classes_and_keeps_the_best_of_old_ones(prepared, strategy):
    own = [] if strategy == "icarl" else ["strategy.policy=herding"]
    small = [override for override in TOY if "replay" not in override or strategy != "icarl"]
    _, strategy, env = prepared(*small[1:], f"strategy={strategy}", *own)
    s = initial_state(strategy, env)
    ranked: dict[int, list[int]] = {}
    for task in env.stream[:3]:
        s = train_task(strategy, s, task, env)
        share = 60 // (2 * task.index + 2)
        for label in task.classes:
            ranked[label] = best_of_a_class(env, s, task.index, label, share)
        classes = [int(env.stream.y[row]) for row, _ in held(s)]
        for label in range(2 * task.index + 2):
            mine = [row for (row, _), c in zip(held(s), classes, strict=True) if c == label]
            assert mine == ranked[label][:share]


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
    both = strategy.join(s, batch, strategy.replay(s, batch, env))
    loss, _ = strategy.loss(s.theta, s, both, env)
    losses = F.cross_entropy(env.net(s.theta, both.x, both.task), both.y, reduction="none")
    new, old = losses[:16].mean(), losses[16:].mean()
    expected = (16 * new + 10 * old) / 26 if weighting == "concatenation" else new / 3 + 2 * old / 3
    torch.testing.assert_close(loss, expected)
    assert {*both.task[16:].tolist()} <= {0, 1}


@pytest.mark.parametrize("benchmark", ["split_digits", "permuted_digits", "rotated_digits"])
def test_a_replayed_sample_looks_as_it_did_in_its_own_task(prepared, benchmark):
    strategy, env, s, batch = next_batch(
        prepared, f"benchmark={benchmark}", "benchmark.num_tasks=5"
    )
    both = strategy.join(s, batch, strategy.replay(s, batch, env))
    for x, y, row, task in zip(
        both.x[16:], both.y[16:], both.index[16:], both.task[16:], strict=True
    ):
        own = env.gather(row[None], int(task), s.t)
        assert torch.equal(own.x[0], x) and int(own.y[0]) == int(y)


def test_an_empty_buffer_changes_nothing(prepared):
    strategy, env, s, batch = next_batch(prepared, task=0)
    both = strategy.join(s, batch, strategy.replay(s, batch, env))
    assert both.weight is not None and both.weight.tolist() == [1.0] * 16 + [0.0] * 10
    loss, _ = strategy.loss(s.theta, s, both, env)
    plain, _ = strategy.loss(s.theta, s, batch, env)
    torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.buffer_size=0",), "strategy.buffer_size must lie between 1 and 1000000, got 0"),
        (("strategy.buffer_size=9", "strategy.policy=ring"), "one place for each of 10 classes"),
        (("strategy.buffer_size=9", "strategy.policy=herding"), "one place for each of 10 classes"),
        (("strategy.replay_batch_size=0",), "strategy.replay_batch_size"),
        (("strategy.policy=fifo",), "strategy.policy must be one of reservoir"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *overrides)
