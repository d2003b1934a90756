"""Which training samples a task has: a long tail of classes, and samples of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_benchmarks import M, arrays, refused, stream_of

from cl_runner.config.benchmarks import (
    Conditions,
    LabelPermuted,
    Permuted,
    RandomLabels,
    Rotated,
    Split,
)
from cl_runner.config.schema import Benchmark
from cl_runner.core import Stream

DOMAINS = [Permuted, Rotated, Conditions, LabelPermuted, RandomLabels]


def counts(stream: Stream) -> list[int]:
    """The training samples of each class over all tasks, the largest first."""
    rows = torch.cat([task.train for task in stream])
    return sorted(stream.y[rows].bincount(minlength=10).tolist(), reverse=True)


# A long tail.


@pytest.mark.parametrize("imbalance", [100.0, 10.0, 7.5])
def test_classes_fall_off_exponentially(imbalance: float) -> None:
    stream = stream_of(data=arrays(n=5000), imbalance=imbalance)
    expected = [round(500 * imbalance ** (-c / 9)) for c in range(10)]
    assert counts(stream) == expected
    assert expected[0] == 500 and expected[-1] == round(500 / imbalance)
    assert [len(task.test) for task in stream] == [M // 5] * 5  # untouched


def test_the_order_of_the_classes_and_their_samples_are_drawn() -> None:
    def rows(seed: int) -> list[int]:
        stream = stream_of(data=arrays(n=1000), imbalance=50.0, seed=seed)
        assert all(torch.equal(t.train, t.train.unique()) for t in stream)
        return torch.cat([task.train for task in stream]).tolist()

    assert rows(0) == rows(0) != rows(1)
    by_class = [[sum(r % 10 == c for r in rows(seed)) for c in range(10)] for seed in (0, 1)]
    natural = sorted(by_class[0], reverse=True)
    assert sorted(by_class[0]) == sorted(by_class[1])
    assert by_class[0] != by_class[1]
    assert natural not in by_class


def test_every_class_keeps_a_sample() -> None:
    assert counts(stream_of(data=arrays(n=200), imbalance=1e6))[-1] == 1


@pytest.mark.parametrize("imbalance", [None, 1.0])
def test_without_imbalance_all_are_there(imbalance: float | None) -> None:
    assert counts(stream_of(data=arrays(n=500), imbalance=imbalance)) == [50] * 10


def test_a_tail_of_a_subset_leaves_the_validation_samples() -> None:
    keys = {"train_samples": 600, "validation_fraction": 0.25}
    plain, tail = (
        stream_of(Permuted, data=arrays(n=1000), **keys, **more)
        for more in ({}, {"imbalance": 20.0})
    )
    assert torch.equal(tail[0].validation, plain[0].validation)
    assert set(tail[0].train.tolist()) < set(plain[0].train.tolist())
    largest = max(plain.y[plain[0].train].bincount().tolist())
    own = tail.y[tail[0].train].bincount(minlength=10)
    assert all(torch.equal(task.train, tail[0].train) for task in tail)
    assert int(own.max()) <= largest and int(own.min()) == round(largest / 20)


# Samples of its own.


@pytest.mark.parametrize("schema", DOMAINS)
def test_each_task_draws_samples_anew(schema: type[Benchmark]) -> None:
    stream = stream_of(schema, "domain", samples_per_task=50)
    rows = [tuple(task.train.tolist()) for task in stream]
    for own in rows:
        assert len(own) == len(set(own)) == 50
        assert list(own) == sorted(own)
    assert len(set(rows)) == 5
    assert set(rows[0]) & set(rows[1])  # they may overlap
    again, other = (stream_of(schema, "domain", samples_per_task=50, seed=s) for s in (0, 1))
    assert torch.equal(again[3].train, stream[3].train)
    assert not torch.equal(other[3].train, stream[3].train)


@pytest.mark.parametrize("schema", DOMAINS)
def test_fresh_samples_are_no_other_tasks_as_long_as_there_are_any(
    schema: type[Benchmark],
) -> None:
    stream = stream_of(schema, "domain", samples_per_task=30, fresh=True)  # of 120
    rows = [set(task.train.tolist()) for task in stream]
    assert [len(own) for own in rows] == [30] * 5
    assert set.union(*rows[:4]) == set(range(120))  # four tasks have all, each once
    assert rows[4] not in rows[:4]  # the fifth begins a new pass, in another order


def test_a_pass_ends_where_too_few_are_left() -> None:
    stream = stream_of(Permuted, samples_per_task=50, fresh=True)  # two tasks to a pass of 120
    rows = [set(task.train.tolist()) for task in stream]
    assert all(len(own) == 50 for own in rows)
    assert not rows[0] & rows[1] and not rows[2] & rows[3]
    assert rows[0] & rows[2]


def test_samples_per_task_come_from_what_the_other_keys_leave() -> None:
    keys = {"train_samples": 80, "validation_fraction": 0.25}
    stream = stream_of(Permuted, samples_per_task=20, fresh=True, num_tasks=3, **keys)
    plain = stream_of(Permuted, num_tasks=3, **keys)
    pool = set(plain[0].train.tolist())
    rows = [set(task.train.tolist()) for task in stream]
    assert set.union(*rows) == pool and len(pool) == 60
    assert all(torch.equal(task.validation, plain[0].validation) for task in stream)


def test_a_split_task_draws_from_its_own_classes() -> None:
    stream = stream_of(samples_per_task=10)
    for task in stream:
        assert len(task.train) == 10
        assert set(stream.y[task.train].tolist()) == {2 * task.index, 2 * task.index + 1}


@pytest.mark.parametrize(
    ("schema", "keys", "words"),
    [
        (Permuted, {"samples_per_task": 121}, "samples_per_task=121 is more than the 120 training"),
        (Split, {"samples_per_task": 25}, "samples_per_task=25 is more than the 24 training"),
        (Permuted, {"fresh": True}, "benchmark.fresh=true needs benchmark.samples_per_task"),
        (Split, {"fresh": True, "samples_per_task": 5}, "benchmark.fresh has no meaning for b"),
        (Permuted, {"samples_per_task": 0}, "benchmark.samples_per_task must be at least 1"),
        (Split, {"imbalance": 0.5}, "benchmark.imbalance must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    schema: type[Benchmark], keys: dict[str, Any], words: str
) -> None:
    assert words in refused(schema, **keys)
