"""Streams whose boundaries are not sharp: what comes when, how often, and who is trained on it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from cl_runner import strategies
from cl_runner.data.boundaries import SHORTEST, blend, mixed_samples, random_lengths
from cl_runner.errors import UserError
from cl_runner.running import loop
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.naive import Naive

SMALL = (
    *("benchmark=split_digits", "benchmark.num_tasks=3", "benchmark.train_samples=150"),
    *("model.hidden_sizes=[20]", "training.batch_size=8", "verbose=false", "strategy=naive"),
    "training.epochs=1",
)


def order(env) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Rows and tasks of the whole stream in the order of time, and the lengths of its segments."""
    rows, of = torch.cat([t.train for t in env.stream]), torch.cat([t.of for t in env.stream])
    return rows, of, [len(task.train) for task in env.stream]


def test_the_share_of_the_next_task_rises_linearly() -> None:
    w, bins = 50_000, 20
    zero = torch.zeros(2 * w, dtype=torch.int64)
    segments = [(zero, zero), (zero + 1, zero + 1)]
    blend(segments, 0, w, seed=0)
    of = torch.cat([own for _, own in segments])
    assert of[:w].sum() == 0 and of[3 * w :].min() == 1  # nothing mixes further away
    share = of[w : 3 * w].view(bins, -1).float().mean(1)
    middle = (torch.arange(bins) + 0.5) / bins
    error = (middle * (1 - middle) / (2 * w / bins)).sqrt()
    assert ((share - middle).abs() < 4 * error + 0.005).all()


@pytest.mark.parametrize("more", [(), ("training.epochs=3",)])
def test_every_sample_comes_as_often_as_with_sharp_boundaries(prepared, more) -> None:
    _, _, sharp = prepared(*SMALL, *more)
    _, _, env = prepared(*SMALL, *more, "benchmark.boundaries=fuzzy", "benchmark.fuzzy_width=1")
    rows, of, lengths = order(env)
    epochs = 3 if more else 1
    assert lengths == [epochs * len(task.train) for task in sharp.stream]
    wanted = {(int(r), task.index): epochs for task in sharp.stream for r in task.train}
    assert Counter(zip(rows.tolist(), of.tolist(), strict=True)) == wanted
    mixed = [len(set(task.of.tolist())) for task in env.stream]
    assert mixed == [2, 3, 2]  # its own, and those of its neighbours
    for task in env.stream:
        assert (env.stream.labels(task.train, task.of) >= 0).all()  # its class is in its task


def test_the_rows_of_a_fuzzy_task_lie_where_the_width_says(prepared) -> None:
    _, _, env = prepared(*SMALL, "benchmark.boundaries=fuzzy", "benchmark.fuzzy_width=0.5")
    _, of, (a, b, c) = order(env)
    w = [mixed_samples(0.5, a, b), mixed_samples(0.5, b, c)]
    assert w == [int(0.25 * min(a, b)), int(0.25 * min(b, c))]
    pure = [of[: a - w[0]], of[a + w[0] : a + b - w[1]], of[a + b + w[1] :]]
    assert [own.unique().tolist() for own in pure] == [[0], [1], [2]]


def test_without_mixing_it_is_the_sharp_stream(prepared) -> None:
    """The order of a pass is that of an epoch."""
    thetas = []
    for more in ((), ("benchmark.boundaries=fuzzy", "benchmark.fuzzy_width=1e-9")):
        _, strategy, env = prepared(*SMALL, *more)
        s = initial_state(strategy, env)
        for task in env.stream:
            s = train_task(strategy, s, task, env)
        thetas.append(s.theta.detach().clone())
    assert torch.equal(*thetas)


def test_random_lengths_keep_the_sum_and_the_shortest() -> None:
    found = [random_lengths(1000, 5, seed) for seed in range(300)]
    assert all(sum(lengths) == 1000 and min(lengths) >= SHORTEST * 200 for lengths in found)
    assert len({tuple(lengths) for lengths in found}) == 300
    each = torch.tensor(found, dtype=torch.float64).mean(0)
    assert (each - 200).abs().max() < 40  # none is longer than the others on the average
    assert random_lengths(7, 1, 0) == [7]


def test_a_random_segment_repeats_or_leaves_out(prepared) -> None:
    case = (*SMALL, "benchmark.boundaries=random", "training.epochs=2")
    _, _, sharp = prepared(*SMALL)
    _, _, env = prepared(*case)
    _, _, lengths = order(env)
    assert sum(lengths) == 2 * 150
    for task, whole, n in zip(env.stream, sharp.stream, lengths, strict=True):
        assert task.of.unique().tolist() == [task.index]
        times = Counter(task.train.tolist())
        assert times.keys() <= set(whole.train.tolist())
        low, high = n // len(whole.train), -(-n // len(whole.train))
        assert {times.get(int(r), 0) for r in whole.train} <= {low, high}
    assert len(set(lengths)) > 1
    for other, same in (("seed=1 benchmark.seed=0", True), ("benchmark.seed=1", False)):
        assert (order(prepared(*case, *other.split())[2])[2] == lengths) == same


