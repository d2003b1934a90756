"""verify finds each lie in a run's folder, and none in a folder that cl-run left."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from cl_runner.comparing.verify import verify_runs
from cl_runner.config.identity import config_hash
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.seeds import merge_seeds
from cl_runner.sweeping import merge

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
    merge.merge(tmp_path / "runs")
    assert verify_runs([str(tmp_path)]) == (3, [])


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
    count, lines = verify_runs([str(tmp_path)])
    assert count == 1
    assert any(said in line for line in lines), lines
    assert all(line.startswith(f"{out}: ") or str(out) in line for line in lines)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("accuracy_matrix.csv", "accuracy_matrix.csv is missing"),
        ("accuracy_matrix_task.csv", "has task_ACC 0.6666666666666666, which no matrix here gives"),
        ("accuracies.csv", "accuracies.csv is missing"),
        ("config.yaml", "config.yaml: No such file"),
    ],
)
def test_missing_files_are_found(run_folder, tmp_path, file: str, said: str) -> None:
    (run_folder(R, scenario="class") / file).unlink()
    assert any(said in line for line in verify_runs([str(tmp_path)])[1])


def test_a_merged_table_must_say_what_its_runs_say(run_folder, tmp_path) -> None:
    run_folder(R, folder="job")
    merge.merge(tmp_path / "runs")
    change(tmp_path / "runs" / "summary.csv", "ACC", 0.9)
    (line,) = verify_runs([str(tmp_path)])[1]
    assert "summary.csv says ACC of job is '0.9', its own says" in line


def test_a_complete_run_that_a_merged_table_lacks_is_found(run_folder, tmp_path) -> None:
    run_folder(R, folder="a")
    merge.merge(tmp_path / "runs")
    run_folder(R, folder="b", seed=1)
    run_folder(R, folder="c", seed=2, status="running")  # a job of a sweep that is not done
    assert verify_runs([str(tmp_path)])[1] == [f"{tmp_path / 'runs'}: summary.csv has no row of b"]


def test_a_run_may_have_gone_on_with_other_threads(run_folder, tmp_path: Path) -> None:
    out = run_folder(R, threads=1)
    change(out / "summary.csv", "threads", 2)
    assert verify_runs([str(tmp_path)]) == (1, [])


def test_the_hash_is_that_of_the_configuration(run_folder, tmp_path: Path) -> None:
    out = run_folder(R)
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    row = read_rows(out / "summary.csv")[0] | {"config_hash": config_hash(config)}
    write_rows(out / "summary.csv", [row])
    assert verify_runs([str(tmp_path)]) == (1, [])
    text = (out / "config.yaml").read_text(encoding="utf-8")
    for harmless in ("verbose: true\n", "device: cuda\n", "checkpoint: {every: 1}\n"):
        (out / "config.yaml").write_text(text + harmless, encoding="utf-8")
        assert verify_runs([str(tmp_path)]) == (1, [])
    # A setting that is no column of the row.
    (out / "config.yaml").write_text(text + "surprise: 1\n", encoding="utf-8")
    (line,) = verify_runs([str(tmp_path)])[1]
    assert f"summary.csv says {config_hash(config)}" in line


def test_the_hash_is_known() -> None:
    """16 hex digits of SHA-256 of the sorted JSON, as sha256sum gives them."""
    config = {"seed": 0, "optimizer": {"lr": 0.1}, "verbose": True, "checkpoint": {"every": 60}}
    text = b'{"optimizer.lr": 0.1, "seed": 0}'
    assert config_hash(config) == hashlib.sha256(text).hexdigest()[:16]


@pytest.fixture
def costs(run_folder) -> Path:
    """A run's folder with costs of three tasks that add up."""
    out = run_folder(R, samples=60)
    spent = {"train_seconds": 0.7, "evaluation_seconds": 0.8, "steps": 6, "samples": 60}
    spent |= {"flops": 6000, "evaluation_flops": 40}
    held = {"parameters": 100, "buffer_bytes": None, "memory_bytes": 0}
    held |= {"generator_parameters": None, "peak_memory_bytes": 5000}
    write_rows(out / "summary.csv", [read_rows(out / "summary.csv")[0] | spent | held])
    first = {"train_seconds": 0.0, "evaluation_seconds": 0.2, "steps": 0, "samples": 0}
    first |= {"flops": 0, "evaluation_flops": 10}
    each = {"train_seconds": 0.7 / 3, "evaluation_seconds": 0.2, "steps": 2, "samples": 20}
    each |= {"flops": 2000, "evaluation_flops": 10}
    rows = [{"after_task": i, **(each if i else first), **held} for i in range(4)]
    write_rows(out / "costs.csv", rows)
    return out


