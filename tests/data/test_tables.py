"""Your own tables and files as streams: numbers, categories, text; slices; held-out rows."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import HashingVectorizer

from cl_runner.config.benchmarks import Files, Split, Table
from cl_runner.data import cutting
from cl_runner.data import table as module
from cl_runner.data.arrays import Arrays
from cl_runner.data.benchmarks import build_stream
from cl_runner.data.cutting import Numbered, held_out
from cl_runner.data.sources import read
from cl_runner.errors import UserError
from cl_runner.machine import ram

COMMON: dict[str, Any] = {"name": "b", "default_scenario": "domain", "default_epochs": 1, "seed": 0}


def table(path: Path, root: Path, told: list[str] | None = None, **keys: Any) -> Arrays:
    keys = {"label": "y", "num_tasks": None, **keys}
    config = Table(**COMMON, kind="table", dataset="table", **keys)
    return read(config, root, path, (told if told is not None else []).append)


def files(path: Path, root: Path, **keys: Any) -> Arrays:
    config = Files(**COMMON, kind="files", dataset="files", **{"num_tasks": None, **keys})
    return read(config, root, path, lambda _: None)


def refused(function: Callable[[], object]) -> str:
    """The message of the UserError; always one line."""
    with pytest.raises(UserError) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def function(columns: dict[str, Any] | str, name: str = "own.csv") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = columns
        if not isinstance(columns, str):
            text = pd.DataFrame(columns).to_csv(index=False)
        content = text.encode()
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return file

    return function


def rows(arrays: Arrays) -> np.ndarray:
    """The training rows, then the test rows, as vectors."""
    return torch.cat([arrays.x_train, arrays.x_test]).flatten(1).numpy()


def slices_of(arrays: Arrays) -> list[int]:
    return torch.cat([arrays.slice_train, arrays.slice_test]).tolist()


# Columns


def test_numbers_are_standardised_by_the_training_rows_of_the_first_task(write, tmp_path):
    rng = np.random.default_rng(0)
    columns = {"s": np.repeat([1, 2], 50), "y": np.arange(100) % 2}
    columns |= {"a": rng.normal(5, 3, 100), "b": rng.integers(0, 9, 100), "c": np.arange(100) > 40}
    arrays = table(write(columns), tmp_path, slice="s")
    assert arrays.x_train.shape == (80, 1, 1, 3) and arrays.x_train.dtype == torch.float32
    first = arrays.x_train[arrays.slice_train == 0].flatten(1).double()
    assert torch.allclose(first.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(first.std(0, correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-6)
    # By the same numbers everywhere: an affine map of the column, test rows and other tasks too.
    for i, name in enumerate("ab"):
        mapped, raw = np.sort(rows(arrays)[:, i]), np.sort(np.asarray(columns[name], float))
        slope, offset = np.polyfit(raw, mapped, 1)
        assert np.allclose(slope * raw + offset, mapped, atol=1e-5)
    other = arrays.x_train[arrays.slice_train == 1].flatten(1)
    assert other.mean(0).abs().max() > 0.05


def test_a_column_that_is_constant_in_the_first_task_is_0_and_told(write, tmp_path):
    columns = {"s": np.repeat([1, 2], 10), "y": np.arange(20) % 2, "a": np.arange(20.0)}
    columns["sensor"] = np.r_[np.full(10, 0.1), np.arange(10)]
    told: list[str] = []
    arrays = table(write(columns), tmp_path, told, slice="s")
    assert (rows(arrays)[:, 1] == 0).all()
    assert told == ["of one value in the first task, and so 0 in all: column sensor"]


@pytest.mark.parametrize("clip", [None, 20.0])
def test_what_is_far_off_is_cut_or_told_by_every_run(write, tmp_path, clip):
    """A code for a missing value, 9999.9, in a column of temperatures."""
    rng = np.random.default_rng(0)
    columns = {"s": np.repeat([1, 2], 50), "y": np.arange(100) % 2, "a": rng.normal(5, 3, 100)}
    columns["a"][70] = -9999.9
    file, plain = write(columns), columns["a"][:50]
    for _ in range(2):  # the second run reads the copy
        told: list[str] = []
        a = rows(table(file, tmp_path, told, slice="s", clip=clip))[:, 0]
        assert (np.abs(a) > 15).sum() == 1
        if clip is None:
            assert a.min() < -9999.9 / 4
            assert len(told) == 1
            assert told[0].startswith(f"column a has -9999.9 in {file}, row 71, ")
            far = float(told[0].split(", ")[2].split()[0])
            assert far == pytest.approx((9999.9 + plain.mean()) / plain.std(), rel=0.2)
        else:
            assert a.min() == -20
            assert not told
    assert len(np.unique(a)) == 100  # no other is cut


def test_categories_are_one_hot_over_the_values_of_all_tasks(write, tmp_path):
    columns = {
        "s": np.repeat([1, 2], 20),
        "carrier": ["UA", "B6"] * 10 + ["AA", "UA"] * 10,  # AA is not in the first task
        "month": [2, 10] * 20,
        "y": ["late", "on time", "on time", "late"] * 10,
    }
    file = write(columns)
    arrays = table(file, tmp_path, slice="s", categories=["month"])
    x = rows(arrays)
    assert x.shape == (40, 5) and set(np.unique(x)) == {0, 1}
    assert (x[:, :3].sum(1) == 1).all() and (x[:, 3:].sum(1) == 1).all()
    # AA, B6, UA; 2 before 10.
    assert x[:, :3].sum(0).tolist() == [10, 10, 20]
    assert arrays.x_train[arrays.slice_train == 0].flatten(1)[:, 0].sum() == 0
    assert arrays.classes == ("late", "on time")
    number = table(file, tmp_path, slice="s", drop=["carrier"])
    assert rows(number).shape == (40, 1) and len(np.unique(rows(number))) == 2


def test_the_order_of_categories_is_natural(write, tmp_path):
    columns = {"week": ["week 10"] * 6 + ["week 9"] * 4 + ["week 2"] * 2, "y": [0, 1] * 6}
    arrays = table(write(columns), tmp_path, num_tasks=1)
    assert rows(arrays).sum(0).tolist() == [2, 4, 6]


def test_text_is_hashed_as_scikit_learn_does_it(write, tmp_path):
    text = [f"Word {i} of MANY, {chr(97 + i % 26)}" for i in range(40)]
    columns = {"tweet": text, "y": [0, 1] * 20, "s": np.repeat([1, 2], 20), "n": range(40)}
    wanted = HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=4096)
    expected = wanted.transform(text).toarray().astype(np.float32)
    arrays = table(write(columns), tmp_path, slice="s", drop=["n"])  # 40 of 40 differ: text
    assert arrays.x_train.shape[1:] == (1, 1, 4096)
    assert sorted(map(bytes, rows(arrays))) == sorted(map(bytes, expected))
    small = table(write(columns), tmp_path, slice="s", drop=["n"], text_features=16)
    assert small.x_train.shape[1:] == (1, 1, 16)


def test_a_column_named_as_text_is_hashed_even_with_few_values(write, tmp_path):
    columns = {"a": ["x", "yy"] * 10, "y": [0, 1] * 10, "s": np.repeat([1, 2], 10)}
    arrays = table(write(columns), tmp_path, slice="s", text=["a"], text_features=8)
    assert arrays.x_train.shape[1:] == (1, 1, 8)


def test_whole_numbers_are_called_without_a_decimal_point(write, tmp_path):
    columns = {"s": np.repeat([2.0, 10.0], 10), "y": [0.0, 1.0] * 10, "a": range(20)}
    arrays = table(write(columns), tmp_path, slice="s")
    assert (arrays.slices, arrays.classes) == (("2", "10"), ("0", "1"))


def test_the_slice_column_is_no_feature(write, tmp_path):
    columns = {"s": np.repeat([1, 2], 10), "y": [0, 1] * 10, "a": range(20)}
    assert rows(table(write(columns), tmp_path, slice="s")).shape == (20, 1)


def test_words_are_categories_if_few_else_text(write, tmp_path):
    for different, width in ((256, 256), (257, 8)):
        words = [f"w{i % different}" for i in range(600)]
        columns = {"a": words, "y": [0, 1] * 300}
        arrays = table(write(columns), tmp_path, num_tasks=2, text_features=8)
        assert arrays.x_train.shape[3] == width


def test_numbers_too_long_for_a_machine_are_numbers(write, tmp_path):
    columns = {"a": [10**30 * i for i in range(20)], "y": [0, 1] * 10}
    assert rows(table(write(columns), tmp_path, num_tasks=1)).std() == pytest.approx(1, abs=0.2)


def test_features_that_do_not_fit_into_memory_are_refused(write, tmp_path, monkeypatch):
    file = write({"a": [f"w{i}" for i in range(600)], "y": [0, 1] * 300})
    monkeypatch.setattr(ram, "available", lambda _: 100_000)
    message = refused(lambda: table(file, tmp_path, num_tasks=2))
    assert (
        message == "not enough memory: 600 rows of 4096 features take 9.83 MB, and 0.1 MB are free"
    )


# Slices


def test_a_column_cuts_in_the_natural_order_of_its_values(write, tmp_path):
    columns = {"user": ["u10", "u9", "u2"] * 8, "y": [0, 1] * 12, "a": range(24)}
    arrays = table(write(columns), tmp_path, slice="user")
    assert arrays.slices == ("u2", "u9", "u10")
    assert np.bincount(slices_of(arrays)).tolist() == [8, 8, 8]
    number = {"year": [1999, 2003, 1950] * 8, "y": [0, 1] * 12, "a": range(24)}
    assert table(write(number), tmp_path, slice="year").slices == ("1950", "1999", "2003")


DAYS = pd.date_range("2023-11-20", periods=120, freq="D")
DATED = {"when": DAYS.strftime("%Y-%m-%d"), "y": [0, 1] * 60, "a": range(120)}


@pytest.mark.parametrize(
    ("by", "names", "sizes"),
    [
        ("year", ("2023", "2024"), [42, 78]),
        ("month", ("2023-11", "2023-12", "2024-01", "2024-02", "2024-03"), [11, 31, 31, 29, 18]),
    ],
)
def test_dates_are_cut_by_their_periods(write, tmp_path, by, names, sizes):
    arrays = table(write(DATED), tmp_path, slice="when", slice_by=by)
    assert arrays.slices == names
    assert np.bincount(slices_of(arrays)).tolist() == sizes
    assert rows(arrays).shape == (120, 1)


def test_times_are_cut_by_days_or_by_each_value(write, tmp_path):
    times = pd.date_range("2024-01-31 22:00", periods=4, freq="h").repeat(6)
    columns = {"t": times.strftime("%Y-%m-%dT%H:%M"), "y": [0, 1] * 12, "a": range(24)}
    days = table(write(columns), tmp_path, slice="t", slice_by="day")
    assert days.slices == ("2024-01-31", "2024-02-01")
    each = table(write(columns), tmp_path, slice="t")
    assert each.slices[::3] == ("2024-01-31 22:00:00", "2024-02-01 01:00:00")


def test_there_is_a_limit_to_the_number_of_tasks(write, tmp_path, monkeypatch):
    columns = {"s": np.arange(80) // 4, "y": [0, 1] * 40, "a": range(80)}
    assert len(table(write(columns), tmp_path, slice="s").slices) == 20
    monkeypatch.setattr(cutting, "MOST_SLICES", 19)
    message = refused(lambda: table(write(columns), tmp_path / "other", slice="s", drop=["a"]))
    assert "has 20 different values in 80 rows, too many tasks: choose a column" in message


def test_equal_parts_go_by_the_order_of_the_rows(write, tmp_path):
    columns = {"a": np.arange(50.0), "y": [0, 1] * 25}
    arrays = table(write(columns), tmp_path, num_tasks=4)
    assert arrays.slices == ("rows 1-13", "rows 14-25", "rows 26-38", "rows 39-50")
    order = np.argsort(rows(arrays)[:, 0])
    assert np.array(slices_of(arrays))[order].tolist() == [0] * 13 + [1] * 12 + [2] * 13 + [3] * 12


def test_a_number_of_tasks_takes_the_first_slices(write, tmp_path):
    columns = {"s": np.repeat([1, 2, 3], 10), "y": [0, 1] * 15, "a": range(30)}
    config = Table(**COMMON, kind="table", dataset="table", label="y", slice="s", num_tasks=2)
    arrays = read(config, tmp_path, write(columns), print)
    stream = build_stream(config, "domain", arrays, torch.device("cpu"), augmented=False)
    assert [task.name for task in stream] == ["1", "2"]
    assert [len(task.train) + len(task.test) for task in stream] == [10, 10]


def test_a_table_gives_a_stream_in_every_scenario(write, tmp_path):
    columns = {"s": np.repeat(["mar", "feb"], 20), "a": range(40)}
    columns["y"] = ["cat", "dog"] * 10 + ["cat", "elk"] * 10
    config = Table(**COMMON, kind="table", dataset="table", label="y", slice="s", num_tasks=None)
    arrays = read(config, tmp_path, write(columns), print)
    classes = {}
    for scenario in ("domain", "class", "task"):
        stream = build_stream(config, scenario, arrays, torch.device("cpu"), augmented=False)
        assert [task.name for task in stream] == ["feb", "mar"]
        assert [task.names for task in stream] == [("cat", "elk"), ("cat", "dog")]
        classes[scenario] = [task.classes for task in stream]
    assert classes["domain"] == classes["class"] == [(0, 2), (0, 1)]
    assert classes["task"] == [(0, 1), (2, 3)]


# Held out


def slices(*sizes: int) -> Numbered:
    place = np.repeat(np.arange(len(sizes)), sizes)
    return Numbered(place, tuple(f"s{t}" for t in range(len(sizes))))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_of_each_slice_a_share_is_held_out_and_each_class_keeps_a_row(share):
    cut, y = slices(100, 41, 2), np.r_[np.arange(100) % 7, np.arange(41) % 41, 1, 1]
    y[100:141] = [5] * 20 + list(range(21))
    test = held_out(cut, y, share, "f")
    for t, size in enumerate((100, 41, 2)):
        own = cut.place == t
        most = size - len(set(y[own]))
        assert test[own].sum() == min(max(1, round(share * size)), most)
        assert set(y[own & ~test]) == set(y[own])


def test_all_classes_alike_are_held_out():
    y = np.repeat([0, 1], [900, 100])
    test = held_out(slices(1000), y, 0.2, "f")
    assert [int(test[y == c].sum()) for c in (0, 1)] == [180, 20]


def test_the_rows_that_are_held_out_are_drawn_at_random_and_always_the_same(write, tmp_path):
    y = np.zeros(1000, int)
    test = held_out(slices(1000), y, 0.2, "f")
    assert np.array_equal(test, held_out(slices(1000), y, 0.2, "f"))
    assert 0.12 < test[:500].mean() < 0.28 and len(set(np.diff(np.flatnonzero(test)))) > 5
    columns = {"s": np.repeat([1, 2], 20), "y": [0, 1] * 20, "a": range(40)}
    file = write(columns)
    keys = COMMON | {"kind": "table", "dataset": "table", "label": "y", "slice": "s"}
    one, other = (read(Table(**keys | {"seed": seed}), tmp_path, file, print) for seed in (0, 1))
    assert torch.equal(one.x_test, other.x_test)


# Files


def test_files_are_tasks_in_natural_order(write, tmp_path):
    for name, shift in (("m10.csv", 5), ("m2.csv", 0), ("m9.csv.gz", 3)):
        write({"a": np.arange(20.0) + shift, "y": ["x", "y"] * 10}, f"in/{name}")
    (tmp_path / "in/README.txt").write_text("no data")
    arrays = files(tmp_path / "in", tmp_path, label="y")
    assert arrays.slices == ("m2", "m9", "m10")
    assert np.bincount(slices_of(arrays)).tolist() == [20, 20, 20]
    last = np.array(slices_of(arrays)) == 2
    first = np.array(slices_of(arrays)) == 0
    gap = rows(arrays)[last].mean() - rows(arrays)[first].mean()
    own = arrays.x_train[arrays.slice_train == 0].flatten(1)
    scale = np.arange(20.0).std() / rows(arrays)[first].std()
    assert gap * scale == pytest.approx(5, rel=1e-4) and abs(own.mean()) < 1e-6


def test_the_columns_of_files_are_found_by_name(write, tmp_path):
    write({"a": np.arange(10.0), "b": ["u", "v"] * 5, "y": [0, 1] * 5}, "in/1.csv")
    write({"y": [0, 1] * 5, "b": ["w", "v"] * 5, "a": np.arange(10.0)}, "in/2.csv")
    arrays = files(tmp_path / "in", tmp_path, label="y")
    assert rows(arrays)[:, 1:].sum(0).tolist() == [5, 10, 5]


def npz(file: Path, **arrays: np.ndarray) -> None:
    file.parent.mkdir(exist_ok=True)
    np.savez(file, **arrays)


def test_arrays_are_tasks_with_classes_by_value(tmp_path):
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(20, 3)) for _ in range(2)]
    npz(tmp_path / "in/t2.npz", x=x[0], y=np.repeat([7, 3], 10))
    test = {"x_test": x[1][:4], "y_test": np.array([3, 12, 3, 12])}
    npz(tmp_path / "in/t10.npz", x_train=x[1], y_train=np.repeat([3, 12], 10), **test)
    arrays = files(tmp_path / "in", tmp_path)
    assert (arrays.slices, arrays.classes) == (("t2", "t10"), ("3", "7", "12"))
    assert np.bincount(arrays.slice_train).tolist() == [16, 20]
    assert np.bincount(arrays.slice_test).tolist() == [4, 4]
    first = np.concatenate([a.flatten(1)[s == 0] for a, s in train_and_test(arrays)])
    assert np.allclose(np.sort(first, 0), np.sort(x[0].astype(np.float32), 0))  # as they are
    assert arrays.y_train[arrays.slice_train == 1].tolist() == [0] * 10 + [2] * 10
    assert torch.equal(arrays.x_test[4:].flatten(1), torch.tensor(x[1][:4]).float())


def train_and_test(arrays: Arrays) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(arrays.x_train, arrays.slice_train), (arrays.x_test, arrays.slice_test)]


def test_images_stay_images(tmp_path):
    x = np.zeros((20, 4, 5, 3), np.uint8)
    for name in ("a", "b"):
        npz(tmp_path / f"in/{name}.npz", x=x, y=np.arange(20) % 2)
    arrays = files(tmp_path / "in", tmp_path)
    assert arrays.x_train.shape == (32, 3, 4, 5) and arrays.x_train.dtype == torch.uint8


# Bad input: one line, with the file, the row, the column


SOUND = {"s": np.repeat([1, 2], 10), "y": [0, 1] * 10, "a": np.arange(20.0)}


def changed(column: str, row: int, value: Any) -> dict[str, Any]:
    values = list(SOUND[column])
    values[row - 1] = value
    return {**SOUND, column: values}


BY_S = {"slice": "s"}
WRONG: list[tuple[dict[str, Any] | str, dict[str, Any], str]] = [
    (
        changed("a", 7, np.nan),
        BY_S,
        "F, row 7: no value in column a (it is empty, NA, ",
    ),
    (changed("y", 3, np.nan), BY_S, "F, row 3: no value in column y"),
    (changed("a", 5, "?"), BY_S, "F, row 5: '?' in column a is no number, as most of the column's"),
    (changed("a", 5, np.inf), BY_S, "F, row 5: inf in column a is too large for float32"),
    (changed("a", 15, 1e60), BY_S, "F, row 15: 1e+60 in column a is too large for float32"),
    (SOUND, {"slice": "t"}, "benchmark.slice=t: F has no such column; it has s, y, a"),
    (SOUND, BY_S | {"label": "z"}, "benchmark.label=z: F has no such column; it has s, y, a"),
    (SOUND, BY_S | {"drop": ["q"]}, "benchmark.drop=q: F has no such column; it has s, y, a"),
    (SOUND, BY_S | {"drop": ["a"]}, "no column is left beside the label and the slice"),
    (
        SOUND,
        {"slice": "a"},
        "benchmark.slice=a has 20 different values in 20 rows, too many",
    ),
    (SOUND, {"num_tasks": 11}, "benchmark.num_tasks=11 is too many for 20 rows: take at"),
    (
        SOUND,
        {"slice": "s", "slice_by": "day"},
        "needs a column of dates such as 2024-03-31",
    ),
    (SOUND, {"slice": "s", "label": "a"}, "benchmark.label=a: 20 different values in 20 rows are"),
    ({**SOUND, "y": 1}, BY_S, "benchmark.label=y: all 20 rows are of class 1: there is nothing"),
    (
        changed("s", 4, 9),
        BY_S,
        "F: slice 9 has 1 rows, too few for training and test:",
    ),
    (
        {**SOUND, "d": pd.date_range("2024-01-01", periods=20).strftime("%Y-%m-%d")},
        BY_S,
        "column d holds dates, such as 2024-01-01 in F, row 1: cut by it (benchmark.slice=d), or",
    ),
    ("a;y;s\n1;0;1\n", BY_S, "F has ';' between its columns: save it with commas"),
    ('"a\tb",y,s\n1,0,1\n', BY_S, "F: the name 'a\\tb' holds control characters"),
    ("a,y,a\n1,0,1\n", BY_S, "F has two columns a: give each a name of its own"),
    (",y,s\n0,0,1\n", BY_S, "F: a column has no name: give it one, or leave it out by"),
    ("a,y,s\n", BY_S, "F has no rows below the names of its columns"),
    ("", BY_S, "F is no table with commas between its columns"),
    ("a,y,s\n1,0,1\n1,0,1,5\n", BY_S, "F is no table with commas between its columns"),
    ("a,y,s\n1,0,1,5\n1,0,1,5\n", BY_S, "F is no table with commas between its columns"),
]


@pytest.mark.parametrize(("columns", "keys", "line"), WRONG, ids=[case[2][:50] for case in WRONG])
def test_what_a_table_lacks_is_told_in_one_line(write, tmp_path, columns, keys, line):
    file = write(columns)
    assert line.replace("F", str(file), 1) in refused(lambda: table(file, tmp_path, **keys))


def test_quantities_are_no_classes(write, tmp_path):
    columns = {"price": np.repeat(np.arange(21) / 4, 4), "a": range(84)}
    file = write(columns)
    message = refused(lambda: table(file, tmp_path, label="price", num_tasks=2))
    assert message.startswith("benchmark.label=price: 21 different values in 84 rows are no cl")
    halves = {"price": np.repeat(np.arange(20) / 4, 4), "a": range(80)}
    assert len(table(write(halves), tmp_path, label="price", num_tasks=1).classes) == 20


def test_dates_out_of_order_are_told_with_their_row(write, tmp_path):
    dated = pd.DataFrame(DATED)
    dated.loc[49, "when"] = "2023-12-24"
    for by in ("month", None):
        message = refused(lambda by=by: table(write(dated), tmp_path, slice="when", slice_by=by))
        assert "own.csv, row 50: 2023-12-24 00:00:00 in column when is out of order" in message
    dated.loc[49, "when"] = "soon"
    message = refused(lambda: table(write(dated), tmp_path, slice="when", slice_by="month"))
    assert "own.csv, row 50: 'soon' in column when is no date such as 2024-03-31" in message


def test_the_row_of_a_missing_value_is_that_of_its_file(write, tmp_path):
    write(SOUND, "in/1.csv")
    write(changed("a", 4, "?"), "in/2.csv")
    message = refused(lambda: files(tmp_path / "in", tmp_path, label="y"))
    assert f"{tmp_path}/in/2.csv, row 4: '?' in column a is no number" in message
    write(changed("a", 6, np.nan), "in/2.csv")
    message = refused(lambda: files(tmp_path / "in", tmp_path, label="y"))
    assert f"{tmp_path}/in/2.csv, row 6: no value in column a" in message


def test_files_that_do_not_belong_together_are_told(write, tmp_path):
    folder, y = tmp_path / "in", np.arange(20) % 2
    folder.mkdir()
    assert "holds none" in refused(lambda: files(folder, tmp_path))
    npz(folder / "1.npz", x=np.zeros((20, 3)), y=y)
    write(SOUND, "in/2.csv")
    assert "holds arrays and tables, 1.npz and 2.csv" in refused(lambda: files(folder, tmp_path))
    (folder / "2.csv").unlink()
    for other, line in (
        ({"x": np.zeros((20, 4)), "y": y}, "2.npz: x is float32 (4,), but in"),
        ({"x": np.zeros((20, 3), np.uint8), "y": y}, "2.npz: x is uint8 (3,), but in"),
        ({"x": np.zeros((20, 3))}, "2.npz must hold x and y, or x_train, y_train, x_test, y_test"),
        ({"x": np.zeros((20, 3)), "y": y[:9]}, "y_train must hold one label for each sample"),
        ({"x": np.full((20, 3), np.nan), "y": y}, "2.npz: x_train must be finite in float32"),
        ({"x": np.zeros((2, 3)), "y": y[:2]}, "2.npz: slice 2.npz has 2 rows, too few for"),
        ({"x": np.zeros((20, 3)), "y": y.astype(object)}, "2.npz cannot be read"),
        (
            {"x_train": np.zeros((9, 3)), "y_train": y[:9], "x_test": np.zeros((1, 3))}
            | {"y_test": np.array([5])},
            "2.npz: y_test has labels that y_train has not, 5",
        ),
    ):
        npz(folder / "2.npz", **other)
        assert line in refused(lambda: files(folder, tmp_path))
    for file in folder.iterdir():
        file.unlink()
    write(SOUND, "in/1.csv")
    assert "benchmark.label must name the column" in refused(lambda: files(folder, tmp_path))
    write(SOUND, "in/1.csv.gz")
    assert "are one task's" in refused(lambda: files(folder, tmp_path, label="y"))
    (folder / "1.csv.gz").unlink()
    write({"s": [1] * 20, "y": y, "b": range(20)}, "in/2.csv")
    assert "differ in column a" in refused(lambda: files(folder, tmp_path, label="y"))


def test_another_path_is_told(tmp_path):
    (tmp_path / "own.txt").write_text("a")
    for path, found in ((tmp_path, "is something else"), (tmp_path / "own.csv", "does not exist")):
        assert found in refused(lambda path=path: table(path, tmp_path, slice="s"))
    assert "is something else" in refused(lambda: table(tmp_path / "own.txt", tmp_path, slice="s"))
    assert "is no folder" in refused(lambda: files(tmp_path / "own.txt", tmp_path))


@pytest.mark.unix
def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    message = refused(lambda: table(tmp_path / "pipe.csv", tmp_path, slice="s"))
    assert "pipe.csv is something else" in message


def test_packed_tables_are_bounded(write, tmp_path, monkeypatch):
    file = write(SOUND, "own.csv.gz")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert "is damaged, or not packed by gzip" in refused(lambda: table(file, tmp_path, **BY_S))
    file.write_text("a,y,s\n1,2,3\n")
    assert "is damaged, or not packed by gzip" in refused(lambda: table(file, tmp_path, **BY_S))
    file.write_bytes(whole)
    monkeypatch.setattr(ram, "available", lambda _: 300)
    assert "unpacks to more than 0.0001 MB" in refused(lambda: table(file, tmp_path, **BY_S))
    with gzip.open(file, "wb", 9) as stream:
        stream.write(b"0" * (2**26 + 1))
    monkeypatch.setattr(ram, "available", lambda _: 10**12)
    assert "unpacks to more than 67.1 MB" in refused(lambda: table(file, tmp_path, **BY_S))


def test_another_kind_of_benchmark_cannot_read_a_table(write, tmp_path):
    for dataset in ("table", "weather", "files"):
        config = Split(**COMMON, kind="split", dataset=dataset, num_tasks=2)
        path = None if dataset == "weather" else tmp_path if dataset == "files" else write(SOUND)
        message = refused(lambda config=config, path=path: read(config, tmp_path, path, print))
        assert message.startswith(f"benchmark.dataset={dataset} needs benchmark.kind=")


def test_a_kind_that_needs_slices_says_so(tmp_path):
    config = Table(**COMMON, kind="table", dataset="digits", label="y", slice="s")
    arrays = read(config, tmp_path, None, print)
    message = refused(
        lambda: build_stream(config, "domain", arrays, torch.device("cpu"), augmented=False)
    )
    assert message == "benchmark.kind=table needs data in slices; digits has none"


# The copy


def test_a_table_is_parsed_once(write, tmp_path, monkeypatch):
    file = write(SOUND)
    first = table(file, tmp_path, **BY_S)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_frame", None)
        again = table(file, tmp_path, **BY_S)
        with pytest.raises(TypeError):  # other keys, another copy
            table(file, tmp_path, **BY_S, test_fraction=0.5)
    assert again.slices == first.slices and again.classes == first.classes
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    write({**SOUND, "a": np.arange(20.0) ** 2})
    assert not torch.equal(table(file, tmp_path, **BY_S).x_train, first.x_train)


def test_equal_parts_are_copied_by_their_number(write, tmp_path):
    file = write(SOUND)
    both = [table(file, tmp_path, num_tasks=n, drop=["s"]) for n in (2, 4, 2)]
    assert [len(arrays.slices) for arrays in both] == [2, 4, 2]


def test_files_are_parsed_once(tmp_path, monkeypatch):
    npz(tmp_path / "in/1.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    first = files(tmp_path / "in", tmp_path)
    monkeypatch.setattr("cl_runner.data.files.members", None)
    assert torch.equal(files(tmp_path / "in", tmp_path).x_train, first.x_train)


def test_nothing_that_is_read_executes(write, tmp_path):
    """A formula and a pickle's bytes are words like others."""
    columns = {**SOUND, "f": ["=cmd()", "__import__('os').abort()"] * 10}
    assert rows(table(write(columns), tmp_path, **BY_S)).shape == (20, 3)
    frame = io.BytesIO()
    pd.DataFrame(SOUND).to_pickle(frame)
    (tmp_path / "p.csv").write_bytes(frame.getvalue())
    assert "p.csv" in refused(lambda: table(tmp_path / "p.csv", tmp_path, **BY_S))


