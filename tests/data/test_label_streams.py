"""Streams that show the same images under other labels: permuted, or drawn for each image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_benchmarks import M, N, arrays, refused, stream_of

from cl_runner.config.benchmarks import LabelPermuted, RandomLabels
from cl_runner.training.env import own_classes

ROWS = torch.arange(N)
SCENARIOS = ("task", "domain", "class")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_permuted_labels_are_those_of_the_data_in_another_order(scenario: str) -> None:
    stream = stream_of(LabelPermuted, scenario, num_tasks=4)
    orders = []
    for task in stream:
        first = 0 if scenario == "domain" else 10 * task.index
        assert task.classes == tuple(range(first, first + 10))
        labels = stream.labels(ROWS, task.index)
        order = (labels[:10] - first).tolist()  # of the classes 0 .. 9, which go round
        assert sorted(order) == list(range(10))
        assert torch.equal(labels - first, torch.tensor(order)[stream.y])
        assert torch.equal(
            stream.held_out("test", task)[1] - first, torch.tensor(order)[ROWS[:M] % 10]
        )
        assert [task.names[k] for k in order] == [f"class {c}" for c in range(10)]
        assert torch.equal(stream.images(ROWS, task.index), stream.x)
        orders.append(tuple(order))
    assert len(set(orders)) == 4
    assert stream.num_classes == (10 if scenario == "domain" else 40)


def test_the_first_task_may_have_the_labels_of_the_data() -> None:
    stream, other = (stream_of(LabelPermuted, "domain", first_identity=f) for f in (True, False))
    assert torch.equal(stream.label[0], torch.arange(10))
    assert not torch.equal(other.label[0], torch.arange(10))
    assert torch.equal(stream.label[1:], other.label[1:])


@pytest.mark.parametrize("schema", [LabelPermuted, RandomLabels])
def test_labels_are_decided_by_the_benchmarks_seed(schema: type) -> None:
    first, again, other = (stream_of(schema, "domain", seed=s).label for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(stream_of(schema, "domain", seed=3, num_tasks=9).label[:5], first)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_random_labels_are_drawn_for_each_image_and_task(scenario: str) -> None:
    data = arrays(classes=3, n=900)
    stream = stream_of(RandomLabels, scenario, data, num_tasks=4, train_samples=600)
    own = [stream.labels(task.train, task.index) for task in stream]
    for task, labels in zip(stream, own, strict=True):
        first = 0 if scenario == "domain" else 3 * task.index
        assert task.classes == (first, first + 1, first + 2)
        assert task.names == ("class 0", "class 1", "class 2")
        assert len(task.train) == 600
        counts = (labels - first).bincount(minlength=3)
        assert len(counts) == 3 and int(counts.min()) > 150
        # They say nothing about the image, nor about its label in another task.
        agree = ((labels - first) == data.y_train[task.train]).float().mean()
        assert float(agree) == pytest.approx(1 / 3, abs=0.07)
    same = (own[0] % 3 == own[1] % 3).float().mean()
    assert float(same) == pytest.approx(1 / 3, abs=0.07)
    assert stream.num_classes == (3 if scenario == "domain" else 12)
    assert own_classes(stream).sum(1).tolist() == [3] * 4


def test_what_is_tested_is_the_memory_of_the_training_images() -> None:
    stream = stream_of(RandomLabels, "domain", samples_per_task=30)
    for task in stream:
        images, labels = stream.held_out("test", task)
        assert torch.equal(images, stream.images(task.train, task.index))
        assert torch.equal(labels, stream.labels(task.train, task.index))
        assert len(labels) == 30


@pytest.mark.parametrize(
    "keys", [{"validation_fraction": 0.1}, {"imbalance": 10.0}], ids=lambda keys: next(iter(keys))
)
def test_what_random_labels_have_no_use_for_is_refused(keys: dict[str, Any]) -> None:
    (name,) = keys
    assert f"benchmark.{name} has no meaning for b" in refused(RandomLabels, **keys)
