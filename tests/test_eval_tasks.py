"""Which tasks are evaluated: `eval.tasks`."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from cl_runner.cli import failures
from cl_runner.comparing.render import short
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import Question, compare_runs
from cl_runner.comparing.verdict import verdict
from cl_runner.comparing.verify import verify_runs
from cl_runner.config.schema import Eval
from cl_runner.errors import UserError
from cl_runner.results import files, matrices, status
from cl_runner.results.columns import of_kind
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.results.text import format_matrix
from cl_runner.results.titles import UNNAMED
from cl_runner.running import needs
from cl_runner.running.evaluation import evaluate
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state

TOY = (
    *("benchmark=permuted_digits", "benchmark.num_tasks=5", "model.hidden_sizes=[16]"),
    *("training.batch_size=32", "training.iterations=4", "benchmark.train_samples=200"),
    *("verbose=false", "strategy=naive"),
)


def metrics_of(out: Path) -> dict[str, str]:
    (row,) = read_rows(out / "summary.csv")
    return {column.name: row.get(column.name, "") for column in of_kind("metric")}


@pytest.fixture(scope="module")
def whole(configure, tmp_path_factory) -> Path:
    """A run of which everything is evaluated."""
    out = tmp_path_factory.mktemp("whole")
    run(configure(*TOY, "eval.every=2", "eval.calibration=true"), out)
    return out


def measured(configure, out: Path, tasks: str, *more: str) -> Path:
    run(configure(*TOY, "eval.every=2", "eval.calibration=true", f"eval.tasks={tasks}", *more), out)
    return out


def test_seen_has_all_that_is_said_of_what_was_learnt(configure, whole, tmp_path):
    """Bit for bit; only FWT needs what was not yet learnt, before anything was."""
    seen = measured(configure, tmp_path / "seen", "seen")
    everything, own = metrics_of(whole), metrics_of(seen)
    assert own["FWT"] == "" != everything["FWT"]
    assert own | {"FWT": ""} == everything | {"FWT": ""}
    R, S = (read_matrix(out / "accuracy_matrix.csv") for out in (whole, seen))
    there = np.tri(6, 5, dtype=bool)  # the lower triangle, and the coming task
    np.testing.assert_array_equal(S, np.where(there, R, math.nan))
    assert run(configure(*TOY, "eval.tasks=seen", "resume=true"), tmp_path / "again") == float(
        own["ACC"]
    )


@pytest.mark.parametrize("tasks", ["last:1", "last:2", "last:9", "none"])
def test_what_is_not_evaluated_stays_empty_and_the_rest_is_the_same(
    configure, whole, tmp_path, tasks
):
    R = read_matrix(whole / "accuracy_matrix.csv")
    if tasks == "none":
        out = tmp_path / "none"
        result = run(configure(*TOY, "eval.tasks=none"), out)
    else:
        out = measured(configure, tmp_path / "run", tasks)
        result = float(metrics_of(out)["ACC"] or "nan")
    n = int(tasks[5:] or 0) if tasks != "none" else 0
    S = read_matrix(out / "accuracy_matrix.csv")
    for done in range(6):
        for j in range(5):
            trained, coming = done - n <= j < done, j == done
            there = tasks != "none" and (trained or coming)
            assert S[done, j] == R[done, j] if there else math.isnan(S[done, j])
    names = {name for name, value in metrics_of(out).items() if value}
    some = {"learning_accuracy", "next_task_accuracy"}
    if tasks == "none":
        assert not names and read_rows(out / "costs.csv")[-1]["evaluation_flops"] == "0"
    elif tasks == "last:9":
        assert some < names and "ACC" in names
    else:
        assert names == some
        assert not any(math.isnan(float(metrics_of(out)[name])) for name in some)
    assert math.isnan(result) == ("ACC" not in names)
    again = status.finished(out)
    assert again == result or (again is not None and math.isnan(again) and math.isnan(result))
    assert verify_runs([str(tmp_path)]) == (1, [])
    cells = sum(not np.isnan(S[i, j]) for i, j in np.ndindex(S.shape))
    tidy = [r for r in read_rows(out / "accuracies.csv") if r.get("step", "0") == "0"]
    assert len(tidy) == cells


def test_within_a_task_the_same_tasks_are_looked_at(configure, whole, tmp_path):
    """The coming one is then the one under way; read back, each accuracy is its task's."""
    out = measured(configure, tmp_path / "run", "last:1")
    full, part = (
        matrices.read_curves(o / "accuracies.csv", 5)["test", "domain"] for o in (whole, out)
    )
    assert [row[:2] for row in full] == [row[:2] for row in part] != []
    for a, b in zip(full, part, strict=True):
        done = int(a[0])
        assert b[2:] == pytest.approx(
            [v if done - 1 <= j <= done else math.nan for j, v in enumerate(a[2:])], nan_ok=True
        )
    assert math.isnan(float(metrics_of(out)["min_ACC"] or "nan"))


