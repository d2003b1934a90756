"""Streams: who belongs to which task, under which label, and what a task does to the images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cl_runner.config.benchmarks import Conditions, Permuted, Rotated, Split
from cl_runner.config.schema import Benchmark
from cl_runner.core import Stream
from cl_runner.data.benchmarks import KINDS, build_stream
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import pad
from cl_runner.errors import UserError

N, M = 120, 40  # training and test samples


def arrays(
    classes: int = 10, shape: tuple[int, ...] = (1, 6, 6), *, floating: bool = False, n: int = N
) -> Arrays:
    """Random images; the labels go round, so that all classes are of one size."""
    generator = torch.Generator().manual_seed(0)

    def images(number: int) -> Tensor:
        x = torch.randint(256, (number, *shape), generator=generator, dtype=torch.uint8)
        return x / 255 if floating else x

    names = tuple(f"class {c}" for c in range(classes))
    return Arrays(images(n), torch.arange(n) % classes, images(M), torch.arange(M) % classes, names)


def stream_of(
    schema: type[Benchmark] = Split,
    scenario: str = "class",
    data: Arrays | None = None,
    augmented: bool = False,
    **keys: Any,
) -> Stream:
    kind = next(kind for kind, (own, _) in KINDS.items() if own is schema)
    common = {"name": "b", "kind": kind, "dataset": "d", "num_tasks": 5, "seed": 0}
    defaults = {"default_scenario": "class", "default_epochs": 1}
    config = schema(**{**common, **defaults, **keys})
    data = data or arrays()
    return build_stream(config, scenario, data, torch.device("cpu"), augmented=augmented)


def refused(*args: Any, **keys: Any) -> str:
    """The message of the UserError; always one line."""
    with pytest.raises(UserError) as caught:
        stream_of(*args, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dataset_classes(stream: Stream) -> list[list[int]]:
    """The data set's classes in each task's training rows."""
    return [sorted(set(stream.y[task.train].tolist())) for task in stream]


# Split benchmarks.


def test_natural_order_takes_the_classes_one_after_another() -> None:
    stream = stream_of()
    assert dataset_classes(stream) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [task.names for task in stream][1] == ("class 2", "class 3")
    assert [task.index for task in stream] == [0, 1, 2, 3, 4]


def test_shuffled_order_is_decided_by_the_benchmarks_seed() -> None:
    first, again, other = (
        dataset_classes(stream_of(class_order="shuffled", seed=seed)) for seed in (1, 1, 2)
    )
    natural = dataset_classes(stream_of())
    assert first == again
    assert first != other
    assert natural not in (first, other)
    for order in (first, other):
        assert sorted(c for classes in order for c in classes) == list(range(10))


def test_listed_classes_alone_are_used_in_that_order_or_shuffled() -> None:
    stream = stream_of(classes=[7, 2, 9, 0], num_tasks=2)
    assert dataset_classes(stream) == [[2, 7], [0, 9]]
    assert [task.names for task in stream] == [("class 7", "class 2"), ("class 9", "class 0")]
    assert [task.classes for task in stream] == [(0, 1), (2, 3)] and stream.num_classes == 4
    assert stream.labels(stream[0].train, 0).unique().tolist() == [0, 1]
    assert sum(len(task.test) for task in stream) == 4 * M // 10
    shared = stream_of(Split, "domain", classes=[7, 2, 9, 0], num_tasks=2)
    assert shared.num_classes == 2 and dataset_classes(shared) == [[2, 7], [0, 9]]
    orders = [
        dataset_classes(
            stream_of(classes=[7, 2, 9, 0], num_tasks=4, class_order="shuffled", seed=s)
        )
        for s in range(5)
    ]
    assert all(sorted(c for task in order for c in task) == [0, 2, 7, 9] for order in orders)
    assert len({str(order) for order in orders}) > 1


def test_classes_that_are_not_there_or_too_few_are_refused() -> None:
    assert refused(classes=[3, 10]) == "benchmark.classes: d has 10 classes, 0 to 9, and no 10"
    assert "num_tasks=5 is more than the 2 classes of benchmark.classes" in refused(classes=[3, 4])
    message = refused(Split, "domain", classes=[1, 2, 3], num_tasks=2)
    assert "num_tasks=2 does not divide the 3 classes of benchmark.classes" in message


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("order", ["natural", "shuffled"])
@pytest.mark.parametrize(("classes", "tasks"), [(10, 5), (10, 3), (7, 4), (4, 4), (5, 1)])
def test_every_sample_is_in_one_task_under_its_label(
    classes: int, tasks: int, order: str, scenario: str
) -> None:
    keys = {"class_order": order, "num_tasks": tasks, "seed": 3}
    if scenario == "domain" and classes % tasks:  # outputs that tasks share would be unlike
        message = f"num_tasks={tasks} does not divide the {classes} classes"
        with pytest.raises(UserError, match=message):
            stream_of(Split, scenario, arrays(classes), **keys)
        return
    stream = stream_of(Split, scenario, arrays(classes), **keys)
    sizes = [len(task.names) for task in stream]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)  # the first tasks have one more
    rows = torch.cat([task.train for task in stream])
    assert sorted(rows.tolist()) == list(range(N))
    test_rows = torch.cat([task.test for task in stream])
    assert sorted(test_rows.tolist()) == list(range(M))

    first = 0
    for task, size in zip(stream, sizes, strict=True):
        start = 0 if scenario == "domain" else first
        assert task.classes == tuple(range(start, start + size))
        first += size
        for row in task.train.tolist():  # label k of a task is the k-th of its names
            name = f"class {int(stream.y[row])}"
            label = stream.labels(torch.tensor([row]), task.index).item()
            assert task.names[task.classes.index(label)] == name
        _, y = stream.held_out("test", task)
        names = [task.names[task.classes.index(label)] for label in y.tolist()]
        assert names == [f"class {int(c)}" for c in stream.y_test[task.test]]
    assert stream.num_classes == (max(sizes) if scenario == "domain" else classes)


def test_split_benchmarks_leave_the_images_alone() -> None:
    data = arrays()
    stream = stream_of(data=data)
    rows = torch.tensor([5, 3, 90])
    assert torch.equal(stream.images(rows, 2), data.x_train[rows])
    images, _ = stream.held_out("test", stream[1])
    assert torch.equal(images, data.x_test[stream[1].test])


def test_an_unknown_kind_is_refused_and_says_what_there_is() -> None:
    message = r"benchmark\.kind must be one of split, permuted, rotated.*, got 'k'; is it in a "
    with pytest.raises(UserError, match=message):
        stream_of(kind="k")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: None, "kind=split: stream() must return a Stream"),
        (lambda s: replace(s, tasks=s.tasks[:3]), "kind=split: stream() has 3 tasks, not 5"),
        (
            lambda s: replace(s, tables={**s.tables, "gain": torch.ones(4)}),
            "kind=split: table gain must have a row for each of 5 tasks",
        ),
    ],
)
def test_a_function_that_makes_no_such_stream_is_told(change, words, monkeypatch) -> None:
    schema, function = KINDS["split"]
    changed = lambda *args: change(function(*args))  # noqa: E731
    monkeypatch.setitem(KINDS, "split", (schema, changed))
    assert words in refused()


def test_more_tasks_than_classes_are_refused() -> None:
    assert "benchmark.num_tasks=11" in refused(num_tasks=11)


# What all benchmarks have in common.


@pytest.mark.parametrize("schema", [Permuted, Rotated, Conditions])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_domains_share_all_samples_and_only_in_domain_il_the_outputs(
    schema: type[Benchmark], scenario: str
) -> None:
    stream = stream_of(schema, scenario, num_tasks=3)
    rows = torch.arange(N)
    for task in stream:
        offset = 0 if scenario == "domain" else 10 * task.index
        assert torch.equal(task.train, rows)
        assert task.classes == tuple(range(offset, offset + 10))
        assert task.names == tuple(f"class {c}" for c in range(10))
        assert torch.equal(stream.labels(rows, task.index), rows % 10 + offset)
        assert torch.equal(stream.held_out("test", task)[1], torch.arange(M) % 10 + offset)
    assert stream.num_classes == (10 if scenario == "domain" else 30)
    tasks = torch.tensor([2, 0, 1])  # one task per sample
    labels = stream.labels(torch.tensor([11, 12, 13]), tasks)
    expected = torch.tensor([1, 2, 3]) + (0 if scenario == "domain" else 10 * tasks)
    assert torch.equal(labels, expected)


@pytest.mark.parametrize("schema", [Split, Permuted, Rotated, Conditions])
@pytest.mark.parametrize(
    ("keys", "train", "validation"),
    [
        ({}, N, 0),
        ({"train_fraction": 0.5}, N // 2, 0),
        ({"train_samples": 100}, 100, 0),
        ({"validation_fraction": 0.25}, 90, 30),
        ({"train_samples": 100, "validation_fraction": 0.3}, 70, 30),
        ({"train_fraction": 0.75, "validation_fraction": 0.4}, 54, 36),
    ],
)
def test_subsets_have_their_size_and_are_disjoint(
    schema: type[Benchmark], keys: dict[str, Any], train: int, validation: int
) -> None:
    stream = stream_of(schema, "domain", **keys)
    chosen = {row for task in stream for row in task.train.tolist()}
    held_out = {row for task in stream for row in task.validation.tolist()}
    assert len(chosen) == train
    assert len(held_out) == validation
    assert not chosen & held_out
    for task in stream:
        assert torch.equal(task.train, task.train.sort().values)
        assert len(task.train.unique()) == len(task.train)
    if keys:
        assert chosen != set(range(len(chosen)))  # random rows, not the first ones
        other = stream_of(schema, "domain", **keys, seed=1)
        assert chosen != {row for task in other for row in task.train.tolist()}
        again = stream_of(schema, "domain", **keys)
        assert chosen == {row for task in again for row in task.train.tolist()}


def test_test_samples_are_an_array_of_their_own() -> None:
    # Rows of `test` count in x_test: training images are bright here, test images dark.
    data = arrays()
    data = data._replace(x_train=data.x_train | 128, x_test=data.x_test & 127)
    for schema in (Split, Permuted, Rotated):
        keys = {"angles": [0.0, 90.0, 180.0, 270.0, 360.0]} if schema is Rotated else {}
        stream = stream_of(schema, data=data, validation_fraction=0.2, **keys)
        for task in stream:
            assert int(stream.images(task.train, task.index).min()) >= 128
            assert int(stream.held_out("validation", task)[0].min()) >= 128
            assert int(stream.held_out("test", task)[0].max()) < 128
            assert len(task.test) == len(stream.held_out("test", task)[0]) > 0


def test_validation_samples_are_shown_as_the_task_shows_them() -> None:
    stream = stream_of(Permuted, "class", num_tasks=3, validation_fraction=0.2)
    for task in stream:
        images, y = stream.held_out("validation", task)
        assert torch.equal(images, stream.images(task.validation, task.index))
        assert torch.equal(y, stream.labels(task.validation, task.index))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"train_samples": N + 1}, "benchmark.train_samples=121"),
        ({"train_samples": 1}, "benchmark.train_samples"),
        ({"train_fraction": 0.001}, "benchmark.train_fraction"),
        ({"validation_fraction": 0.99}, "benchmark.validation_fraction"),
        ({"validation_fraction": 0.001}, "benchmark.validation_fraction"),
        ({"pad_to": 5}, "benchmark.pad_to=5"),
        ({"mean": [0.1, 0.2], "std": [1.0, 1.0]}, "benchmark.std"),
        ({"mean": [0.1, 0.2], "std": [1.0]}, "benchmark.mean"),
    ],
)
def test_what_the_data_cannot_give_is_refused(keys: dict[str, Any], named: str) -> None:
    assert named in refused(**keys)


def test_a_task_without_test_samples_is_refused() -> None:
    data = arrays()
    kept = data.y_test < 8
    data = data._replace(x_test=data.x_test[kept], y_test=data.y_test[kept])
    assert "task 5" in refused(data=data)


@pytest.mark.parametrize("schema", [Permuted, Rotated, Conditions])
def test_augmentation_is_for_split_benchmarks(schema: type[Benchmark]) -> None:
    assert "training.augment" in refused(schema, augmented=True)
    assert len(stream_of(Split, augmented=True)) == 5


@pytest.mark.parametrize("size", [6, 7, 8, 13])
def test_padding_puts_zeros_around(size: int) -> None:
    x = arrays(shape=(2, 6, 5)).x_train
    padded = pad(x, size)
    assert padded.shape == (N, 2, size, size)
    top, left = (size - 6) // 2, (size - 5) // 2
    assert torch.equal(padded[:, :, top : top + 6, left : left + 5], x)
    assert padded.sum() == x.sum()
    assert pad(x, None) is x


def test_padding_comes_before_the_tasks_transform() -> None:
    stream = stream_of(Permuted, "domain", pad_to=8)
    assert stream.input_shape == (1, 8, 8)
    # Some of the zeros around the image have moved into it.
    shown = stream.held_out("test", stream[1])[0]
    assert bool((shown[:, :, 0] != 0).any())


@pytest.mark.parametrize("schema", [Split, Rotated])
def test_feature_vectors_have_no_images_transforms(schema: type[Benchmark]) -> None:
    data = arrays(shape=(1, 1, 30), floating=True)
    if schema is Rotated:
        assert "needs images" in refused(Rotated, data=data)
    assert "benchmark.pad_to" in refused(schema, data=data, pad_to=40)
    assert stream_of(Split, data=data).input_shape == (1, 1, 30)
    assert stream_of(Permuted, data=data).input_shape == (1, 1, 30)


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("one_for_all", [False, True])
def test_normalisation_by_the_datas_own_moments(floating: bool, one_for_all: bool) -> None:
    data = arrays(shape=(3, 6, 6), floating=floating)
    unit = data.x_train.double() / (1 if floating else 255)
    dims = (0, 1, 2, 3) if one_for_all else (0, 2, 3)
    mean, std = unit.mean(dims).reshape(-1), unit.std(dims, correction=0).reshape(-1)
    stream = stream_of(data=data, mean=mean.tolist(), std=std.tolist())
    x = stream.normalise(stream.images(torch.arange(N), 0))
    assert x.dtype == torch.float32
    normalised = x.double()
    assert normalised.mean(dims).abs().max() < 1e-5
    assert (normalised.std(dims, correction=0) - 1).abs().max() < 1e-5
    expected = (unit - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalised, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("floating", [False, True])
def test_inputs_are_made_beside_the_images(floating: bool) -> None:
    """The held-out images are kept, so that an input made in their place would change them."""
    stream = stream_of(data=arrays(floating=floating), mean=[0.5], std=[0.25])
    images = stream.held_out("test", stream[0])[0]
    before = images.clone()
    first, second = stream.normalise(images), stream.normalise(images)
    assert torch.equal(images, before)
    assert torch.equal(first, second)


@pytest.mark.parametrize("floating", [False, True])
def test_without_normalisation_inputs_lie_in_0_to_1(floating: bool) -> None:
    data = arrays(floating=floating)
    stream, before = stream_of(data=data), data.x_train.clone()
    x = stream.normalise(stream.images(torch.arange(N), 0))
    expected = before.float() / (1 if floating else 255)
    torch.testing.assert_close(x, expected)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (0, 1)
    x.zero_()
    assert torch.equal(stream.x, before)


# Permutations.


def test_permutations_move_pixels_and_nothing_else() -> None:
    # Values that count the pixels reveal where each one went.
    data = arrays(shape=(3, 5, 4))
    numbered = torch.arange(20, dtype=torch.uint8).view(1, 1, 5, 4).expand(N, 3, 5, 4)
    channel = 20 * torch.arange(3, dtype=torch.uint8)[:, None, None]
    data = data._replace(x_train=numbered + channel, x_test=(numbered + channel)[:M])
    stream = stream_of(Permuted, data=data, num_tasks=4)
    orders = []
    for task in stream:
        shown = stream.images(task.train, task.index)
        order = shown[0, 0].flatten()
        assert sorted(order.tolist()) == list(range(20))  # a bijection
        assert torch.equal(shown, shown[:1].expand_as(shown))  # the same for all samples
        assert torch.equal(shown[0] - channel, order.view(1, 5, 4).expand(3, 5, 4))  # and channels
        assert torch.equal(stream.held_out("test", task)[0], shown[:M])  # and splits
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) == 4
    assert tuple(range(20)) not in orders


def test_first_identity() -> None:
    stream = stream_of(Permuted, first_identity=True)
    other = stream_of(Permuted, first_identity=False)
    rows = torch.arange(N)
    assert torch.equal(stream.images(rows, 0), stream.x)
    for t in range(1, 5):  # the other tasks stay what they are
        assert torch.equal(stream.images(rows, t), other.images(rows, t))


def test_permutations_are_decided_by_the_benchmarks_seed() -> None:
    rows = torch.arange(N)
    first, again, other = (stream_of(Permuted, seed=seed).images(rows, 1) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    longer = stream_of(Permuted, seed=4, num_tasks=9)  # more tasks change no earlier one
    assert torch.equal(longer.images(rows, 1), first)


@pytest.mark.parametrize("schema", [Permuted, Rotated, Conditions])
@pytest.mark.parametrize("floating", [False, True])
def test_one_task_for_all_or_one_for_each_give_the_same_images(
    schema: type[Benchmark], floating: bool
) -> None:
    stream = stream_of(schema, data=arrays(shape=(2, 6, 5), floating=floating))
    rows = torch.tensor([3, 3, 50, 7, 8, 119])
    tasks = torch.tensor([0, 1, 4, 4, 2, 3])
    mixed = stream.images(rows, tasks)
    for i, (row, t) in enumerate(zip(rows, tasks.tolist(), strict=True)):
        alone = stream.images(row[None], t)[0]
        assert torch.equal(mixed[i], alone)
    assert mixed.dtype == stream.x.dtype
    assert not torch.equal(mixed[0], mixed[1])


@pytest.mark.parametrize("schema", [Permuted, Rotated, Conditions])
def test_transforms_take_an_empty_batch(schema: type[Benchmark]) -> None:
    stream = stream_of(schema)
    none = torch.zeros(0, dtype=torch.int64)
    assert stream.images(none, 1).shape == stream.images(none, none).shape == (0, 1, 6, 6)


# Rotations.


def photograph(height: int, width: int, channels: int = 1) -> Tensor:
    """Smooth images, uint8: interpolation is meaningful on them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.linspace(0, 1, height)[:, None]
    columns = torch.linspace(0, 1, width)
    waves = torch.rand(N, channels, 4, 1, 1, generator=generator)
    a, b, c, d = (6 * waves).unbind(2)
    return (255 * (0.5 + 0.5 * torch.sin(a * rows + b * columns + c + d * rows * columns))).byte()