def test_costs_that_add_up_pass(costs: Path, tmp_path: Path) -> None:
    assert verify_runs([str(tmp_path)]) == (1, [])
    (costs / "costs.csv").unlink()  # a run of an older version
    assert verify_runs([str(tmp_path)]) == (1, [])


@pytest.mark.parametrize(
    ("file", "column", "value", "line", "said"),
    [
        ("costs.csv", "samples", 21, 2, "costs.csv adds up to 61.0 samples, summary.csv says 60"),
        ("costs.csv", "flops", "", 1, "cannot read costs.csv"),
        ("costs.csv", "after_task", 1, 2, "costs.csv has the tasks [0, 1, 1, 3], not 0 to 3"),
        ("costs.csv", "parameters", 101, 3, "costs.csv ends with parameters '101', summary.csv"),
        ("summary.csv", "flops", 5999, 0, "adds up to 6000.0 flops, summary.csv says 5999"),
        ("summary.csv", "train_seconds", "", 0, "train_seconds, summary.csv says nothing"),
        (
            "summary.csv",
            "peak_memory_bytes",
            1,
            0,
            "peak_memory_bytes '5000', summary.csv says '1'",
        ),
    ],
)
def test_costs_that_do_not_add_up_are_found(
    costs: Path, tmp_path: Path, file: str, column: str, value: object, line: int, said: str
) -> None:
    change(costs / file, column, value, line)
    lines = verify_runs([str(tmp_path)])[1]
    assert len(lines) == 1 and said in lines[0], lines


@pytest.mark.parametrize("name", ["costs.csv", "accuracies.csv"])
def test_a_damaged_file_does_not_end_the_verification(
    costs: Path, run_folder, tmp_path: Path, name: str
) -> None:
    (costs / name).write_bytes((costs / name).read_bytes()[:-3])
    change(run_folder(R, seed=1) / "summary.csv", "ACC", 0.6)
    count, (damaged, wrong) = verify_runs([str(tmp_path)])
    assert count == 2
    assert f"{name} ends within a line" in damaged and "says ACC is 0.6" in wrong


@pytest.fixture
def seeds(run_folder, tmp_path: Path) -> Path:
    """What `seeds=[0,1,2]` leaves, one of them failed."""
    runs = {}
    for seed in (0, 1, 2):
        status = "failed" if seed == 2 else "complete"
        runs[seed] = run_folder(
            R * (1 - seed / 10), folder=f"seed={seed}", seed=seed, status=status
        )
        write_rows(runs[seed] / "calibration.csv", [{"after_task": 2, "NLL": seed}])
    merge_seeds(tmp_path / "runs", runs)
    return tmp_path / "runs"


def test_a_folder_of_seeds_passes(seeds: Path) -> None:
    assert {row["metric"] for row in read_rows(seeds / "statistics.csv")} >= {
        "ACC",
        "learning_accuracy",
        "average_incremental_accuracy",
    }
    assert verify_runs([str(seeds)]) == (3, [])


@pytest.mark.parametrize(
    ("file", "column", "value", "said"),
    [
        ("statistics.csv", "mean", 0.6, "statistics.csv says 0.6 for mean of ACC, its runs 0.538"),
        ("statistics.csv", "n", 3, "statistics.csv says 3 for n of ACC, its runs 2"),
        ("statistics.csv", "high", "", "statistics.csv says nothing for high of ACC, its runs"),
        ("statistics.csv", "metric", "BWT", "statistics.csv has no row of ACC"),
        ("accuracies.csv", "accuracy", 0.5, "accuracies.csv has 36 rows that are not the 36 of"),
        ("accuracy_matrix.csv", "task_1", 0.5, "accuracy_matrix.csv has 12 rows that are not"),
        ("calibration.csv", "NLL", 0.5, "calibration.csv has 3 rows that are not the 3 of"),
    ],
)
def test_what_seeds_are_said_to_give_is_checked(
    seeds: Path, file: str, column: str, value: object, said: str
) -> None:
    change(seeds / file, column, value)
    lines = verify_runs([str(seeds)])[1]
    assert any(said in line for line in lines), lines