def test_only_what_is_evaluated_soon_is_kept_ready(prepared):
    """Of a stream without end the memory does not grow."""
    config, strategy, env = prepared(*TOY, "eval.tasks=last:2", "benchmark.validation_fraction=0.2")
    s = initial_state(strategy, env)
    for done in range(6):
        evaluate(strategy, s, env, shown=config.eval.shown(done, 5))
        tasks = set(config.eval.shown(done, 5))
        assert {key[1] for key in env.stream.cache} == tasks and len(tasks) <= 3
    shown = [
        needs.of_data(env.stream, None, Eval(tasks=tasks))["data"]
        for tasks in ("none", "last:1", "last:2", "seen", "all")
    ]
    one = len(env.stream[0].test) * env.stream.x_test[0].nbytes
    assert shown == [0, 2 * one, 3 * one, 5 * one, 5 * one]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            "last:0",
            "eval.tasks must be all, seen, last:N with N of at least 1, or none, got 'last:0'",
        ),
        ("sometimes", "got 'sometimes'"),
        ("last:-1", "got 'last:-1'"),
        ("last:", "got 'last:'"),
        ("last:1.5", "got 'last:1.5'"),
        ("last:\u0663", "got 'last:\u0663'"),
        ("last:9999999999", "got 'last:9999999999'"),
        ("", "got ''"),
    ],
)
def test_another_word_is_refused(tasks, message):
    with pytest.raises(UserError) as caught:
        Eval(tasks=tasks)
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "none", "every": 3}, "eval.every has no meaning with eval.tasks=none"),
        ({"tasks": "none", "calibration": True}, "eval.calibration has no meaning"),
        ({"tasks": "none", "features": True}, "eval.features has no meaning"),
        ({"online_window": 3}, "eval.online_window=3 needs eval.online=true"),
        ({"online": True, "online_window": 0}, "eval.online_window must be at least 1 step"),
    ],
)
def test_what_means_nothing_together_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Eval(**options)


# What a comparison makes of it.


def test_a_comparison_says_what_there_is_in_the_place_of_acc(configure, tmp_path):
    for seed in (0, 1):
        case = (*TOY, "eval.tasks=last:1", "eval.calibration=true", f"seed={seed}")
        run(configure(*case), tmp_path / str(seed))
    runs, _ = read_runs([str(tmp_path)])
    said = verdict(compare_runs(runs, Question()))
    assert said == [
        "No complete run has ACC; --metric can be learning_accuracy and next_task_accuracy."
    ]
    (group,) = compare_runs(runs, Question(metric="next_task_accuracy")).streams[0].groups
    assert group.best and group.mean("next_task_accuracy") is not None
    assert group.mean("ACC") is None and group.mean("forgetting") is None
    assert group.mean("NLL") is None  # not the mean over two of five tasks


def test_what_is_printed_has_the_metrics_that_there_are(configure, tmp_path, capsys):
    case = (*TOY, "verbose=true", "eval.tasks=last:1", "eval.online=true")
    run(configure(*case), tmp_path / "job", job="job 1 of 2")
    said = metrics_of(tmp_path / "job")
    names = ("next_task_accuracy", "online_accuracy")
    line = " · ".join(f"{name} {float(said[name]):.4f}" for name in names)
    assert capsys.readouterr().out.startswith(f"job 1 of 2 · {line} · ")
    run(configure(*case), tmp_path / "alone")
    assert capsys.readouterr().out.splitlines()[-2] == line
    run(configure(*TOY, "verbose=true", "eval.tasks=none"), tmp_path / "none", job="job 2 of 2")
    assert "·  ·" not in capsys.readouterr().out
    runs, _ = read_runs([str(tmp_path / "job")])
    assert "learning accuracy" in short(compare_runs(runs, Question()))