def rotated(x: Tensor, angles: list[float], **keys: Any) -> Stream:
    data = arrays(n=len(x))._replace(x_train=x, x_test=x[:M])
    return stream_of(Rotated, "domain", data, angles=angles, num_tasks=len(angles), **keys)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 7, 7), (2, 5, 8)])
def test_0_degrees_is_the_identity_and_180_turns_upside_down(shape: tuple[int, int, int]) -> None:
    x = arrays(shape=shape).x_train
    stream = rotated(x, [0.0, 180.0, 360.0])
    rows = torch.arange(N)
    assert torch.equal(stream.images(rows, 0), x)
    assert torch.equal(stream.images(rows, 1), x.flip(2, 3))
    assert torch.equal(stream.images(rows, 2), x)


@pytest.mark.parametrize("side", [6, 7])
def test_multiples_of_90_degrees_turn_counter_clockwise(side: int) -> None:
    x = arrays(shape=(2, side, side)).x_train
    stream = rotated(x, [90.0, 270.0, -90.0])
    rows = torch.arange(N)
    assert torch.equal(stream.images(rows, 0), torch.rot90(x, 1, (2, 3)))
    assert torch.equal(stream.images(rows, 1), torch.rot90(x, 3, (2, 3)))
    assert torch.equal(stream.images(rows, 2), torch.rot90(x, 3, (2, 3)))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (21, 30)])
