"""A sequence of data sets: padded, on common channels, each a task under its own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_benchmarks import stream_of

from cl_runner.config import outline
from cl_runner.config.benchmarks import Sequence
from cl_runner.core import Stream
from cl_runner.data import sequences, sources
from cl_runner.data.datasets import CLASSES, Arrays
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows

SHAPES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "digits": (1, 8, 8)}
SHAPES |= {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is read, in place of real data: two training images of each class."""
    names: list[str] = []

    def load(dataset: str, *_: Any) -> Arrays:
        names.append(dataset)
        K, shape = len(CLASSES[dataset]), SHAPES[dataset]
        generator = torch.Generator().manual_seed(len(dataset))
        x = torch.randint(1, 256, (3 * K, *shape), generator=generator, dtype=torch.uint8)
        y = torch.arange(3 * K) % K
        return Arrays(x[: 2 * K], y[: 2 * K], x[2 * K :], y[2 * K :], CLASSES[dataset])

    monkeypatch.setattr(sources, "load", load)
    return names


def config(datasets: list[str], **keys: Any) -> Sequence:
    common = {"name": "sequence", "kind": "sequence", "dataset": "sequence", "seed": 0}
    defaults = {"default_scenario": "class", "default_epochs": 1}
    return Sequence(datasets=datasets, **{**common, **defaults, **keys})


def read(datasets: list[str], **keys: Any) -> Arrays:
    return sequences.read_sequence(config(datasets, **keys), sources.load)


def built(datasets: list[str], scenario: str = "class", **keys: Any) -> Stream:
    return stream_of(Sequence, scenario, read(datasets), datasets=datasets, num_tasks=None, **keys)


def test_images_are_padded_to_the_largest_and_grey_ones_get_colours() -> None:
    arrays = read(["digits", "mnist", "cifar10"])
    assert arrays.x_train.shape == (60, 3, 32, 32)
    assert arrays.x_test.shape == (30, 3, 32, 32)
    assert arrays.x_train.dtype == torch.uint8
    for first, side in ((0, 8), (20, 28), (40, 32)):
        part, edge = arrays.x_train[first : first + 20], (32 - side) // 2
        inner = part[:, :, edge : 32 - edge, edge : 32 - edge]
        assert int(inner.min()) >= 1 and inner.shape[2:] == (side, side)
        assert int(part.sum()) == int(inner.sum())  # zeros around it
        same = bool((part[:, 0] == part[:, 1]).all() and (part[:, 0] == part[:, 2]).all())
        assert same == (first < 40)
    alone = sources.load("digits")
    assert torch.equal(arrays.x_train[:20, 1, 12:20, 12:20], alone.x_train[:, 0])


def test_grey_data_sets_stay_grey() -> None:
    assert read(["mnist", "digits"]).x_train.shape == (40, 1, 28, 28)


def test_a_task_is_a_data_set_under_its_name() -> None:
    stream = built(["mnist", "fashion_mnist", "digits"])
    assert [task.title for task in stream] == ["mnist", "fashion_mnist", "digits"]
    assert [len(task.train) for task in stream] == [20] * 3
    assert [len(task.test) for task in stream] == [10] * 3
    for t, task in enumerate(stream):
        assert task.train.tolist() == list(range(20 * t, 20 * t + 20))
        assert task.test.tolist() == list(range(10 * t, 10 * t + 10))
    assert stream[0].names[3] == "mnist/3"
    assert stream[1].names[9] == "fashion_mnist/Ankle boot"
    assert stream[2].names == tuple(f"digits/{c}" for c in range(10))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_every_data_set_has_outputs_of_its_own(scenario: str) -> None:
    stream = built(["cifar10", "cifar100", "digits"], scenario)
    assert [len(task.classes) for task in stream] == [10, 100, 10]
    assert [c for task in stream for c in task.classes] == list(range(120))
    assert stream.num_classes == 120
    for task in stream:
        labels = stream.labels(task.train, task.index) - task.classes[0]
        assert torch.equal(labels, torch.arange(len(task.train)) % len(task.classes))


def test_domains_share_the_outputs() -> None:
    stream = built(["mnist", "fashion_mnist", "digits"], "domain")
    assert stream.num_classes == 10
    for task in stream:
        assert task.classes == tuple(range(10))
        assert torch.equal(stream.labels(task.train, task.index), torch.arange(20) % 10)
        assert torch.equal(stream.held_out("test", task)[1], torch.arange(10))
        assert task.names == tuple(f"{task.title}/{c}" for c in CLASSES[task.title])


def test_domains_need_as_many_classes_each() -> None:
    with pytest.raises(UserError) as caught:
        built(["cifar10", "cifar100"], "domain")
    assert str(caught.value).endswith("benchmark.datasets have 10 of cifar10, 100 of cifar100")


def test_a_data_set_may_come_again(loaded: list[str]) -> None:
    stream = built(["digits", "mnist", "digits"])
    assert loaded == ["digits", "mnist"]  # it is read once
    assert [task.title for task in stream] == ["digits", "mnist", "digits 2"]
    assert stream[2].names[0] == "digits 2/0"
    shown = [stream.images(stream[t].train, t) for t in (0, 2)]
    assert torch.equal(*shown)


def test_a_number_of_tasks_reads_the_first_ones(loaded: list[str]) -> None:
    assert read(["digits", "mnist", "cifar10"], num_tasks=2).slices == ("digits", "mnist")
    assert loaded == ["digits", "mnist"]


def test_padding_and_moments_go_on_working() -> None:
    stream = built(["digits", "mnist"], pad_to=32, mean=[0.5], std=[0.25])
    assert stream.input_shape == (1, 32, 32)
    x = stream.normalise(stream.images(stream[0].train, 0))
    assert float(x.min()) == -2  # zeros, (0 - 0.5) / 0.25


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["benchmark.datasets=[mnist,svhn]"], "benchmark.datasets must be one of digits, mnist, "),
        (["benchmark.datasets=[npz]"], "benchmark.datasets must be one of digits, mnist, "),
        (["benchmark.datasets=[]"], "benchmark.datasets must hold one entry per task"),
        (["benchmark.num_tasks=4"], "num_tasks=4 is more than the 3 of benchmark.datasets"),
        (["data.path=a.npz"], "data.path goes with your own data"),
        (["benchmark.fresh=true", "benchmark.samples_per_task=9"], "fresh has no meaning for"),
    ],
)
def test_what_is_no_sequence_is_refused_without_torch(configure, overrides, line) -> None:
    with pytest.raises(UserError) as caught:
        outline.check_data(configure("benchmark=sequence", *overrides))
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_runs_on_a_sequence_and_under_conditions(cl_run, tmp_path: Path) -> None:
    tiny = ("training.iterations=3", "model.hidden_sizes=[8]", "device=cpu", "data.root=data")
    streams = {
        "sequence": ("benchmark.datasets=[digits,digits]", 2, 20),
        "conditions_digits": ("benchmark.num_tasks=null", 6, 10),
    }
    for benchmark, (key, tasks, classes) in streams.items():
        own = (f"benchmark={benchmark}", key, "eval.calibration=true", f"hydra.run.dir={benchmark}")
        done = cl_run(*own, "strategy=er", *tiny, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = read_rows(tmp_path / benchmark / "accuracy_matrix.csv")
        assert len(rows) == tasks + 1 and len(rows[0]) == 2 + tasks  # number and name before them
        counts = read_rows(tmp_path / benchmark / "confusion.csv")
        assert all(int(row["class"]) < classes and row["class_name"] for row in counts)