def test_a_long_matrix_is_not_printed():
    assert format_matrix(np.zeros((51, 50))).count("\n") == 51
    elsewhere = "tasks: the accuracies are in accuracy_matrix.csv"
    assert format_matrix(np.zeros((52, 51))) == f"51 {elsewhere}"


def test_a_matrix_wider_than_the_terminal_is_not_printed():
    widest = max(map(len, format_matrix(np.zeros((11, 10))).splitlines()))
    fits = format_matrix(np.zeros((11, 10)), width=widest)
    assert fits.count("\n") == 11
    elsewhere = "10 tasks: the accuracies are in accuracy_matrix.csv"
    assert format_matrix(np.zeros((11, 10)), width=widest - 1) == elsewhere


def test_a_missing_acc_that_was_to_be_measured_is_damage(configure, tmp_path):
    run(configure(*TOY, "eval.tasks=seen"), tmp_path)
    (row,) = read_rows(tmp_path / "summary.csv")
    files.write_rows(tmp_path / "summary.csv", [row | {"ACC": ""}])
    for look in (lambda: status.finished(tmp_path), lambda: read_runs([str(tmp_path)])):
        with pytest.raises(UserError, match="is complete but has no ACC"):
            look()


def test_other_empty_cells_than_those_left_out_are_found(configure, tmp_path):
    run(configure(*TOY, "eval.tasks=last:1"), tmp_path)
    path = tmp_path / "accuracy_matrix.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[1][5] = "0.5"
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    said = verify_runs([str(tmp_path)])[1]
    assert any(
        "accuracy_matrix.csv has 11 cells, not those of eval.tasks=last:1" in s for s in said
    )


def test_a_search_gets_acc_or_is_refused(configure, monkeypatch):
    """A job of a grid is not: there nobody reads what it returns."""
    monkeypatch.setattr(failures, "searched", lambda: True)
    for tasks in ("all", "seen", "last:5"):
        failures.check_search(configure(*TOY, f"eval.tasks={tasks}"))
    config = configure(*TOY, "eval.tasks=last:4")
    with pytest.raises(UserError, match=r"a search needs ACC, which eval.tasks=last:4 does not"):
        failures.check_search(config)
    monkeypatch.setattr(failures, "searched", lambda: False)
    failures.check_search(config)


# Files that grow.


def test_lines_that_were_made_before_change_no_byte(tmp_path):
    """Written after each task, as a run does, and written once at the end."""
    draw = np.random.default_rng(0)
    made: files.Lines = {}
    R = np.full((5, 4), np.nan)
    curves: matrices.Curves = {("test", "class"): []}
    for done in range(5):
        R[done, max(0, done - 1) : done + 1] = draw.random(len(R[0, max(0, done - 1) : done + 1]))
        measured = {("test", "class"): R, ("validation", "task"): R / 2}
        matrices.write_matrices(tmp_path, measured, "class", curves, made=made)
        curves["test", "class"].append([done, 3, 0.5, *[math.nan] * 3])
    curves["test", "class"].pop()
    once = tmp_path / "once"
    once.mkdir()
    matrices.write_matrices(once, measured, "class", curves)
    names = [path.name for path in once.iterdir()]
    assert len(names) == 3
    for name in names:
        assert (once / name).read_bytes() == (tmp_path / name).read_bytes(), name
    rows = [{"after_task": i, "x": value} for i, value in enumerate((0.1, None, "=1+1", "a,b"))]
    for n in range(1, 5):
        files.write_grown(tmp_path / "grown.csv", rows[:n], UNNAMED, made)
    assert (tmp_path / "grown.csv").read_text() == files.csv_text(rows)