def test_iterations_are_so_many_batches(counted_run) -> None:
    _, _, env, counts = counted_run(
        *SMALL, "benchmark.boundaries=fuzzy", "training.iterations=9", tasks=3
    )
    assert counts == [(9, 72)] * 3
    assert env.training.epochs == 1


def test_the_steps_see_the_samples_in_the_order_of_the_stream(prepared, monkeypatch) -> None:
    _, strategy, env = prepared(*SMALL, "benchmark.boundaries=fuzzy")
    seen, step = [], Strategy.step

    def watched(self, s, batch, env):
        seen.append(torch.stack([batch.index, batch.task]))
        return step(self, s, batch, env)

    monkeypatch.setattr(Strategy, "step", watched)
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    rows, of, _ = order(env)
    assert torch.equal(torch.cat(seen, 1), torch.stack([rows, of]))


@pytest.mark.parametrize("policy", ["class_balanced", "herding"])
def test_a_buffer_keeps_the_true_task_of_mixed_samples(prepared, policy) -> None:
    _, strategy, env = prepared(
        *SMALL,
        *("strategy=er", "benchmark.boundaries=fuzzy", "training.epochs=2"),
        *(f"strategy.policy={policy}", "strategy.buffer_size=60", "benchmark.fuzzy_width=1"),
    )
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    index, task = s.memory["buffer_index"], s.memory["buffer_task"]
    held = index >= 0
    assert (env.stream.labels(index[held], task[held]) >= 0).all()
    assert set(task[held].tolist()) == {0, 1}
    assert len(index[held].unique()) == int(held.sum())  # each once, though it came twice


def test_a_pass_over_a_mixed_task_takes_each_sample_once(prepared) -> None:
    _, strategy, env = prepared(*SMALL, "benchmark.boundaries=fuzzy", "training.epochs=3")
    task = env.stream[1]
    s = initial_state(strategy, env)
    seen, n = env.fold(lambda found, batch: [*found, batch], [], s, task)
    pairs = {(int(i), int(t)) for b in seen for i, t in zip(b.index, b.task, strict=True)}
    assert n == sum(len(b.y) for b in seen) == len(pairs)
    assert pairs == set(zip(task.train.tolist(), task.of.tolist(), strict=True))


GROWING = {"expandable_head", "lucir", "wa"}  # a class has no output before its task


@pytest.mark.slow
@pytest.mark.parametrize("name", strategies.available())
@pytest.mark.parametrize("boundaries", ["fuzzy", "random"])
def test_who_chooses_the_samples_is_refused(prepared, name, boundaries) -> None:
    found = strategies.find(name)
    scenario = next(own for own in ("class", "domain", "task") if own in found.scenarios)
    case = (*SMALL, f"strategy={name}", f"benchmark.boundaries={boundaries}")
    case = (*case, f"scenario={scenario}", "benchmark.num_tasks=2", "strategy.buffer_size=50")
    if "buffer_size" not in found.__dataclass_fields__:
        case = case[:-1]
    chooses = found.training_set is not Naive.training_set
    expected = chooses or (boundaries == "fuzzy" and (scenario == "task" or name in GROWING))
    if not expected:
        prepared(*case)
        return
    with pytest.raises(UserError, match="boundaries=") as refused:
        prepared(*case)
    assert "\n" not in str(refused.value) and boundaries in str(refused.value)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("benchmark.boundaries=blurred", "benchmark.boundaries must be one of"),
        ("benchmark.fuzzy_width=0", "benchmark.fuzzy_width must lie in"),
        ("benchmark.fuzzy_width=1.1", "benchmark.fuzzy_width must lie in"),
        ("benchmark.boundaries=fuzzy training.active_classes=seen", "training.active_classes=seen"),
    ],
)
def test_what_cannot_be_is_one_line(configure, more, named) -> None:
    with pytest.raises(UserError, match=named):
        configure(*SMALL, *more.split())


@pytest.mark.parametrize("boundaries", ["fuzzy", "random"])
def test_a_killed_run_goes_on(configure, monkeypatch, tmp_path, boundaries) -> None:
    case = (*SMALL, f"benchmark.boundaries={boundaries}", "strategy=er", "strategy.buffer_size=40")
    loop.run(configure(*case), tmp_path / "whole")

    class Killed(BaseException):
        pass

    save, count = loop.save, iter(range(10**6))

    def ending(*args):
        save(*args)
        if next(count) == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", ending)
        with pytest.raises(Killed):
            loop.run(configure(*case, "checkpoint.every_steps=3"), tmp_path / "killed")
    loop.run(configure(*case, "resume=true"), tmp_path / "killed")
    for name in ("accuracy_matrix.csv", "accuracies.csv"):
        whole, killed = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()