def test_rows_that_a_folder_of_seeds_lost_are_found(seeds: Path) -> None:
    rows = read_rows(seeds / "accuracies.csv")
    write_rows(seeds / "accuracies.csv", rows[:-1])
    (line,) = verify_runs([str(seeds)])[1]
    assert line == f"{seeds}: accuracies.csv has 35 rows that are not the 36 of its runs"
    (seeds / "accuracies.csv").unlink()
    assert verify_runs([str(seeds)])[1] == [f"{seeds}: accuracies.csv is missing"]


def test_a_table_alone_cannot_be_verified(run_folder, tmp_path) -> None:
    out = run_folder(R)
    (out / "summary.csv").rename(tmp_path / "table.csv")
    with pytest.raises(UserError, match="no run folders"):
        verify_runs([str(tmp_path / "table.csv")])


# What somebody else may have written.


def test_aliases_that_stand_for_gigabytes_are_not_expanded(run_folder, tmp_path) -> None:
    out = run_folder(R)
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))
    (out / "config.yaml").write_text(bomb, encoding="utf-8")
    (line,) = verify_runs([str(tmp_path)])[1]
    assert "config.yaml holds anchors or aliases" in line


@pytest.mark.parametrize("text", ["- 1\n", "[" * 1000, "a: \x1b\n", ": : :\n", ""])
def test_a_configuration_that_is_none_is_one_line(run_folder, tmp_path, text: str) -> None:
    out = run_folder(R)
    (out / "config.yaml").write_text(text, encoding="utf-8")
    lines = verify_runs([str(tmp_path)])[1]
    assert lines
    assert all("config.yaml" in line and line.isprintable() for line in lines)


@pytest.mark.unix
@pytest.mark.parametrize("name", ["config.yaml", "accuracies.csv", "costs.csv", "statistics.csv"])
def test_pipes_are_not_waited_for(run_folder, tmp_path, name: str) -> None:
    out = run_folder(R)
    (out / name).unlink(missing_ok=True)
    os.mkfifo(out / name)
    assert len(verify_runs([str(tmp_path)])[1]) <= 1
    assert any(name in line for line in verify_runs([str(tmp_path)])[1]) or name == "statistics.csv"


def test_numbers_too_large_to_add_are_a_discrepancy(costs: Path) -> None:
    change(costs / "costs.csv", "flops", 1e308, 1)
    change(costs / "costs.csv", "flops", 1e308, 2)
    assert any("costs.csv" in line for line in verify_runs([str(costs)])[1])


def test_seeds_with_numbers_too_large_to_square_are_a_discrepancy(seeds: Path) -> None:
    for name in ("seed=0", "seed=1"):
        change(seeds / name / "summary.csv", "ACC", 1e308 if name == "seed=0" else -1e308)
    lines = verify_runs([str(seeds)])[1]
    assert any("says ACC is 1e+308" in line for line in lines)
    assert any("statistics.csv" in line for line in lines)


def test_a_neighbour_without_a_row_is_no_crash(seeds: Path) -> None:
    path = seeds / "seed=1" / "summary.csv"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    count, lines = verify_runs([str(seeds / "seed=0")])
    assert count == 1
    assert any("statistics.csv says" in line for line in lines)


def test_a_summary_without_its_number_of_tasks_is_no_crash(costs: Path) -> None:
    path = costs / "summary.csv"
    edited = path.read_text(encoding="utf-8").replace("benchmark.num_tasks", "benchmark.tasks")
    path.write_text(edited, encoding="utf-8")
    lines = verify_runs([str(costs)])[1]
    assert any("costs.csv has the tasks [0, 1, 2, 3], not 0 to the last" in line for line in lines)