@pytest.mark.parametrize("angle", [10.0, 37.5, 72.0, -20.0, 162.0])
def test_other_angles_are_those_of_pil(angle: float, height: int, width: int) -> None:
    x = photograph(height, width)
    turned = rotated(x, [angle]).images(torch.arange(20), 0).numpy()
    # Within the inscribed circle nothing outside the image plays a part.
    rows, columns = np.ogrid[:height, :width]
    radius = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2)
    interior = radius < min(height, width) / 2 - 1.5
    for i in range(20):
        image = Image.fromarray(x[i, 0].numpy()).rotate(angle, Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(image).astype(int) - turned[i, 0].astype(int))
        assert difference[interior].max() <= 1  # PIL rounds in its own way
    unturned = np.abs(x[:20].numpy().astype(int) - turned.astype(int))
    assert unturned[:, 0, interior].max() > 10


def test_zeros_come_from_outside() -> None:
    x = torch.full((N, 1, 9, 9), 200, dtype=torch.uint8)
    turned = rotated(x, [45.0]).images(torch.arange(3), 0)[:, 0]
    for row, column in ((0, 0), (0, 8), (8, 0), (8, 8)):
        assert bool((turned[:, row, column] == 0).all())
    assert bool((turned[:, 4, :] == 200).all())


def test_uint8_images_are_rounded_and_floating_ones_are_not() -> None:
    x = photograph(12, 12)
    whole = rotated(x, [30.0]).images(torch.arange(N), 0)
    exact = rotated(x.float(), [30.0]).images(torch.arange(N), 0)
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, exact.round().byte())
    assert not torch.equal(exact, exact.round())


