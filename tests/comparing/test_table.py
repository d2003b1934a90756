"""Groups, bounds and what is computed of them, on matrices whose metrics are known by hand."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from cl_runner.comparing.render import records
from cl_runner.comparing.runs import Run, read_runs
from cl_runner.comparing.table import Comparison, Question, compare_runs
from cl_runner.errors import UserError
from cl_runner.functional import metrics
from cl_runner.results.columns import larger_is_better
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.matrices import read_matrix, summarise


def ask(path: Path, **question: object) -> Comparison:
    return compare_runs(read_runs([str(path)])[0], Question(**question))


def labels(comparison: Comparison, stream: int = 0) -> list[str]:
    return [g.label for g in comparison.streams[stream].groups]


def row_of(comparison: Comparison, strategy: str) -> dict:
    (row,) = [r for r in records(comparison) if r["strategy"] == strategy]
    return row


# Which runs belong together.


def test_settings_that_differ_within_a_strategy_make_groups(run_folder, tmp_path) -> None:
    for seed in (0, 1):
        run_folder(0.5, seed=seed, strategy__buffer_size=10, strategy__policy="ring")
        run_folder(0.6, seed=seed, strategy__buffer_size=20, strategy__policy="ring")
        run_folder(0.4, seed=seed, strategy="ewc", strategy__lambda=3.0)
    found = ask(tmp_path)
    assert labels(found) == ["er buffer_size=20", "er buffer_size=10", "ewc"]
    assert [list(g.runs) for g in found.streams[0].groups] == [[0, 1]] * 3


def test_only_the_best_group_is_best_and_it_is_first(run_folder, tmp_path) -> None:
    for strategy, acc in {"a": 0.3, "b": 0.7, "c": 0.5}.items():
        for seed in range(3):
            run_folder(acc + seed / 100 * acc, strategy=strategy, seed=seed)
    found = ask(tmp_path)
    assert labels(found) == ["b", "c", "a"]
    assert [g.distinguishable for g in found.streams[0].groups] == ["best", "yes", "yes"]
    assert labels(ask(tmp_path, metric="forgetting")) == ["b", "c", "a"]  # less is better
    assert [larger_is_better(n) for n in ("task_ACC", "BWT", "seconds", "forgetting")] == [
        *(True, True, False, False)
    ]


def test_different_streams_are_never_mixed(run_folder, tmp_path) -> None:
    run_folder(0.5, benchmark__class_order="natural")
    run_folder(0.5, scenario="task")
    run_folder(0.5, benchmark="other")
    run_folder(0.5, benchmark__class_order="shuffled")
    run_folder(np.full((3, 2), 0.5), folder="short", benchmark__class_order="natural")
    found = ask(tmp_path)
    assert len(found.streams) == 5
    assert {s.title for s in found.streams} >= {"toy class_order=shuffled, 3 tasks, domain-IL"}
    assert all(len(s.groups) == 1 and s.groups[0].settings == {} for s in found.streams)


def test_a_benchmark_seed_that_follows_the_seed_is_no_setting(run_folder, tmp_path) -> None:
    for seed in range(3):
        run_folder(0.5, seed=seed, folder=f"follows{seed}")
    assert [list(g.runs) for g in ask(tmp_path).streams[0].groups] == [[0, 1, 2]]


def test_a_benchmark_seed_of_its_own_is_another_stream(run_folder, tmp_path) -> None:
    for seed in (1, 2, 3):
        run_folder(0.5, seed=seed, folder=f"follows{seed}")
        run_folder(0.6, strategy="b", seed=seed, folder=f"fixed{seed}", benchmark__seed=7)
    found = ask(tmp_path)
    assert [s.settings for s in found.streams] == [
        {"benchmark.seed": "7"},
        {"benchmark.seed": "seed"},
    ]
    assert [list(s.groups[0].runs) for s in found.streams] == [[1, 2, 3]] * 2
    # Fixed at a value that one of the seeds has: that run belongs to the others, too.
    again = tmp_path / "again"
    for seed in (0, 1):
        run_folder(0.6, strategy="c", seed=seed, folder=f"../again/{seed}", benchmark__seed=0)
    assert [list(s.groups[0].runs) for s in ask(again).streams] == [[0, 1]]


def test_a_column_that_older_runs_lack_makes_no_groups(run_folder, tmp_path) -> None:
    run_folder(0.5, seed=0)
    run_folder(0.5, seed=1, training__augment="none")
    assert len(ask(tmp_path).streams[0].groups) == 1


def test_keys_of_a_model_follow_from_its_name(run_folder, tmp_path) -> None:
    run_folder(0.5, model__width=8)
    run_folder(0.6, folder="cnn", model__width=16, model="cnn")
    found = ask(tmp_path)
    assert sorted(labels(found)) == ["er model=cnn", "er model=mlp"]
    run_folder(0.7, folder="cnn32", model__width=32, model="cnn")
    assert "er model=cnn model.width=32" in labels(ask(tmp_path))


def test_by_names_the_settings_and_refuses_to_average_over_others(run_folder, tmp_path) -> None:
    for size in (10, 20):
        run_folder(0.5, strategy__buffer_size=size, strategy__policy="ring")
    run_folder(0.5, strategy="naive")
    found = ask(tmp_path, by=("strategy.buffer_size", "strategy.policy"))
    names = ["er buffer_size=10 policy=ring", "er buffer_size=20 policy=ring", "naive"]
    assert sorted(labels(found)) == names
    with pytest.raises(UserError, match=r"differ in strategy.buffer_size: add that to --by"):
        ask(tmp_path, by=("optimizer.lr",))
    with pytest.raises(UserError, match=r"did you mean strategy\.policy"):
        ask(tmp_path, by=("strategy.polcy",))


def test_unequal_settings_between_strategies_are_said(run_folder, tmp_path) -> None:
    run_folder(0.5, strategy="a", training__epochs=1)
    run_folder(0.6, strategy="b", training__epochs=5)
    (note,) = ask(tmp_path).notes
    assert note.endswith("training.epochs is not the same for all: 5 in b; 1 in a")


def test_runs_that_are_not_complete_are_listed_and_not_averaged(run_folder, tmp_path) -> None:
    run_folder(0.5, seed=0)
    run_folder(0.9, seed=1, status="failed")
    run_folder(0.9, seed=2, status="running")
    run_folder(0.9, seed=0, strategy="ewc", status="interrupted")
    found = ask(tmp_path)
    assert sorted(run.row["status"] for run in found.incomplete) == [
        "failed",
        "interrupted",
        "running",
    ]
    er, ewc = found.streams[0].groups
    assert (list(er.runs), len(er.incomplete), er.mean("ACC")) == ([0], 2, pytest.approx(0.5))
    assert (list(ewc.runs), len(ewc.incomplete), ewc.mean("ACC")) == ([], 1, None)
    with pytest.raises(UserError, match="none of the 3 runs is complete: failed, interrupted, run"):
        compare_runs(found.incomplete, Question())


# Numbers.


def test_mean_and_interval_by_hand(run_folder, tmp_path) -> None:
    for seed, acc in enumerate((0.5, 0.6, 0.7)):
        run_folder(acc, seed=seed)
    row = row_of(ask(tmp_path), "er")
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # t_{0.975, 2} sd / sqrt(n)
    assert row["ACC"] == pytest.approx(0.6)
    assert (row["ACC_low"], row["ACC_high"]) == pytest.approx((0.6 - half, 0.6 + half))
    assert (row["n"], row["ACC_n"], row["seeds"]) == (3, 3, "0 1 2")
    assert row["samples"] == 60 and row["buffer_bytes"] is None


def test_one_run_has_no_interval_and_no_test(run_folder, tmp_path) -> None:
    run_folder(0.5, strategy="a")
    run_folder(0.6, strategy="b")
    a, b = (row_of(ask(tmp_path), name) for name in "ab")
    assert a["ACC_low"] is None and a["vs_best_p"] is None
    assert a["vs_best_test"] == "no test: too few shared seeds"
    assert (a["distinguishable_from_best"], b["distinguishable_from_best"]) == ("untested", "best")


@pytest.mark.parametrize("bound", ["cumulative", "from_scratch", "joint"])
def test_intransigence_is_that_of_the_matrices(run_folder, tmp_path, bound: str) -> None:
    rng = np.random.default_rng(0)
    rows, expected = {}, []
    for seed in range(3):
        for strategy in ("er", bound):
            R = rng.uniform(size=(4, 3))
            R = np.vstack([R[:1], R[3:].repeat(3, 0)]) if strategy == "joint" else R
            folder = run_folder(R, strategy=strategy, seed=seed)
            rows[strategy] = read_matrix(folder / "accuracy_matrix.csv")
        expected.append(metrics.intransigence(rows["er"], np.diag(rows[bound][1:])))
    run_folder(rng.uniform(size=(4, 3)), strategy="er", seed=9)  # has no bound of its seed
    found = ask(tmp_path)
    row = row_of(found, "er")
    assert row["intransigence"] == pytest.approx(np.mean(expected))
    assert (row["intransigence_n"], row["n"]) == (3, 4)
    assert f"intransigence is measured against {bound}, seed by seed" in found.notes
    assert row_of(found, bound)["intransigence"] is None


def test_cumulative_is_preferred_to_joint(run_folder, tmp_path) -> None:
    run_folder(0.5, strategy="er")
    run_folder(0.6, strategy="cumulative")
    run_folder(0.9, strategy="joint")
    assert row_of(ask(tmp_path), "er")["intransigence"] == pytest.approx(0.0)  # both learned 0.9


def test_the_position_lies_between_naive_and_joint(run_folder, tmp_path) -> None:
    for seed in (0, 1):
        run_folder(0.4 + seed / 10, strategy="naive", seed=seed)
        run_folder(0.8 + seed / 10, strategy="joint", seed=seed)
        run_folder(0.7 + seed / 10, strategy="er", seed=seed)
    run_folder(0.4, strategy="er", seed=2)  # no bounds for this seed
    found = ask(tmp_path)
    positions = {g.strategy: g.position for g in found.streams[0].groups}
    assert positions == pytest.approx({"joint": 1.0, "er": 0.75, "naive": 0.0})
    assert found.streams[0].groups[0].distinguishable == "bound"
    assert next(g for g in found.streams[0].groups if g.best).strategy == "er"


def test_no_position_where_joint_is_not_better(run_folder, tmp_path) -> None:
    run_folder(0.8, strategy="naive")
    run_folder(0.8, strategy="joint")
    found = ask(tmp_path)
    assert {g.position for g in found.streams[0].groups} == {None}
    assert "joint is not better than naive" in found.notes[-1] + found.notes[0]


def test_bounds_are_those_with_the_same_training(run_folder, tmp_path) -> None:
    for epochs, top in ((1, 0.6), (5, 0.9)):
        for strategy, acc in (("naive", 0.3), ("joint", top), ("er", 0.45)):
            run_folder(acc, strategy=strategy, training__epochs=epochs)
    positions = {g.label: g.position for g in ask(tmp_path).streams[0].groups}
    assert positions["er training.epochs=1"] == pytest.approx(0.5)
    assert positions["er training.epochs=5"] == pytest.approx(0.25)


def test_tests_are_paired_by_seed_and_corrected_together(run_folder, tmp_path) -> None:
    accs = {"a": [0.70, 0.72, 0.75], "b": [0.66, 0.71, 0.69], "c": [0.5, 0.52, 0.56]}
    for strategy, values in accs.items():
        for seed, acc in enumerate(values):
            run_folder(acc, strategy=strategy, seed=seed)
    run_folder(0.4, strategy="b", seed=5)  # a has no such seed
    run_folder(0.9, strategy="c", seed=6)
    found = ask(tmp_path, baseline="c")
    b, c = row_of(found, "b"), row_of(found, "c")
    p = [stats.ttest_rel(accs[k], accs["a"]).pvalue for k in "bc"]
    assert [b["vs_best_p"], c["vs_best_p"]] == pytest.approx(p)
    assert b["vs_best_n"] == c["vs_best_n"] == 3
    assert c["vs_best_p_holm"] == pytest.approx(3 * p[1])  # three pairs of three strategies
    assert b["vs_best_p_holm"] == pytest.approx(max(p[0], 3 * p[1]))
    assert c["vs_best_difference"] < 0 < row_of(found, "a")["vs_baseline_difference"]
    assert c["vs_baseline_p"] is None
    q = [stats.ttest_rel(accs[k], accs["c"]).pvalue for k in "ab"]
    assert [row_of(found, k)["vs_baseline_p"] for k in "ab"] == pytest.approx(q)
    assert row_of(found, "b")["vs_baseline_p_holm"] == pytest.approx(
        2 * q[1] if q[1] < q[0] else max(q[1], 2 * q[0])
    )
    with pytest.raises(UserError, match="--baseline der: no such run; there are a, b, c"):
        ask(tmp_path, baseline="der")


def test_the_marks_of_the_example_that_was_wrong(run_folder, tmp_path) -> None:
    """ER 0.83 and naive 0.18, six seeds, two comparisons: they were said not to differ."""
    rng = np.random.default_rng(0)
    for strategy, acc in {"naive": 0.35, "ewc": 0.35, "er": 0.83}.items():
        for seed in range(6):
            run_folder(acc + float(rng.normal(0, 0.004)), strategy=strategy, seed=seed)
    found = ask(tmp_path)
    assert labels(found)[0] == "er"
    assert [g.distinguishable for g in found.streams[0].groups] == ["best", "yes", "yes"]


@pytest.mark.parametrize(("n", "mark"), [(3, "too_few"), (6, "no")])
def test_two_are_called_alike_only_with_enough_seeds(run_folder, tmp_path, n, mark) -> None:
    rng = np.random.default_rng(1)
    for strategy in ("er", "derpp"):
        for seed in range(n):
            run_folder(0.7 + float(rng.normal(0, 0.02)), strategy=strategy, seed=seed)
    found = ask(tmp_path)
    best, other = found.streams[0].groups
    assert other.distinguishable == mark
    said = f"3 seeds are too few to tell {other.name} from {best.name}, or to call them alike; 5 "
    assert any(said in note for note in found.notes) == (mark == "too_few")
    assert f"few seeds ({n}): the t-test relies on normal differences" in found.notes
    row = row_of(found, other.strategy)
    assert row["distinguishable_from_best"] == mark


def test_the_tests_are_named_in_the_notes(run_folder, tmp_path) -> None:
    for seed in range(9):
        run_folder(0.5 + seed / 100, strategy="a", seed=seed)
        run_folder(0.6 + seed / 50, strategy="b", seed=seed)
    (said,) = [note for note in ask(tmp_path).notes if note.startswith("tests")]
    assert said.endswith("the exact test of the differences under all changes of their signs")
    assert not any("few seeds" in note for note in ask(tmp_path).notes)


def test_a_group_has_the_name_that_people_know(run_folder, tmp_path) -> None:
    for mode in ("online", "separate"):
        run_folder(strategy="ewc", strategy__mode=mode)
    run_folder(strategy="derpp", strategy__buffer_size=10)
    names = {g.name for g in ask(tmp_path).streams[0].groups}
    assert names == {"online EWC", "EWC mode=separate", "DER++"}


def test_the_gain_is_positive_where_less_of_the_metric_is_better(run_folder, tmp_path) -> None:
    for seed in range(3):
        run_folder(0.5 + seed / 50, strategy="naive", seed=seed)
        run_folder(0.7 + seed / 90, strategy="er", seed=seed)
    found = ask(tmp_path, metric="forgetting", baseline="naive")
    gains = [g.mean("forgetting") for g in found.streams[0].groups]  # er, naive
    assert row_of(found, "er")["vs_baseline_difference"] == pytest.approx(gains[1] - gains[0])
    assert gains[1] > gains[0]


def test_another_reading_has_its_own_numbers(run_folder, tmp_path) -> None:
    run_folder(0.5, scenario="class", seed=0)
    run_folder(0.5, scenario="domain", strategy="b", seed=0)
    own, task = ask(tmp_path), ask(tmp_path, reading="task")
    assert row_of(own, "er")["ACC"] == pytest.approx(0.5)
    assert row_of(task, "er")["ACC"] == pytest.approx(0.6)
    assert [s.reading for s in task.streams] == ["task"]
    assert "left out: toy, domain-IL is not read as task-IL" in task.notes
    assert row_of(ask(tmp_path, metric="task_ACC"), "er")["task_ACC"] == pytest.approx(0.6)


def test_validation_numbers_are_read_in_the_other_reading_too(run_folder, tmp_path) -> None:
    path = run_folder(0.5, scenario="class") / "summary.csv"
    row = read_rows(path)[0]
    write_rows(path, [row | {"validation_ACC": 0.4, "validation_task_ACC": 0.7}])
    for reading, acc in ((None, 0.4), ("task", 0.7)):
        found = ask(tmp_path, metric="validation_ACC", reading=reading)
        assert row_of(found, "er")["validation_ACC"] == acc


def test_questions_that_no_run_can_answer_are_refused(run_folder, tmp_path) -> None:
    run_folder(0.5)
    with pytest.raises(UserError, match=r"--metric acc: no run has it; known are ACC|did you mean"):
        ask(tmp_path, metric="acc")
    with pytest.raises(UserError, match="no run is read as task-IL"):
        ask(tmp_path, reading="task")


def test_cells_that_are_no_numbers_are_refused(run_folder, tmp_path) -> None:
    path = run_folder(0.5) / "summary.csv"
    path.write_text(path.read_text().replace(",1.5,", ",fast,"), encoding="utf-8")
    with pytest.raises(UserError, match="seconds of er seed=0 is 'fast', not a number"):
        ask(tmp_path)


# Several streams.


def test_over_streams_by_hand(run_folder, tmp_path) -> None:
    for benchmark, accs in {"x": (0.9, 0.8, 0.4), "y": (0.7, 0.6, 0.5)}.items():
        for strategy, acc in zip("abc", accs, strict=True):
            for seed in (0, 1):
                run_folder(acc + seed / 100, benchmark=benchmark, strategy=strategy, seed=seed)
    run_folder(0.99, benchmark="x", strategy="d")
    run_folder(0.99, benchmark="x", strategy="joint")
    run_folder(0.99, benchmark="y", strategy="joint")
    overall = ask(tmp_path, baseline="b").overall
    assert overall is not None
    assert overall.ranking.ranks == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert overall.left_out == ["d"]
    a, b, c = overall.methods
    assert (a.improvement, b.improvement, c.improvement) == (1.0, None, 0.0)
    assert a.against == "b"
    assert a.iqm == pytest.approx((0.71 + 0.9) / 2)  # of 0.70, 0.71, 0.90, 0.91 the middle half


def test_profiles_count_the_runs_that_are_at_least_as_good(run_folder, tmp_path) -> None:
    for benchmark, accs in {"x": (0.8, 0.35), "y": (0.6, 0.5)}.items():
        for strategy, acc in zip("ab", accs, strict=True):
            for seed in (0, 1):
                run_folder(acc + seed / 10, benchmark=benchmark, strategy=strategy, seed=seed)
    overall = ask(tmp_path).overall
    assert overall is not None and overall.fewest == 2
    a = {round(tau, 2): share for tau, share, _, _ in overall.methods[0].profile}
    assert (len(a), a[0.0], a[0.65], a[0.75], a[0.85], a[0.95]) == (101, 1, 0.75, 0.5, 0.25, 0)
    # forgetting = 1.5 (0.9 - ACC); less is better.
    overall = ask(tmp_path, metric="forgetting").overall
    assert overall is not None
    a = {round(tau, 2): share for tau, share, _, _ in overall.methods[0].profile}
    assert (a[0.1], a[0.16], a[0.31], a[0.46]) == (0.25, 0.5, 0.75, 1)
    for _, share, low, high in overall.methods[0].profile:
        assert 0 <= low <= share <= high <= 1


def test_a_setting_tuned_per_stream_is_one_method_and_a_swept_one_is_several(
    run_folder, tmp_path
) -> None:
    for benchmark, size in (("x", 10), ("y", 20)):
        run_folder(0.5, benchmark=benchmark, strategy__buffer_size=size)
        run_folder(0.4, benchmark=benchmark, strategy="naive")
    overall = ask(tmp_path).overall
    assert overall is not None and [m.label for m in overall.methods] == ["er", "naive"]
    run_folder(0.6, benchmark="x", strategy__buffer_size=20)
    overall = ask(tmp_path).overall
    assert overall is not None
    assert [m.label for m in overall.methods] == ["er buffer_size=20", "naive"]


def test_no_ranking_without_shared_methods(run_folder, tmp_path) -> None:
    run_folder(0.5, benchmark="x", strategy="a")
    run_folder(0.5, benchmark="y", strategy="b")
    found = ask(tmp_path)
    assert found.overall is None
    assert found.notes == ["no ranking over the streams: fewer than two methods are in all of them"]


# Properties.


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_the_order_of_runs_and_of_columns_does_not_matter(
    many: list[Run], order: random.Random
) -> None:
    expected = records(compare_runs(many, Question(baseline="naive")))
    shuffled = []
    for run in order.sample(many, len(many)):
        cells = list(run.row.items())
        order.shuffle(cells)
        shuffled.append(Run(folder=run.folder, source=run.source, row=dict(cells)))
    found = records(compare_runs(shuffled, Question(baseline="naive")))
    assert [sorted(row.items(), key=str) for row in found] == [
        sorted(row.items(), key=str) for row in expected
    ]


@pytest.fixture
def many(run_folder, tmp_path) -> list[Run]:
    rng = np.random.default_rng(3)
    for seed in range(4):
        for strategy in ("naive", "joint", "ewc"):
            run_folder(rng.uniform(size=(4, 3)), strategy=strategy, seed=seed)
        for size in (10, 20):
            R = rng.uniform(size=(4, 3))
            settings = {"strategy__buffer_size": size, "strategy__policy": f"p{size}"}
            run_folder(R, seed=seed, **settings)
    return read_runs([str(tmp_path)])[0]


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_constant_columns_forget_nothing(column: list[float]) -> None:
    R = np.tile(column, (len(column) + 1, 1))
    found = summarise(R)
    assert found["forgetting"] == found["BWT"] == found["FWT"] == 0
    assert found["ACC"] == pytest.approx(found["learning_accuracy"])
