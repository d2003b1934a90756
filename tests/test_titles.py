"""Names of tasks and classes in files, text and the status; files without names are as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cl_runner.cli.overview import overview
from cl_runner.errors import UserError
from cl_runner.results import matrices, status, text
from cl_runner.results.titles import UNNAMED, Titles, columns, titled
from cl_runner.running.progress import Bar

R = np.array([[0.1, 0.2], [0.5, 0.25], [0.75, 1.0]])
NAMES = ["2021-01, Köln", "=1+1"]
TITLES = Titles(tasks=NAMES, classes={0: "bike", 2: "bus"})


def test_rows_without_names_are_as_they_were() -> None:
    rows = [{"after_task": 1, "class": 0}]
    assert titled(rows, UNNAMED) is rows
    assert titled(rows, Titles(classes={0: "bike"})) is rows


def test_a_name_stands_beside_each_number() -> None:
    row = {"after_task": 0, "eval_task": 2, "class": 0, "predicted": 1, "count": 3}
    assert [*titled([row], TITLES)[0].items()] == [
        *(("after_task", 0), ("after_name", ""), ("eval_task", 2), ("eval_name", "=1+1")),
        *(("class", 0), ("class_name", "bike"), ("predicted", 1), ("predicted_name", "")),
        ("count", 3),
    ]
    pair = {"layer": "a", "task_a": 1, "task_b": 2}
    assert list(titled([pair], TITLES)[0]) == ["layer", "task_a", "name_a", "task_b", "name_b"]
    assert titled([pair], TITLES)[0]["name_b"] == "=1+1"


def test_every_task_has_a_column_of_its_own() -> None:
    names = ["a", "seed", "a", "after_task", "class", "b"]
    assert columns(names) == [
        *("a", "seed (task 2)", "a (task 3)", "after_task (task 4)", "class (task 5)", "b"),
    ]


def test_matrices_with_names_are_read_back(tmp_path: Path) -> None:
    curves = {("test", "domain"): [[0, 3, 0.3, 0.2]]}
    matrices.write_matrices(tmp_path, {("test", "domain"): R}, "domain", curves, TITLES)
    path = tmp_path / "accuracy_matrix.csv"
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first == 'after_task,after_name,"2021-01, Köln",\'=1+1'
    assert second == "0,,0.1,0.2"
    np.testing.assert_array_equal(matrices.read_matrix(path), R)
    assert matrices.read_titles(path) == NAMES
    assert matrices.read_curves(tmp_path / "accuracies.csv", 2) == curves
    matrices.write_matrices(tmp_path, {("test", "domain"): R}, "domain", curves)
    assert path.read_text(encoding="utf-8").startswith("after_task,task_1,task_2\n0,0.1,0.2\n")
    assert matrices.read_titles(path) == []


@pytest.mark.parametrize(
    "content",
    [
        "after_task,after_name\n0,\n",  # no task
        "after_task,after_name,a\n0,0.5\n1,a,0.5\n",  # a cell is missing
        "task,after_name,a\n0,,0.5\n1,a,0.5\n",
        "after_task,a,after_name\n0,0.5,\n1,0.5,a\n",  # in another order
    ],
)
def test_a_damaged_matrix_with_names_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "accuracy_matrix.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="is not an accuracy matrix of cl-run"):
        matrices.read_matrix(path)


def test_the_printed_matrix_names_its_rows() -> None:
    long = "a name that no terminal has room for, at its end 7"
    lines = text.format_matrix(R, ["2021-01", long]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["2021-01", "1", ".500", ".250"]
    assert lines[3].startswith("a name that…at its end 7 ")
    assert lines[3].split()[-3:] == ["2", ".750", "1.000"]


@pytest.mark.parametrize(("word", "short"), [("abc", "abc"), ("abcdef", "ab…ef"), ("", "")])
def test_the_middle_of_a_long_name_is_left_out(word: str, short: str) -> None:
    assert text.shortened(word, 5) == short


def test_the_status_names_the_task(tmp_path: Path) -> None:
    status.write(tmp_path, "interrupted", task=2, tasks=3, task_name="2021-02", step=0)
    assert "interrupted  2 of 3 (2021-02)" in overview([tmp_path])[0]
    status.write(tmp_path, "interrupted", task=2, tasks=3, step=0)
    assert "interrupted  2 of 3 " in overview([tmp_path])[0]


def test_the_progress_bar_names_the_task() -> None:
    for name, title in (("2021-02", "task 1/1 2021-02 epoch 1/5"), ("", "task 1/1 epoch 1/5")):
        bar = Bar([name])
        bar.begin(0, 5, 10)
        assert bar.lines(80)[0].startswith(title)