def test_the_chunks_of_a_large_batch_are_put_together() -> None:
    x = arrays(shape=(1, 4, 4)).x_train
    stream = rotated(x, [20.0, 50.0])
    rows = torch.arange(5000) % N  # more than one chunk
    tasks = torch.randint(2, (5000,), generator=torch.Generator().manual_seed(0))
    for task in (1, tasks):
        images = stream.images(rows, task)
        for at in range(0, 5000, 1000):
            part = slice(at, at + 1000)
            own = task if isinstance(task, int) else task[part]
            assert torch.equal(images[part], stream.images(rows[part], own))


def angle_of(stream: Stream, t: int) -> float:
    """The angle by which task t turns the positive column axis, measured on the sampling grid."""
    right = stream.tables["grid"][t, :, -1].double().mean(0)  # the centre of the right edge
    left = stream.tables["grid"][t, :, 0].double().mean(0)
    # The image's content turns counter-clockwise where the grid turns clockwise (rows go down).
    return float(torch.rad2deg(torch.atan2((right - left)[1], (right - left)[0]))) % 360


@pytest.mark.parametrize("max_angle", [180.0, 90.0])
def test_even_angles_start_at_0_and_exclude_the_last(max_angle: float) -> None:
    stream = stream_of(Rotated, max_angle=max_angle)
    expected = [i * max_angle / 5 for i in range(5)]
    assert [angle_of(stream, t) for t in range(5)] == pytest.approx(expected, abs=1e-4)


def test_explicit_angles_override_the_others() -> None:
    angles = [10.0, 350.0, 0.0, 45.0, 5.0]
    stream = stream_of(Rotated, angles=angles, max_angle=30.0, angle_spacing="random")
    assert [angle_of(stream, t) for t in range(5)] == pytest.approx(angles, abs=1e-4)


def test_random_angles_are_uniform_and_decided_by_the_benchmarks_seed() -> None:
    def angles(seed: int, tasks: int = 5) -> list[float]:
        stream = stream_of(
            Rotated, angle_spacing="random", max_angle=90.0, seed=seed, num_tasks=tasks
        )
        return [angle_of(stream, t) for t in range(tasks)]

    assert angles(0) == angles(0) != angles(1)
    many = angles(2, 400)
    assert all(0 <= angle < 90 for angle in many)
    share = np.histogram(many, bins=4, range=(0, 90))[0] / 400
    assert np.abs(share - 0.25).max() < 0.1
