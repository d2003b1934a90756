"""`cl.load_runs`: what the files say, as tables with types."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import cl_runner as cl
from cl_runner.api import frames, html
from cl_runner.results.matrices import read_matrix

SUMMARY = {"status": "complete", "benchmark": "toy", "scenario": "task", "strategy": "er"}


def test_a_run_tells_what_its_files_say(four):
    run = cl.load_runs(four / "er0")[0]
    assert run.status == "complete" and run.reason == "" and run.curves is None
    assert run.folder == (four / "er0").resolve()
    R = read_matrix(four / "er0/accuracy_matrix.csv")
    assert run.matrix.to_numpy().tolist() == R.tolist()
    assert list(run.matrix.index) == ["untrained", "task 1", "task 2"]
    assert list(run.matrix.columns) == ["task 1", "task 2"]
    assert (run.matrix.index.name, run.matrix.columns.name) == ("after", "task")
    assert set(run.matrices) == {("test", "class"), ("test", "task")}
    assert run.metrics["ACC"] == R[-1].mean()
    assert run.metrics.dtype == float and "seconds" not in run.metrics
    assert run.config == yaml.safe_load((four / "er0/config.yaml").read_text())
    assert run.summary["model.hidden_sizes"] == [8]
    assert list(run.costs.index) == [0, 1, 2] and run.costs.steps.tolist() == [0, 4, 4]
    assert run.accuracies.accuracy.dtype == float and len(run.accuracies) == 12


def test_names_of_tasks_are_those_of_the_matrix(four, tmp_path):
    shutil.copytree(four / "er0", tmp_path / "run")
    (tmp_path / "run/accuracy_matrix.csv").write_text(
        "after_task,after_name,spring,autumn\n0,,0.1,0.2\n1,spring,0.5,0.25\n2,autumn,0.25,\n"
    )
    matrix = cl.load_runs(tmp_path)[0].matrix
    assert list(matrix.index) == ["untrained", "spring", "autumn"]
    assert matrix.loc["spring", "autumn"] == 0.25 and math.isnan(matrix.iloc[2, 1])


def test_what_was_measured_within_the_tasks_is_in_curves(small, tmp_path):
    run = cl.run(*small, strategy="naive", eval__every=2, out=tmp_path / "run")
    assert run.curves is not None
    assert sorted(set(run.curves.step)) == [0, 2] and run.curves.step.dtype == "int64"


def test_several_runs_are_a_sequence_and_tables(four):
    runs = cl.load_runs(four)
    assert [run.name for run in runs] == [f"{s} seed={n}" for s in ("er", "naive") for n in (0, 1)]
    assert isinstance(runs[0], cl.Run) and isinstance(runs[1:], cl.Runs) and len(runs[1:]) == 3
    with pytest.raises(IndexError):
        runs[4]
    table = runs.summaries
    assert table.index.tolist() == [0, 1, 2, 3] and table.index.name == "run"
    assert table.seed.tolist() == [0, 1, 0, 1] and table.seed.dtype == "int64"
    assert table["model.hidden_sizes"].tolist() == [[8]] * 4
    assert table["optimizer.lr"].dtype == table.ACC.dtype == "float64"
    assert table["strategy.buffer_size"].dtype == "Int64"  # which naive has not
    assert table["eval.calibration"].dtype == "bool"
    assert [Path(path) for path in table.folder] == [run.folder for run in runs]
    assert not table.isna().all().any()
    assert "energy_joules" not in table and "data.path" not in table


def test_tidy_tables_say_whose_a_row_is(four):
    runs = cl.load_runs([four / "er0", four / "naive1"])
    for table in (runs.accuracies, runs.costs):
        whose = table[["run", "strategy", "seed"]].drop_duplicates()
        assert whose.to_numpy().tolist() == [[0, "er", 0], [1, "naive", 1]]
    own = runs.accuracies.query("run == 1").drop(columns=["run", "benchmark", "scenario"])
    assert own.accuracy.tolist() == runs[1].accuracies.accuracy.tolist()
    assert runs.costs.groupby("run").steps.sum().tolist() == [8, 8]


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 4),
        ({"strategy": "er"}, 2),
        ({"strategy": ["er", "naive"], "seed": 0}, 2),
        ({"strategy": ("er", "ewc")}, 2),
        ({"model__hidden_sizes": [8]}, 4),
        ({"model__hidden_sizes": [[8], [16]]}, 4),
        ({"model__hidden_sizes": [8, 8]}, 0),
        ({"strategy__buffer_size": None}, 2),
        ({"eval__calibration": False, "optimizer__lr": 0.1}, 4),
        ({"seed": range(1, 5)}, 2),
    ],
)
def test_where_chooses_by_settings(four, settings, number):
    assert len(cl.load_runs(four).where(**settings)) == number


def test_where_with_an_unknown_name_is_told(four):
    runs = cl.load_runs(four)
    with pytest.raises(cl.UserError, match="no run has a column strateg; did you mean strategy"):
        runs.where(strateg="er")
    with pytest.raises(cl.UserError, match="write strategy__lambda="):
        runs.where(**{"strategy.lambda": 1})


def test_runs_that_failed_are_told_apart(four, tmp_path):
    shutil.copytree(four / "er0", tmp_path / "good")
    (tmp_path / "bad").mkdir()
    about = {"state": "failed", "reason": "no\nmemory <b>", "exception": "UserError"}
    (tmp_path / "bad/status.json").write_text(json.dumps(about))
    runs = cl.load_runs(tmp_path)
    assert [run.reason for run in runs.failed] == ["no memory <b>"]
    assert repr(runs).startswith("<Runs: 2 runs, 1 failed>")
    assert "no memory &lt;b&gt;" in runs.failed[0]._repr_html_()
    with pytest.raises(cl.UserError, match=r"has no accuracy_matrix.csv in .*: its status is fail"):
        _ = runs.failed[0].matrix
    assert runs.summaries.status.tolist() == ["failed", "complete"]
    assert set(runs.accuracies.run) == {1}


@pytest.mark.parametrize(
    ("cells", "name", "dtype", "values"),
    [
        (["1", "2"], "seed", "int64", [1, 2]),
        (["1", ""], "seed", "Int64", [1, pd.NA]),
        (["1", "2"], "strategy.lambda", "float64", [1.0, 2.0]),
        (["1", ""], "ACC", "float64", [1.0, math.nan]),
        (["0", "5"], "task_forgetting", "float64", [0.0, 5.0]),
        (["7", "8"], "flops", "int64", [7, 8]),
        (["True", "False"], "eval.online", "bool", [True, False]),
        (["True", ""], "eval.online", "boolean", [True, pd.NA]),
        (["[1, 2]", "[]"], "model.hidden_sizes", "object", [[1, 2], []]),
        (['["a"]', ""], "plugins", "object", [["a"], None]),
        (["1234567890123456", "12345678901e3456"], "config_hash", "object", None),
        (["2024", "1e5"], "data.path", "object", None),
        (["2.13", "2.9"], "torch_version", "object", None),
        (["all", "3"], "eval.tasks", "object", None),
        (["1", "2.5"], "strategy.of_somebody", "float64", [1.0, 2.5]),
        (["1", "2.5", "x"], "strategy.of_somebody", "object", None),
        (["[1", "x"], "strategy.of_somebody", "object", None),
    ],
)
def test_a_column_has_its_type(cells, name, dtype, values):
    rows = [{"strategy": "ewc", name: cell} for cell in cells]
    column = frames.table(rows)[name]
    assert column.dtype == dtype
    expected = pd.Series(cells if values is None else values, dtype=dtype, name=name)
    pd.testing.assert_series_equal(column, expected)


def test_a_notebook_shows_small_tables_without_what_could_run(four, monkeypatch):
    monkeypatch.chdir(four)
    run = cl.load_runs("er0")[0]
    shown = run._repr_html_()
    assert shown.count("<td") == 6 and "<div>er0</div>" in shown and "ACC 0." in shown
    assert repr(run).startswith("<Run er seed=0: complete · ACC 0.")
    matrix = run.matrix.set_axis(["<script>x</script>", "b"], axis=1)
    assert "<script>" not in html.shaded(matrix) and "&lt;script&gt;" in html.shaded(matrix)
    runs = cl.load_runs(".")
    assert runs._repr_html_().count("<tr>") == 5
    assert "er0" in repr(runs)
    assert str(four) not in runs._repr_html_() + shown + repr(runs) + repr(run)


def test_the_colour_of_a_cell_follows_the_accuracy():
    low, high, missing = (html.cell(value) for value in (0.0, 1.0, math.nan))
    assert "rgb(253,231,220);color:#000" in low and "rgb(44,123,182);color:#fff" in high
    assert missing == "<td></td>"


def test_of_many_tasks_only_their_number_is_shown():
    wide = pd.DataFrame([[0.5] * 30], columns=range(30))
    assert "<td" not in html.shaded(wide) and html.shaded(wide).startswith("30 tasks")


@pytest.mark.parametrize("paths", ["nowhere", ["nowhere"], []])
def test_no_runs_are_one_line(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cl.UserError, match=r"no file or folder nowhere|no path to load"):
        cl.load_runs(paths)


def test_a_merged_table_alone_has_summaries(tmp_path):
    """Of a sweep whose folders are gone."""
    rows = [{"run": f"er{seed}", **SUMMARY, "seed": seed, "ACC": 0.5} for seed in (0, 1)]
    pd.DataFrame(rows).to_csv(tmp_path / "summary.csv", index=False)
    runs = cl.load_runs(tmp_path / "summary.csv")
    assert runs.summaries.ACC.tolist() == [0.5, 0.5] and "run" not in runs.summaries.columns
    assert runs.accuracies.empty and runs[0].status == "complete"
    with pytest.raises(cl.UserError, match=r"er seed=0 has no accuracy_matrix.csv"):
        _ = runs[0].matrix


def test_the_trained_network_is_there(four):
    """It takes images as the data set has them, and gives probabilities."""
    run = cl.load_runs(four / "er0")[0]
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    for model in (run.model, cl.load_model(run), cl.load_model(four / "er0")):
        probabilities = model(images)
        assert probabilities.shape == (3, len(model.classes))
        assert torch.allclose(probabilities.sum(1), torch.ones(3))
