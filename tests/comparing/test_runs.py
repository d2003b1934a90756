"""Every run once, and one clear line for what is not a run."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest

from cl_runner.comparing.render import csv_text
from cl_runner.comparing.runs import Run, read_runs, select, version_notes
from cl_runner.comparing.table import Question, compare_runs
from cl_runner.errors import UserError
from cl_runner.results import status
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.seeds import merge_seeds
from cl_runner.sweeping import merge


def seeds(runs: list[Run]) -> list[str]:
    return sorted(run.row["seed"] for run in runs)


@pytest.fixture
def swept(run_folder, tmp_path: Path) -> Path:
    """A sweep of three runs with its merged summary.csv."""
    for seed in range(3):
        run_folder(0.5 + seed / 10, seed=seed, folder=f"job{seed}")
    merge.merge(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    "pattern", [".", "summary.csv", "job*", "*", "**/summary.csv", "job?/summary.csv"]
)
def test_each_run_counts_once_however_it_is_named(swept: Path, pattern: str) -> None:
    runs, _ = read_runs([str(swept / pattern), str(swept)])
    assert seeds(runs) == ["0", "1", "2"]
    assert {run.folder.name for run in runs} == {"job0", "job1", "job2"}


def test_a_merged_table_without_its_folders_is_read_itself(swept: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.csv"
    shutil.copy(swept / "summary.csv", alone)
    assert seeds(read_runs([str(alone)])[0]) == ["0", "1", "2"]
    shutil.rmtree(swept / "job1")  # half of it is there: the rest comes from the table
    runs, _ = read_runs([str(swept)])
    assert seeds(runs) == ["0", "1", "2"]
    assert {run.source.parent.name for run in runs} == {"runs", "job0", "job2"}


def test_runs_of_several_seeds_count_once(run_folder, tmp_path: Path) -> None:
    folders = {seed: run_folder(seed=seed, folder=f"many/seed={seed}") for seed in range(2)}
    merge_seeds(tmp_path / "runs" / "many", folders)
    assert seeds(read_runs([str(tmp_path)])[0]) == ["0", "1"]
    # A sweep of such runs lists the folder of the seeds beside each seed.
    merge.merge(tmp_path / "runs")
    assert seeds(read_runs([str(tmp_path)])[0]) == ["0", "1"]
    shutil.copy(tmp_path / "runs/summary.csv", tmp_path / "alone.csv")
    shutil.copy(tmp_path / "runs/many/summary.csv", tmp_path / "seeds.csv")
    shutil.rmtree(tmp_path / "runs")
    runs, notes = read_runs([str(tmp_path / "alone.csv")])
    assert (seeds(runs), notes) == (["0", "1"], [])
    assert seeds(read_runs([str(tmp_path / "seeds.csv")])[0]) == ["0", "1"]


def test_a_seed_that_failed_stays_beside_the_others(run_folder, tmp_path: Path) -> None:
    run_folder(seed=0, folder="many/seed=0")
    folder = tmp_path / "runs" / "many"
    (folder / "seed=1").mkdir()
    for path in (folder, folder / "seed=1"):
        status.fail(path, UserError("no"))
    runs, _ = read_runs([str(tmp_path)])
    assert [run.row["status"] for run in runs] == ["complete", "failed"]


def test_files_of_the_same_name_in_one_folder_are_different_runs(run_folder, tmp_path) -> None:
    for name in ("a", "b"):
        shutil.copy(run_folder(strategy=name) / "summary.csv", tmp_path / f"{name}.csv")
    runs, _ = read_runs([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    assert {run.row["strategy"] for run in runs} == {"a", "b"}


def test_a_job_that_never_started_is_a_failed_run(run_folder, tmp_path: Path) -> None:
    run_folder()
    job = tmp_path / "runs" / "job"
    job.mkdir()
    status.fail(job, UserError("no data"))
    for merged in (False, True):
        if merged:
            merge.merge(tmp_path / "runs")
        runs, _ = read_runs([str(tmp_path)])
        assert sorted(run.row["status"] for run in runs) == ["complete", "failed"]


def test_the_same_result_twice_is_counted_once_and_said(run_folder) -> None:
    first, second = run_folder(folder="one"), run_folder(folder="two")
    runs, notes = read_runs([str(first), str(second)])
    assert len(runs) == 1
    assert notes == [f"counted once: er seed=0 in {first} and {second}"]


def test_two_results_of_one_configuration_are_refused(run_folder) -> None:
    one = run_folder(0.5, folder="one")
    two = run_folder(0.6, folder="two", versions={"commit": "def"})
    with pytest.raises(UserError, match="they differ in commit: choose with --where"):
        read_runs([str(one), str(two)])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_damaged_files_are_refused_in_one_line(run_folder, tmp_path: Path) -> None:
    path = run_folder() / "summary.csv"
    whole = path.read_text(encoding="utf-8")
    for text, reason in [
        (whole[:-30], "ends within a line; the file is damaged"),
        (whole[:-30] + "\n", "cells; the file is damaged"),
        (whole[:20], "ends within a line"),
        ("", "is empty"),
        (whole.splitlines()[0] + "\n", "no runs in"),
        (whole.replace("status", "state"), "has no column status"),
        (whole.replace(",ACC,", ",CCA,", 1), "has no column ACC"),
        (whole.replace(",ACC,BWT", ",ACC,ACC", 1), "a column is there twice"),
        ("\x00" + whole, "cannot read|has no column status"),
        ('"' + whole, "cannot read|is no summary"),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=reason) as error:
            read_runs([str(tmp_path)])
        assert "\n" not in str(error.value)
    path.write_bytes(b"status\n\xff\n")
    with pytest.raises(UserError, match="cannot read"):
        read_runs([str(tmp_path)])


def test_a_complete_run_without_its_accuracy_is_refused(run_folder) -> None:
    path = run_folder() / "summary.csv"
    row = read_rows(path)[0]
    write_rows(path, [row | {"ACC": ""}])
    with pytest.raises(UserError, match="er seed=0 is complete but has no ACC"):
        read_runs([str(path)])


def test_no_runs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs in"):
        read_runs([str(tmp_path)])
    with pytest.raises(UserError, match="there is no file or folder"):
        read_runs([str(tmp_path / "*.csv")])


def test_other_files_are_skipped_and_named(run_folder, tmp_path: Path) -> None:
    out = run_folder()
    other = tmp_path / "multirun.yaml"
    other.touch()
    runs, notes = read_runs([str(other), *map(str, out.iterdir())])
    assert len(runs) == 1
    assert "multirun.yaml" in notes[0] and "accuracies.csv" in notes[0]


def test_where_keeps_what_has_the_value(run_folder, tmp_path: Path) -> None:
    for size in (10, 20, 30):
        run_folder(strategy__buffer_size=size)
    run_folder(strategy="ewc", strategy__lambda=1.0)
    runs, _ = read_runs([str(tmp_path)])
    sizes = [r.row["strategy.buffer_size"] for r in select(runs, ["strategy.buffer_size=10,30"])]
    assert sorted(sizes) == ["10", "30"]
    assert [r.row["strategy"] for r in select(runs, ["strategy.lambda=1"])] == ["ewc"]
    assert len(select(runs, ["strategy=er", "strategy.buffer_size=20.0"])) == 1
    for condition, reason in [
        ("strategy.bufer_size=1", "did you mean strategy.buffer_size"),
        ("strategy=der", "no run is left; strategy is one of er, ewc"),
        ("strategy", "write key=value"),
    ]:
        with pytest.raises(UserError, match=reason):
            select(runs, [condition])


def test_mixed_versions_are_said(run_folder) -> None:
    one = run_folder(seed=0)
    two = run_folder(seed=1, versions={"cl_runner_version": "2"}, training__augment="none")
    notes = version_notes(read_runs([str(one), str(two)])[0])
    assert notes == ["mixed cl_runner_version: 1, 2", "some runs have no column training.augment"]


def test_calibration_is_the_mean_over_the_tasks_after_the_last(run_folder, tmp_path) -> None:
    out = run_folder(0.5, scenario="class")
    rows = [
        {"after_task": k, "eval_task": j, "reading": reading, "split": split}
        | {"NLL": k * j + shift, "Brier": j / 4, "ECE": shift}
        for k in (0, 1, 2, 3)
        for j in (1, 2, 3)
        for split, reading, shift in (("test", "class", 0), ("validation", "task", 1))
    ]
    write_rows(out / "calibration.csv", rows)
    (run,) = read_runs([str(tmp_path)])[0]
    names = ("NLL", "Brier", "ECE", "validation_task_NLL", "validation_task_ECE")
    assert [run.number(name) for name in names] == [6, 0.5, 0, 7, 1]
    (out / "calibration.csv").write_text("after_task\n3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot read .*calibration\.csv"):
        read_runs([str(tmp_path)])


# What no run can have measured, and what a terminal or a spreadsheet would obey.


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("ACC", "nan", "ACC of er seed=0 is 'nan', which is not in [0, 1]"),
        ("ACC", "inf", "ACC of er seed=0 is 'inf', which is not in [0, 1]"),
        ("ACC", "-5", "ACC of er seed=0 is '-5', which is not in [0, 1]"),
        ("ACC", "1.2", "ACC of er seed=0 is '1.2', which is not in [0, 1]"),
        ("ACC", "1e308", "ACC of er seed=0 is '1e308', which is not in [0, 1]"),
        ("forgetting", "-1.5", "forgetting of er seed=0 is '-1.5', which is not in [-1, 1]"),
        ("task_ACC", "2", "task_ACC of er seed=0 is '2', which is not in [0, 1]"),
        ("seconds", "-1", "seconds of er seed=0 is '-1', which is not in [0, 1e+30]"),
        ("samples", "1e308", "samples of er seed=0 is '1e308', which is not in [0, 1e+30]"),
        ("ACC", "much" * 100, f"ACC of er seed=0 is '{'much' * 15}'..., not a number"),
    ],
)
def test_what_cannot_have_been_measured_is_refused(run_folder, column, value, said) -> None:
    path = run_folder(scenario="class") / "summary.csv"
    write_rows(path, [read_rows(path)[0] | {column: value}])
    with pytest.raises(UserError) as error:
        read_runs([str(path)])
    assert str(error.value) == f"{path}: {said}"


def test_absurd_numbers_of_a_failed_run_are_nobodys_business(run_folder, tmp_path) -> None:
    path = run_folder(status="failed") / "summary.csv"
    write_rows(path, [read_rows(path)[0] | {"ACC": "inf"}])
    assert [run.row["ACC"] for run in read_runs([str(tmp_path)])[0]] == ["inf"]


def test_a_sum_may_exceed_one_by_rounding(run_folder) -> None:
    path = run_folder() / "summary.csv"
    write_rows(path, [read_rows(path)[0] | {"ACC": 1.0000000000000002, "BWT": -1.0000000000000002}])
    assert len(read_runs([str(path)])[0]) == 1


@pytest.mark.parametrize("cell", ["nan", "-0.1", "3", "inf", "x"])
def test_absurd_calibration_is_refused(run_folder, cell: str) -> None:
    out = run_folder()
    row = {"after_task": 3, "reading": "domain", "split": "test", "NLL": 0.1, "Brier": cell}
    write_rows(out / "calibration.csv", [row | {"ECE": 0.1}])
    with pytest.raises(UserError, match=rf"calibration\.csv: Brier is '{cell}', "):
        read_runs([str(out)])


def test_control_characters_are_refused_and_not_repeated(run_folder, tmp_path: Path) -> None:
    path = run_folder() / "summary.csv"
    row = read_rows(path)[0]
    for spoilt in (row | {"strategy": "er\x1b]0;owned\x07"}, row | {"a.\x9b2J": "1"}):
        write_rows(path, [spoilt])
        with pytest.raises(UserError, match="has a control character, in '") as error:
            read_runs([str(tmp_path)])
        assert str(error.value).isprintable()


def test_a_table_that_a_spreadsheet_saved_is_read(run_folder) -> None:
    """With the mark of UTF-8 at its beginning, and other ends of lines."""
    path = run_folder() / "summary.csv"
    text = path.read_text(encoding="utf-8")
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert seeds(read_runs([str(path)])[0]) == ["0"]


def test_a_formula_in_a_header_is_escaped_and_read_back(run_folder, tmp_path) -> None:
    formula = '=HYPERLINK("x").y'
    path = run_folder() / "summary.csv"
    write_rows(path, [read_rows(path)[0] | {formula: "1"}])
    assert f'"\'{formula.replace(chr(34), chr(34) * 2)}"' in path.read_text(encoding="utf-8")
    runs, _ = read_runs([str(tmp_path)])
    assert runs[0].row[formula] == "1"
    found = compare_runs(runs, Question(by=(formula,)))
    header = csv_text(found).splitlines()[0]
    assert formula in found.streams[0].groups[0].settings
    assert not [name for name in next(csv.reader([header])) if name.startswith("=")]


@pytest.mark.unix
@pytest.mark.parametrize("name", ["summary.csv", "calibration.csv"])
def test_what_is_no_regular_file_is_refused(run_folder, name: str) -> None:
    out = run_folder()
    (out / name).unlink(missing_ok=True)
    os.mkfifo(out / name)
    with pytest.raises(UserError, match=rf"{name} is no regular file"):
        read_runs([str(out)])


def test_a_link_to_a_device_is_refused(tmp_path) -> None:
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"no regular file"):
        read_runs([str(tmp_path / "endless.csv")])


def test_a_run_that_lost_its_row_is_refused(swept: Path) -> None:
    path = swept / "job1" / "summary.csv"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"job1/summary\.csv has no row, but .* has one of its run"):
        read_runs([str(swept)])
    assert seeds(read_runs([str(swept / "job0"), str(swept / "job1")])[0]) == ["0"]
