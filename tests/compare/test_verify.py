"""verify finds each lie in a run's folder, and none in a folder that cl-run left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cl_runner import sweep
from cl_runner.compare.verify import verify
from cl_runner.errors import UserError
from cl_runner.results import read_rows, write_rows

R = np.array([[0.1, 0.2, 0.3], [0.9, 0.1, 0.2], [0.5, 0.8, 0.2], [0.4, 0.6, 0.7]])


def change(path: Path, column: str, value: object, line: int = 0) -> None:
    rows: list[dict] = read_rows(path)
    assert column in rows[line]
    rows[line][column] = value
    write_rows(path, rows)


def test_true_folders_pass(run_folder, tmp_path: Path) -> None:
    run_folder(R, scenario="class", strategy__sizes=[1, 2], strategy__lambda=1e30)
    run_folder(R, seed=1, strategy__policy=None)
    broken = R.copy()
    broken[2:] = np.nan
    run_folder(broken, seed=2, status="failed")
    sweep.merge(tmp_path / "runs")
    assert verify([str(tmp_path)]) == (3, [])


@pytest.mark.parametrize(
    ("file", "column", "value", "said"),
    [
        ("summary.csv", "ACC", 0.6, "says ACC is 0.6, the matrix gives 0.56666"),
        ("summary.csv", "BWT", "", "says BWT is empty, the matrix gives"),
        ("summary.csv", "forgetting", "x", "says forgetting is x, the matrix gives"),
        ("summary.csv", "task_ACC", 0.5, "says task_ACC is 0.5, the matrix gives"),
        ("summary.csv", "intransigence", 0.1, "has intransigence 0.1, which no matrix here gives"),
        ("summary.csv", "seconds", -1, "seconds is -1, no number of at least 0"),
        ("summary.csv", "samples", 1.5, "samples is 1.5, not whole"),
        ("summary.csv", "status", "done", "has the status 'done'"),
        ("summary.csv", "optimizer.lr", 0.2, "config.yaml has optimizer.lr=0.1, summary.csv says"),
        ("summary.csv", "model", "cnn", "config.yaml has model.name=mlp, summary.csv says 'cnn'"),
        ("summary.csv", "benchmark.num_tasks", 4, "has 3 tasks, summary.csv says 4"),
        ("accuracies.csv", "accuracy", 0.25, "accuracies.csv says 0.25 for after_task 0, eval_ta"),
        ("accuracies.csv", "eval_task", 2, "accuracies.csv has 1 rows twice"),
        ("accuracies.csv", "after_task", 7, "accuracies.csv says nothing for after_task 0"),
        ("accuracies.csv", "accuracy", "x", "cannot read accuracies.csv"),
        ("accuracy_matrix.csv", "task_2", 0.61, "says ACC is"),
        ("accuracy_matrix.csv", "task_2", 1.5, "1.5 is no fraction"),
        ("accuracy_matrix.csv", "task_2", "", "has empty cells, but the run is complete"),
    ],
)
def test_every_lie_is_found(run_folder, tmp_path, file, column, value, said) -> None:
    out = run_folder(R, scenario="class")
    last = len(read_rows(out / file)) - 1 if file == "accuracy_matrix.csv" else 0
    change(out / file, column, value, last)
    count, lines = verify([str(tmp_path)])
    assert count == 1
    assert any(said in line for line in lines), lines
    assert all(line.startswith(f"{out}: ") or str(out) in line for line in lines)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("accuracy_matrix.csv", "accuracy_matrix.csv is missing"),
        ("accuracy_matrix_task.csv", "has task_ACC 0.6666666666666666, which no matrix here gives"),
        ("accuracies.csv", "accuracies.csv is missing"),
        ("config.yaml", "cannot read config.yaml"),
    ],
)
def test_missing_files_are_found(run_folder, tmp_path, file: str, said: str) -> None:
    (run_folder(R, scenario="class") / file).unlink()
    assert any(said in line for line in verify([str(tmp_path)])[1])


def test_a_merged_table_must_say_what_its_runs_say(run_folder, tmp_path) -> None:
    run_folder(R, folder="job")
    sweep.merge(tmp_path / "runs")
    change(tmp_path / "runs" / "summary.csv", "ACC", 0.9)
    (line,) = verify([str(tmp_path)])[1]
    assert "summary.csv says ACC of job is '0.9', its own says" in line


def test_a_table_alone_cannot_be_verified(run_folder, tmp_path) -> None:
    out = run_folder(R)
    (out / "summary.csv").rename(tmp_path / "table.csv")
    with pytest.raises(UserError, match="no run folders"):
        verify([str(tmp_path / "table.csv")])
