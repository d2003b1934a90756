"""weather, flights and letter: what comes with the package is what its pages say."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from cl_runner.config.schema import Config
from cl_runner.core import Stream
from cl_runner.data.arrays import Arrays
from cl_runner.data.benchmarks import build_stream
from cl_runner.data.sources import read

CONF = Path(__file__).parents[2] / "conf"
TABLES = files("cl_runner.data") / "tables"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "streams"
NAMES = ("weather", "flights", "letter")


def arrays_of(configure: Callable[..., Config], data_root: Path, *overrides: str) -> Arrays:
    return read(configure(*overrides).benchmark, data_root, None, print)


def stream_of(configure: Callable[..., Config], data_root: Path, *overrides: str) -> Stream:
    config = configure(*overrides)
    arrays = read(config.benchmark, data_root, None, print)
    device = torch.device("cpu")
    return build_stream(config.benchmark, config.scenario, arrays, device, augmented=False)


def test_nothing_else_comes_along():
    assert sorted(f.name for f in TABLES.iterdir()) == sorted(f"{n}.csv.gz" for n in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_small_and_packed_without_a_date(name):
    """The same rows always give the same file."""
    content = (TABLES / f"{name}.csv.gz").read_bytes()
    assert len(content) < 350_000
    assert content[4:8] == bytes(4)
    assert gzip.decompress(content).count(b"\n") == {"weather": 18160, "flights": 60001}.get(
        name, 20001
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="the tables are not beside the checkout")
@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_the_one_it_was_made_of(name):
    content = (TABLES / f"{name}.csv.gz").read_bytes()
    assert content == (SHARED / f"{name}.csv.gz").read_bytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weather", ("National Oceanic and Atmospheric Administration", "public domain")),
        ("flights", ("Bureau of Transportation Statistics", "public domain")),
        ("split_letter", ("Slate 1991", "UCI", "CC BY 4.0")),
    ],
)
def test_source_and_licence_are_in_the_yaml_and_in_the_page(name, words):
    page = (CONF.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for text in ((CONF / "benchmark" / f"{name}.yaml").read_text(encoding="utf-8"), page):
        told = " ".join(re.sub(r"(?m)^# ", "", text).split())
        assert all(word in told for word in words)


def test_of_weather_two_days_of_1958_are_cut_and_nothing_else(configure, data_root, capsys):
    """Their pressure is a code for a missing value."""
    whole = arrays_of(configure, data_root, "benchmark=weather", "benchmark.clip=null")
    assert "sea_level_pressure has 94.0759 in" in capsys.readouterr().out
    cut = arrays_of(configure, data_root, "benchmark=weather")
    assert not capsys.readouterr().out
    changed = 0
    for part in ("train", "test"):
        before, after = getattr(whole, f"x_{part}"), getattr(cut, f"x_{part}")
        where = (before != after).nonzero()
        changed += len(where)
        assert (after[tuple(where.T)] == 20).all()
        assert {whole.slices[i] for i in getattr(whole, f"slice_{part}")[where[:, 0]]} <= {"1958"}
    assert changed == 2


def test_weather_has_a_task_for_each_year(configure, data_root):
    stream = stream_of(configure, data_root, "benchmark=weather")
    assert [task.name for task in stream] == [str(year) for year in range(1949, 1999)]
    assert {len(task.train) + len(task.test) for task in stream} == {363, 364}
    assert {len(task.test) for task in stream} == {73}
    assert stream.input_shape == (1, 1, 8) and stream.num_classes == 2
    assert stream.scenario == "domain"
    y = torch.cat([stream.y, stream.y_test]).float()
    assert len(y) == 18_159 and float(y.mean()) == pytest.approx(0.3138, abs=1e-4)


def test_flights_have_a_task_for_each_month(configure, data_root):
    stream = stream_of(configure, data_root, "benchmark=flights")
    assert [task.name for task in stream] == [str(month) for month in range(1, 13)]
    assert {(len(task.train), len(task.test)) for task in stream} == {(4000, 1000)}
    # day, hour, minute, distance; 7 weekdays, 16 carriers, 3 origins, 103 destinations.
    assert stream.input_shape == (1, 1, 4 + 7 + 16 + 3 + 103)
    by_origin = arrays_of(configure, data_root, "benchmark=flights", "benchmark.slice=origin")
    assert by_origin.slices == ("EWR", "JFK", "LGA")


def test_letters_are_split_into_thirteen_tasks(configure, data_root):
    stream = stream_of(configure, data_root, "benchmark=split_letter")
    assert [task.names for task in stream[:2]] == [("A", "B"), ("C", "D")]
    assert (len(stream), stream.num_classes, stream.input_shape) == (13, 26, (1, 1, 16))
    assert (len(stream.y), len(stream.y_test)) == (16_000, 4000)
    share = stream.y_test.bincount() / (stream.y.bincount() + stream.y_test.bincount())
    assert share.min() > 0.19 and share.max() < 0.21
    x = stream.x.flatten(1).double()
    assert torch.allclose(x.mean(0), torch.zeros(16, dtype=torch.float64), atol=1e-6)


def test_letters_may_be_cut_otherwise(configure, data_root):
    permuted = ("benchmark=permuted_digits", "benchmark.dataset=letter", "benchmark.num_tasks=2")
    assert stream_of(configure, data_root, *permuted).num_classes == 26


class Scores(NamedTuple):
    """Accuracies on a slice of models that were fitted on others, means over slices 2 .. T."""

    previous: float
    past: float
    first: float
    majority: float


def drift(arrays: Arrays) -> tuple[Scores, Scores]:
    """Of logistic regression, fitted on training rows: on a slice's test rows, and on all its rows.

    All rows of a slice are new to models of the slices before it.
    """
    assert arrays.slice_train is not None and arrays.slice_test is not None
    x, y, s = (v.numpy() for v in (arrays.x_train.flatten(1), arrays.y_train, arrays.slice_train))
    held = (v.numpy() for v in (arrays.x_test.flatten(1), arrays.y_test, arrays.slice_test))
    test = tuple(held)
    whole = tuple(np.concatenate(parts) for parts in zip((x, y, s), test, strict=True))

    def fitted(own: np.ndarray) -> LogisticRegression:
        return LogisticRegression(max_iter=200, tol=1e-3).fit(x[own], y[own])

    def scores(models: list[LogisticRegression], X: np.ndarray, Y: np.ndarray) -> list:
        share = float(np.bincount(Y).max() / len(Y))
        return [*(model.score(X, Y) for model in models), share]

    first, found = fitted(s == 0), []
    for t in range(1, len(arrays.slices)):
        models = [fitted(s == t - 1), fitted(s < t), first]
        parts = [(X[t == S], Y[t == S]) for X, Y, S in (test, whole)]
        found.append([scores(models, *part) for part in parts])
    on_test, on_all = np.mean(found, axis=0).tolist()
    return Scores(*on_test), Scores(*on_all)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("weather", Scores(0.774, 0.734, 0.715, 0.686)),
        ("flights", Scores(0.603, 0.606, 0.584, 0.597)),
    ],
)
def test_logistic_regression_on_our_features_finds_the_drift(configure, data_root, name, known):
    """The known numbers were fitted and tested on whole slices, nothing cut, elsewhere."""
    with threadpool_limits(1):
        found = drift(arrays_of(configure, data_root, f"benchmark={name}", "benchmark.clip=null"))
    for scores in found:
        assert scores == pytest.approx(known, abs=0.01)


@pytest.mark.slow
def test_the_nearest_class_mean_knows_letters(configure, data_root):
    """By the roadmap of numbers .578 of a random split; here .57, within its spread of .008."""
    arrays = arrays_of(configure, data_root, "benchmark=split_letter")
    means = torch.stack([arrays.x_train[arrays.y_train == c].mean(0) for c in range(26)]).flatten(1)
    nearest = torch.cdist(arrays.x_test.flatten(1), means).argmin(1)
    assert float((nearest == arrays.y_test).float().mean()) == pytest.approx(0.578, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["naive", "er", "ewc"])
def test_a_strategy_keeps_its_promises_on_weather(strategy):
    from cl_runner.testing import contract

    contract(strategy, ["benchmark=weather", "benchmark.train_samples=null", "training.epochs=1"])
