"""Result files: nothing lost, nothing invented, nothing half-written."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cl_runner.config import identity
from cl_runner.errors import UserError
from cl_runner.functional.metrics import Matrix
from cl_runner.results import files, matrices, text
from cl_runner.results.columns import formulas
from cl_runner.results.matrices import summarise

R = np.array([[0.1, 0.2], [1 / 3, 0.0], [1.0, 2 / 3]])
UNFINISHED = np.array([[0.1, 0.2], [1 / 3, 0.0], [np.nan, np.nan]])


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# Rows.


def test_rows_round_trip_at_full_precision(tmp_path: Path) -> None:
    rows = [
        {"a": 1, "b": 0.1 + 0.2, "c": 'x, "y"\nz'},
        {"b": 1e-300, "d": np.float64(1 / 3), "a": np.int64(7), "e": "ä"},
    ]
    files.write_rows(tmp_path / "r.csv", rows)
    header, *lines = cells(tmp_path / "r.csv")
    assert header == ["a", "b", "c", "d", "e"]  # in order of first appearance
    assert [float(line[1]) for line in lines] == [0.1 + 0.2, 1e-300]
    assert float(lines[1][3]) == 1 / 3
    assert (lines[0][0], lines[1][0]) == ("1", "7")
    assert (lines[0][2], lines[1][4]) == ('x, "y"\nz', "ä")
    assert lines[0][3:] == ["", ""]


@pytest.mark.parametrize("missing", [None, math.nan, np.float64("nan")])
def test_missing_is_empty_and_never_0(tmp_path: Path, missing: float | None) -> None:
    files.write_rows(tmp_path / "r.csv", [{"a": missing, "b": 0.0, "c": 0, "d": False}])
    assert cells(tmp_path / "r.csv")[1] == ["", "0.0", "0", "False"]


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x", "-1-1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_execute_is_quoted_and_read_back(
    tmp_path: Path, text: str
) -> None:
    files.write_rows(tmp_path / "r.csv", [{"a": text, "b": 1}])
    assert cells(tmp_path / "r.csv")[1] == [f"'{text}", "1"]
    assert files.read_rows(tmp_path / "r.csv") == [{"a": text, "b": "1"}]


@pytest.mark.parametrize("text", ["-1", "-1.5e-3", "+2", "-inf", "it's", "'quoted'", "a=b", "x@y"])
def test_numbers_and_plain_text_stay_as_they_are(tmp_path: Path, text: str) -> None:
    files.write_rows(tmp_path / "r.csv", [{"a": text}])
    assert cells(tmp_path / "r.csv")[1] == [text]


@pytest.mark.slow
@given(st.lists(st.text() | st.text("'=+-@\t\r\n,\"1"), min_size=1, max_size=4))
def test_any_text_is_read_back_and_starts_no_formula(tmp_path_factory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    row = {str(i): text for i, text in enumerate(texts)}
    files.write_rows(path, [row])
    assert files.read_rows(path) == [row]
    for cell in cells(path)[1]:
        if cell[:1] in files.FORMULA:
            float(cell)


def test_lists_and_tables_are_json(tmp_path: Path) -> None:
    row = {"a": [400, 400], "b": (0.9, 0.999), "c": {"d": None}}
    files.write_rows(tmp_path / "r.csv", [row])
    values = [json.loads(cell) for cell in cells(tmp_path / "r.csv")[1]]
    assert values == [[400, 400], [0.9, 0.999], {"d": None}]


# Atomic writing.


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "summary.csv"
    files.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    if failing == "write":
        text = "new" * 10_000 + "\ud800"  # cannot be encoded
    else:
        text = "new"
        monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises((UserError, UnicodeEncodeError), match=r"cannot write|surrogates"):
        files.write_text(path, text)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]


def test_the_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace = tmp_path / "summary.csv", Path.replace
    files.write_text(path, "old")
    seen: list[tuple[str, str, bool]] = []

    def spy(self: Path, target: Path) -> Path:
        seen.append((self.read_text(), target.read_text(), self.parent == target.parent))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    files.write_text(path, "new\n")
    assert seen == [("new\n", "old", True)]  # complete before it takes the old one's place
    assert path.read_bytes() == b"new\n"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]


def test_a_file_and_its_name_are_on_the_disk_before_anything_else(
    tmp_path: Path, disk: list[str]
) -> None:
    files.write_text(tmp_path / "a.csv", "a\n")
    files.write_text(tmp_path / "b.csv", "b\n")
    part = ".{}.csv.part"
    expected = [["flush " + part, "rename {}.csv", "flush folder"] for _ in "ab"]
    assert disk == [
        step.format(name) for name, own in zip("ab", expected, strict=True) for step in own
    ]


def test_a_folder_is_on_the_disk_with_all_above_it(tmp_path: Path, disk: list[str]) -> None:
    files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert disk == ["flush a", "flush folder", *(f"flush {p.name}" for p in tmp_path.parents)]


@pytest.mark.unix
def test_a_system_that_flushes_no_folder_is_no_failure(tmp_path: Path, monkeypatch) -> None:
    """Windows opens none, and some file systems flush none; a disk that fails is told."""
    fsync, open_ = os.fsync, os.open

    def failing(code: int) -> None:
        def only_folders(number: int) -> None:
            if stat.S_ISDIR(os.fstat(number).st_mode):
                raise OSError(code, os.strerror(code))
            fsync(number)

        monkeypatch.setattr(os, "fsync", only_folders)

    failing(errno.EINVAL)
    files.write_text(tmp_path / "a", "a")
    failing(errno.EIO)
    with pytest.raises(UserError, match=r"cannot write .*/a: Input/output error"):
        files.write_text(tmp_path / "a", "a")

    def windows(path: Path, flags: int, *rest: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_(path, flags, *rest)

    monkeypatch.setattr(os, "open", windows)
    files.write_text(tmp_path / "a", "b")
    assert (tmp_path / "a").read_text() == "b"


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    ours = [".summary.csv.12.part", ".checkpoint.safetensors.7.part", ".status.json.99.part"]
    ours += [".accuracy_matrix_task.csv.3.part", "pictures/.samples_1.png.3.part"]
    theirs = [".notes.part", ".summary.csv.part", "summary.csv.12.part", ".film.mkv.5.part"]
    for name in (*ours, *theirs):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"pictures", *theirs}


# Matrices.


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 5).flatmap(
        lambda T: arrays(np.float64, (T + 1, T), elements=st.floats(0, 1) | st.just(math.nan))
    )
)
def test_matrices_round_trip_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, R: Matrix
) -> None:
    out = tmp_path_factory.mktemp("r")
    matrices.write_matrices(out, {("test", "class"): R}, "class")
    np.testing.assert_array_equal(matrices.read_matrix(out / "accuracy_matrix.csv"), R)


def test_a_matrix_has_labelled_rows_and_columns(tmp_path: Path) -> None:
    matrices.write_matrices(tmp_path, {("test", "domain"): UNFINISHED}, "domain")
    assert cells(tmp_path / "accuracy_matrix.csv") == [
        ["after_task", "task_1", "task_2"],
        ["0", "0.1", "0.2"],
        ["1", repr(1 / 3), "0.0"],
        ["2", "", ""],
    ]
    read = matrices.read_matrix(str(tmp_path / "accuracy_matrix.csv"))
    np.testing.assert_array_equal(read, UNFINISHED)


def test_one_file_per_split_and_reading_and_all_of_them_tidy(tmp_path: Path) -> None:
    measured = {
        ("test", "class"): R,
        ("test", "task"): R + 0.0,
        ("validation", "class"): UNFINISHED,
        ("validation", "task"): R / 2,
    }
    matrices.write_matrices(tmp_path, measured, "class")
    names = {
        ("test", "class"): "accuracy_matrix.csv",
        ("test", "task"): "accuracy_matrix_task.csv",
        ("validation", "class"): "accuracy_matrix_validation.csv",
        ("validation", "task"): "accuracy_matrix_validation_task.csv",
    }
    assert {p.name for p in tmp_path.iterdir()} == {*names.values(), "accuracies.csv"}
    for key, name in names.items():
        assert matrices.matrix_name(*key, "class") == name
        np.testing.assert_array_equal(matrices.read_matrix(tmp_path / name), measured[key])

    table = matrices.read_accuracies(tmp_path / "accuracies.csv")
    assert list(table) == ["after_task", "eval_task", "reading", "split", "accuracy"]
    expected = {
        (i, j + 1, reading, split): matrix[i, j]
        for (split, reading), matrix in measured.items()
        for i, j in np.ndindex(matrix.shape)
        if not np.isnan(matrix[i, j])  # not measured: no row
    }
    keys = zip(*(table[name] for name in list(table)[:4]), strict=True)
    assert dict(zip(keys, table["accuracy"], strict=True)) == expected
    assert len(table) == len(expected) == 3 * 6 + 4


GOOD = "after_task,task_1,task_2\n0,0.1,0.2\n1,0.5,0\n2,0.4,\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "after_task\n",
        "after_task\n0\n",  # no task at all
        GOOD[:-8],  # half-written: a row is missing
        GOOD[:-2],  # a row is cut off
        GOOD.replace("1,0.5,0\n", ""),
        GOOD.replace("\n1,", "\n5,"),
        GOOD + "3,0.4,0.4\n",
        GOOD.replace(",task_2", ""),
        GOOD.replace("task_2", "task_3"),
        GOOD.replace("after_task", "task"),
        GOOD.replace("0.5", "high"),
        GOOD.replace("0.5", "1.5"),
        GOOD.replace("0.5", "-0.1"),
        GOOD.replace("0.5", "inf"),
        GOOD.replace("0.5", "50%"),
        GOOD.replace("0.5", "0.5,0.5"),
        "a" * 200_000,  # longer than csv's longest field
        "seed,ACC\n0,0.9\n",  # summary.csv
        "after_task,eval_task,reading,split,accuracy\n0,1,class,test,0.1\n",  # accuracies.csv
    ],
)
def test_what_is_not_a_matrix_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accuracy_matrix.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        matrices.read_matrix(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_matrix_that_the_wrong_ones_were_made_of_is_right(tmp_path: Path) -> None:
    path = tmp_path / "accuracy_matrix.csv"
    path.write_text(GOOD)
    expected = [[0.1, 0.2], [0.5, 0.0], [0.4, np.nan]]
    np.testing.assert_array_equal(matrices.read_matrix(path), expected)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "accuracy_matrix.csv"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(UserError) as caught:
        matrices.read_matrix(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Columns and text.


def test_metrics_of_every_matrix_have_columns() -> None:
    measured = {
        ("test", "class"): R,
        ("test", "task"): R / 2,
        ("validation", "class"): R / 4,
        ("validation", "task"): UNFINISHED,
    }
    columns = matrices.metric_columns(measured, "class")
    prefixes = ["", "task_", "validation_", "validation_task_"]
    expected: dict[str, float | None] = {"intransigence": None}
    for prefix, matrix in zip(prefixes, measured.values(), strict=True):
        expected |= {prefix + name: value for name, value in summarise(matrix).items()}
    assert len(expected) == 4 * len(formulas("matrix")) + 1
    assert columns == pytest.approx(expected, nan_ok=True)


def test_flatten() -> None:
    node = {"seed": 0, "strategy": {"lambda": 1.0}, "a": {"b": {"c": [1, 2]}, "d": {}}}
    assert identity.flatten(node) == {
        "seed": 0,
        "strategy.lambda": 1.0,
        "a.b.c": [1, 2],
    }


def test_format_matrix_aligns_its_columns_and_leaves_gaps() -> None:
    lines = text.format_matrix(UNFINISHED).splitlines()
    rows = [line.split() for line in lines[1:]]
    assert rows == [["0", ".100", ".200"], ["1", ".333", ".000"], ["2"]]
    full = text.format_matrix(R).splitlines()
    assert full[3].split() == ["2", "1.000", ".667"]
    assert len({len(line) for line in full}) == 1


def test_format_metrics_has_a_row_per_reading() -> None:
    columns = matrices.metric_columns({("test", "class"): R, ("test", "task"): UNFINISHED}, "class")
    shown = text.format_metrics(columns, ["class", "task"])
    names, first, second = (line.split() for line in shown.splitlines())
    assert first == ["class-IL", *(f"{summarise(R)[name]:.4f}" for name in names[1:])]
    assert second[:2] == ["task-IL", "-"]  # not measured
    assert len({len(line) for line in shown.splitlines()}) == 1
