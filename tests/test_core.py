"""Seeds, and a stream's behaviour as a list."""

from __future__ import annotations

import itertools

import pytest
import torch

from cl_runner.core import Stream, Task, TrainState, generator_for, seed_for

CPU = torch.device("cpu")


def test_seeds_are_what_they_always_were() -> None:
    # A change of these values changes every published number of this program.
    assert seed_for(0, "init") == 5621797835976536519
    assert seed_for(3, "order", 1, 2) == 1396460308359468686


def test_seeds_of_different_purposes_differ() -> None:
    seeds = [0, 1, 2, 10, 12]
    purposes = [
        *itertools.product(["order", "draw", "reservoir", "dropout"], range(12), range(12)),
        *itertools.product(["order", "fold", "buffer"], range(112)),
        *[("init",), ("subset",), ("order", "1"), ("order1",), ("order", 1, 1, 1), ()],
    ]
    values = [seed_for(seed, *purpose) for seed in seeds for purpose in purposes]
    assert len(set(values)) == len(seeds) * len(purposes)
    assert all(0 <= value < 2**63 for value in values)
    # Spread over the whole range: as many above the middle as below it.
    above = sum(value > 2**62 for value in values)
    assert abs(above / len(values) - 0.5) < 0.03


def test_generators_follow_the_purpose_and_leave_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        torch.rand(50, generator=generator_for(CPU, 0, purpose, 1)) for purpose in "aab"
    )
    assert torch.equal(first, again)
    assert not bool((first == other).any())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def stream() -> Stream:
    """Three tasks; each adds 100 times its number to the images."""
    rows = torch.arange(6)
    tasks = tuple(
        Task(t, (t,), (f"{t}",), rows[2 * t : 2 * t + 1], rows[2 * t + 1 : 2 * t + 2], rows[t:])
        for t in range(3)
    )
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 3, 4)
    return Stream(
        x=x,
        y=rows % 3,
        x_test=-x,
        y_test=(rows + 1) % 3,
        tasks=tasks,
        tables={"label": torch.arange(9).view(3, 3), "step": 100 * torch.arange(3)},
        num_classes=9,
        scenario="class",
        scale=torch.tensor([2.0, 10.0])[:, None, None],
        shift=torch.tensor([1.0, -1.0])[:, None, None],
        transform=lambda x, task, tables: x + tables["step"][task],
    )


def test_a_stream_is_like_a_list(stream: Stream) -> None:
    assert len(stream) == 3
    assert [task.index for task in stream] == [0, 1, 2]
    assert stream[1] is stream.tasks[1]
    assert stream[-1].index == 2
    assert [task.index for task in stream[1:]] == [1, 2]
    assert stream[:0] == ()
    assert list(stream) == list(stream)  # more than once
    with pytest.raises(IndexError):
        stream[3]


def test_shape_labels_and_normalisation(stream: Stream) -> None:
    assert stream.input_shape == (2, 3, 4)
    assert stream.labels(torch.tensor([0, 1, 5]), 1).tolist() == [3, 4, 5]
    assert stream.labels(torch.tensor([0, 1, 5]), torch.tensor([0, 1, 2])).tolist() == [0, 4, 8]
    x = stream.normalise(stream.images(torch.tensor([3]), 1))
    assert x[0, :, 0, 0].tolist() == [2 * 103 + 1, 10 * 103 - 1]


def test_held_out_samples_are_those_of_the_task_and_the_split(stream: Stream) -> None:
    for task in (*stream, *stream):  # the second time from the cache
        t = task.index
        images, y = stream.held_out("test", task)
        assert images[:, 0, 0, 0].tolist() == [100 * t - row for row in task.test.tolist()]
        assert y.tolist() == [3 * t + (row + 1) % 3 for row in task.test.tolist()]
        images, y = stream.held_out("validation", task)
        assert images[:, 0, 0, 0].tolist() == [100 * t + 2 * t + 1]
        assert y.tolist() == [3 * t + (2 * t + 1) % 3]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_held_out_images_are_transformed_once(stream: Stream, split: str) -> None:
    first = [stream.held_out(split, task)[0] for task in stream]
    again = [stream.held_out(split, task)[0] for task in stream]
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_a_stream_moves_to_a_device_as_a_whole(stream: Stream) -> None:
    moved = stream.on(torch.device("meta"))
    tensors = [stream.x, stream.y, stream.x_test, stream.y_test, stream.scale, stream.shift]
    others = [moved.x, moved.y, moved.x_test, moved.y_test, moved.scale, moved.shift]
    for task, other in zip(stream, moved, strict=True):
        tensors += [task.train, task.validation, task.test]
        others += [other.train, other.validation, other.test]
        assert (task.index, task.classes, task.names) == (other.index, other.classes, other.names)
    assert moved.tables.keys() == stream.tables.keys()
    tensors, others = [*tensors, *stream.tables.values()], [*others, *moved.tables.values()]
    for tensor, other in zip(tensors, others, strict=True):
        assert (other.device.type, other.shape) == ("meta", tensor.shape)
    assert moved.transform is stream.transform


def test_a_copy_with_other_values_has_all_fields_and_no_more():
    kept = {"a": torch.ones(1)}
    s = TrainState(torch.zeros(2), {}, {}, kept, torch.tensor(0))
    other = s._replace(theta=torch.ones(2))
    assert type(other) is TrainState and other.theta.tolist() == [1, 1]
    assert other.memory is kept and other[1:] == s[1:]
    with pytest.raises(TypeError, match="thetas"):
        s._replace(thetas=torch.ones(2))