# End to end


def test_a_configuration_without_columns_is_refused_before_torch(cl_run, write, tmp_path):
    file = write(SOUND)
    for keys, line in (
        ((), "benchmark.label must name the column that holds the classes"),
        (
            ("benchmark.label=y",),
            "benchmark.slice=COLUMN (a task for each value)",
        ),
    ):
        run = cl_run("benchmark=table", f"data.path={file}", *keys, cwd=tmp_path)
        assert run.returncode == 2 and line in run.stderr


@pytest.mark.slow
def test_a_table_is_trained_on_by_the_command(cl_run, write, tmp_path):
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    columns = {
        "site": np.repeat(["s2", "s10", "s1"], 100),
        "a": a,
        "label": np.where(a > 0, "+", "-"),
    }
    file = write(columns, "own.csv.gz")
    keys = (f"data.path={file}", "benchmark.label=label", "benchmark.slice=site", "device=cpu")
    cl_run("benchmark=table", "strategy=naive", *keys, "hydra.run.dir=out", cwd=tmp_path)
    summary = pd.read_csv(tmp_path / "out/summary.csv")
    assert float(summary["ACC"].iloc[0]) > 0.9
    tables = tmp_path / "in"
    for site, own in pd.DataFrame(columns).groupby("site"):
        tables.mkdir(exist_ok=True)
        own.drop(columns="site").to_csv(tables / f"{site}.csv", index=False)
    keys = (f"data.path={tables}", "benchmark.label=label", "device=cpu")
    cl_run("benchmark=files", "strategy=er", *keys, "hydra.run.dir=two", cwd=tmp_path)
    assert float(pd.read_csv(tmp_path / "two/summary.csv")["ACC"].iloc[0]) > 0.9
