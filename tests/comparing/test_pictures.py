"""The pictures: their kinds, their data, and what happens without matplotlib."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_runner.comparing import pictures
from cl_runner.comparing.figures import canvas, streams, tradeoffs
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import Comparison, Question, compare_runs
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.matrices import read_matrix, write_matrices
from cl_runner.results.titles import Titles, titled

pytestmark = pytest.mark.slow

KINDS = ("matrices", "tasks", "average_accuracy", "forgetting", "stability_plasticity", "memory")
POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1)


@pytest.fixture
def comparison(run_folder, tmp_path: Path) -> Comparison:
    for strategy, acc in {"naive": 0.4, "er": 0.6, "joint": 0.9}.items():
        for seed in (0, 1):
            run_folder(acc + seed / 20, strategy=strategy, seed=seed)
    return compare_runs(read_runs([str(tmp_path)])[0], Question())


def test_every_kind_is_drawn_as_png_svg_and_pdf(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = pictures.draw_pictures(comparison, tmp_path / "new" / "plots")
    names = {f"toy_3_tasks_domain_IL-{kind}.{end}" for kind in KINDS for end in pictures.SUFFIXES}
    assert set(pictures.SUFFIXES) == {"png", "svg", "pdf"}
    assert {path.name for path in files} == names
    assert all(path.stat().st_size > 1000 for path in files)


def test_figures_show_the_data_with_labelled_axes(comparison: Comparison) -> None:
    pytest.importorskip("matplotlib")
    figures = {
        kind: draw(canvas.Files) for kind, draw in pictures.stream_drawings(comparison.streams[0])
    }
    assert tuple(figures) == KINDS
    for figure in figures.values():
        labelled = [axis for axis in figure.axes if axis.axison and axis.get_visible()]
        assert any(axis.get_xlabel() for axis in labelled)
        assert figure._suptitle.get_text().endswith("toy, 3 tasks, domain-IL")
    (axis,) = figures["average_accuracy"].axes
    lines = {c.get_label(): c.lines[0] for c in axis.containers}
    assert lines["ER (n\u00a0=\u00a02)"].get_ydata()[-1] == pytest.approx(0.625)
    (bars,) = figures["forgetting"].axes
    widths = [patch.get_width() for patch in bars.patches]
    er, naive = (g for g in comparison.streams[0].groups if g.strategy != "joint")
    assert widths == pytest.approx([er.mean("forgetting"), naive.mean("forgetting")])
    image = figures["matrices"].axes[0].images[0].get_array()
    assert image[-1].mean() == pytest.approx(0.925)  # joint comes first
    assert np.isnan(image[1:-1].astype(float).filled(np.nan)).all()  # and is trained once
    assert len(figures["tasks"].axes) == 3  # with the last task


def drawn(folder: Path, **question: object) -> dict[str, object]:
    """The figures of the runs in a folder, by kind."""
    pytest.importorskip("matplotlib")
    found = compare_runs(read_runs([str(folder)])[0], Question(**question))
    return {kind: draw(canvas.Files) for _, kind, draw in pictures.drawings(found)}


def test_a_sweep_of_a_setting_is_a_curve_for_each_of_the_others(run_folder, tmp_path) -> None:
    for seed in (0, 1):
        for i, value in enumerate((0, 1, 10, 1000)):
            for lr in (0.1, 0.2):
                acc = 0.5 + i / 20 + lr / 2 + seed / 100
                run_folder(acc, strategy__lambda=value, seed=seed, optimizer__lr=lr)
    figures = drawn(tmp_path)
    assert "sweep_optimizer.lr" not in figures  # two values make no curve
    top, below = figures["sweep_lambda"].axes
    curves = {c.get_label().split(" (")[0]: c.lines[0].get_xydata() for c in top.containers}
    assert set(curves) == {"ER optimizer.lr=0.1", "ER optimizer.lr=0.2"}
    expected = [(0, 0.555), (1, 0.605), (10, 0.655), (1000, 0.705)]
    assert curves["ER optimizer.lr=0.1"] == pytest.approx(np.array(expected))
    forgotten = {c.get_label().split(" (")[0]: c.lines[0].get_ydata() for c in below.containers}
    expected = [1.5 * (0.9 - acc) for _, acc in expected]  # see conftest.matrix
    assert forgotten["ER optimizer.lr=0.1"] == pytest.approx(expected)
    assert (top.get_xscale(), below.get_xlabel()) == ("symlog", "strategy.lambda")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3], "linear"),
        ([0.1, 1, 10], "log"),
        ([0, 1, 10], "symlog"),
        ([0, 0], "linear"),
        ([-1, 1, 100], "linear"),
    ],
)
def test_an_axis_is_logarithmic_where_values_span_decades(values, expected: str) -> None:
    pytest.importorskip("matplotlib")
    _, axis = canvas.Files.subplots()
    canvas.scale(axis, "x", values)
    assert axis.get_xscale() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0022, 0.03], ["0.002", "0.005", "0.01", "0.02"]),
        ([0.3, 300], ["1", "10", "100"]),
        ([0, 1, 10], ["0", "1", "10"]),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers(values, expected: list[str]) -> None:
    with canvas.styled("drawing"):
        figure, axis = canvas.Files.subplots()
        axis.plot(values, values)
        for which in "xy":
            canvas.scale(axis, which, values)
        figure.canvas.draw()
        for own in (axis.xaxis, axis.yaxis):
            low, high = sorted(own.get_view_interval())
            assert {t.get_text() for t in own.get_ticklabels(minor=True)} <= {""}
            labels = own.get_ticklabels()
            shown = [
                t.get_text()
                for v, t in zip(own.get_majorticklocs(), labels, strict=True)
                if low <= v <= high
            ]
            assert shown == expected


def test_computation_is_what_all_runs_have_measured(run_folder, tmp_path: Path) -> None:
    """FLOPs if all have them, else samples if they differ, else time."""
    for strategy, acc in (("naive", 0.4), ("er", 0.6), ("joint", 0.9)):
        run_folder(acc, strategy=strategy, samples=60, train_seconds=acc)
    axis = drawn(tmp_path)["compute"].axes[0]
    assert axis.get_xlabel() == "training time (seconds) per run"
    for path in (tmp_path / "runs").glob("*/summary.csv"):
        row = read_rows(path)[0]
        write_rows(path, [row | {"samples": 99 if "joint" in path.parent.name else 60}])
    axis = drawn(tmp_path)["compute"].axes[0]
    assert axis.get_xlabel().startswith("samples trained on")
    for path in (tmp_path / "runs").glob("*/summary.csv"):
        row = read_rows(path)[0]
        flops = {"naive": 1e9, "er": 3e9, "joint": 2e10}[row["strategy"]]
        write_rows(path, [row | {"flops": int(flops)}])
    axis = drawn(tmp_path)["compute"].axes[0]
    assert axis.get_xlabel().startswith("floating-point operations")
    assert axis.get_xscale() == "log"
    axis.figure.canvas.draw()
    assert {"1 G", "2 G", "5 G", "10 G"} <= {t.get_text() for t in axis.get_xticklabels()}
    points = {c.get_label().split(" (")[0]: c.lines[0].get_xydata()[0] for c in axis.containers}
    assert points["ER"] == pytest.approx([3e9, 0.6])
    assert points["joint"] == pytest.approx([2e10, 0.9])  # shown, but not on the front
    (line,) = [line for line in axis.lines if line.get_linestyle() == "--"][:1]
    assert line.get_xydata() == pytest.approx(np.array([[1e9, 0.4], [3e9, 0.6]]))


def test_profiles_over_streams(run_folder, tmp_path: Path) -> None:
    for benchmark in "xy":
        for strategy, acc in {"a": 0.6, "b": 0.4}.items():
            for seed in (0, 1):
                run_folder(acc + seed / 10, benchmark=benchmark, strategy=strategy, seed=seed)
    figures = drawn(tmp_path)
    assert {"ranks", "profiles"} <= figures.keys()
    (axis,) = figures["profiles"].axes
    a, b = (line.get_xydata() for line in axis.lines)
    assert dict(a.round(2).tolist())[0.65] == 0.5 and dict(b.round(2).tolist())[0.65] == 0
    assert len(axis.collections) == 2  # the bands
    (axis,) = drawn(tmp_path, metric="forgetting")["profiles"].axes
    assert axis.get_ylabel() == "share of runs at most the threshold"


def within(out: Path, steps: list[int], accuracies: dict[tuple[int, int], list[float]]) -> None:
    """Files of a run that was evaluated within its tasks, too, at (after_task, step)."""
    R = read_matrix(out / "accuracy_matrix.csv")
    curve = [[k, step, *row] for (k, step), row in accuracies.items()]
    write_matrices(out, {("test", "domain"): R}, "domain", {("test", "domain"): curve})
    rows = [{"after_task": k, "steps": n} for k, n in enumerate([0, *steps])]
    write_rows(out / "costs.csv", rows)


def test_accuracy_over_the_steps(run_folder, tmp_path: Path) -> None:
    """A run of more steps for a task is scaled; the bound is what it is at its end."""
    R = np.array([[0.1, 0.1, 0.1], [0.9, 0.2, 0.2], [0.8, 0.9, 0.2], [0.6, 0.7, 0.9]])
    for seed in (0, 1):
        out = run_folder(R - seed / 10, strategy="er", seed=seed)
        rows = {(0, 5): [0.5] * 3, (1, 5): [0.4] * 3, (2, 5): [0.3] * 3}
        rows |= {(1, 7): [0.0] * 3} if seed else {}  # not of both seeds
        within(out, [10, 10, 10], rows)
    assert "steps" in drawn(tmp_path)
    within(run_folder(R, strategy="packnet"), [30, 30, 10], {(1, 15): [0.45] * 3})
    run_folder(R, strategy="joint")
    figure = drawn(tmp_path)["steps"]
    first, second, last = figure.axes  # the last task too, which is learned to the end
    assert figure.get_suptitle().endswith("toy, 3 tasks, domain-IL")
    wide = 50 / 3  # mean steps of the first two tasks: 10, 10 and 30

    def lines(axis):
        found = {str(line.get_label()).split(" (")[0]: line for line in axis.lines}
        return {name: line.get_xydata() for name, line in found.items()}

    er = [(0, 0.05), (wide / 2, 0.5), (wide, 0.85), (1.5 * wide, 0.4), (2 * wide, 0.75)]
    er += [(2 * wide + 5, 0.3), (2 * wide + 10, 0.55)]
    assert lines(first)["ER"] == pytest.approx(np.array(er))
    assert lines(second)["ER"][0] == pytest.approx([wide, 0.15])  # where it began to be learned
    packnet = [(wide, 0.2), (1.5 * wide, 0.45), (2 * wide, 0.9), (2 * wide + 10, 0.7)]
    assert lines(second)["PackNet"] == pytest.approx(np.array(packnet))
    assert set(lines(second)["joint"][:, 1]) == {0.7}
    borders = [line.get_xdata()[0] for line in first.lines if line.get_linestyle() == ":"]
    assert borders == pytest.approx([wide, 2 * wide])
    assert first.get_xlim() == pytest.approx((0, 2 * wide + 10))
    assert "each task scaled to the mean of the runs" in last.get_xlabel()


def test_curves_need_files_that_agree(run_folder, tmp_path: Path) -> None:
    out = run_folder(0.5)
    within(out, [10, 10, 10], {(0, 5): [0.5] * 3})
    axis = drawn(tmp_path)["steps"].axes[0]
    assert axis.figure.axes[-1].get_xlabel() == "optimizer steps (grey: not yet trained)"
    write_rows(out / "costs.csv", [{"after_task": 0, "steps": 1}])
    with pytest.raises(UserError, match=r"cannot read .*accuracies\.csv with costs\.csv: their ta"):
        drawn(tmp_path)
    (out / "costs.csv").unlink()
    assert "steps" not in drawn(tmp_path)


def confuse(out: Path, counts: dict[tuple[int, int, int], int], **other: str) -> None:
    """A confusion.csv: (after_task, class, predicted) -> samples."""
    where = {"reading": "class", "split": "test"} | other
    names = ("after_task", "class", "predicted")
    rows = [{**where, **dict(zip(names, k, strict=True)), "count": n} for k, n in counts.items()]
    old = read_rows(out / "confusion.csv") if (out / "confusion.csv").exists() else []
    write_rows(out / "confusion.csv", [*old, *rows])


def test_confusion_is_that_of_the_last_task(run_folder, tmp_path: Path) -> None:
    """Of all seeds together, a row's shares of its class, in the reading that is asked for."""
    for seed, right in ((0, 3), (1, 1)):
        out = run_folder(0.5, scenario="class", seed=seed)
        confuse(out, {(2, 0, 1): 99, (3, 0, 0): right, (3, 0, 2): 2, (3, 2, 1): 5})
        confuse(out, {(3, 1, 1): 7}, split="validation")
        confuse(out, {(3, 0, 0): 1}, reading="task")
    (axis, _) = drawn(tmp_path)["confusion"].axes
    expected = [[0.5, 0, 0.5], [0, 0, 0], [0, 1, 0]]
    assert np.asarray(axis.images[0].get_array()) == pytest.approx(np.array(expected))
    assert sorted(text.get_text() for text in axis.texts) == [".50", ".50", "1.00"]
    (axis, _) = drawn(tmp_path, reading="task")["confusion"].axes
    assert np.asarray(axis.images[0].get_array()) == pytest.approx(np.array([[1]]))
    (out / "confusion.csv").write_text("class\n0\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot read .*confusion\.csv"):
        drawn(tmp_path)


def test_eight_confusion_matrices_at_most(run_folder, tmp_path: Path) -> None:
    for i in range(9):
        confuse(run_folder(0.4 + i / 20, scenario="class", strategy=f"s{i}"), {(3, 0, 0): 1})
    figure = drawn(tmp_path)["confusion"]
    assert len([axis for axis in figure.axes if axis.images]) == 8
    assert figure.get_suptitle().endswith("(8 of 9 settings)")


def test_fisher_overlap_by_layer(run_folder, tmp_path: Path) -> None:
    for seed in (0, 1):
        rows = [
            {"layer": layer, "task_a": a, "task_b": b, "overlap": overlap + seed / 10}
            for layer, overlap in (("hidden", 0.2), ("output", 0.6))
            for a, b in ((1, 2), (1, 3))
        ]
        rows.append({"layer": "unused", "task_a": 1, "task_b": 2, "overlap": None})
        out = run_folder(0.5, strategy="ewc", seed=seed)
        write_rows(out / "fisher_overlap.csv", rows)
    (axis,) = drawn(tmp_path)["fisher_overlap"].axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["hidden", "output"]
    assert axis.containers[0].lines[0].get_ydata() == pytest.approx([0.25, 0.65])
    (out / "fisher_overlap.csv").write_text("layer\nhidden\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot read .*fisher_overlap\.csv"):
        drawn(tmp_path)


def test_ten_strategies_are_told_apart(run_folder, tmp_path: Path) -> None:
    for i in range(12):
        run_folder(0.3 + i / 20, strategy=f"s{i:02}")
    axis = drawn(tmp_path)["average_accuracy"].axes[0]
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in axis.containers}
    colours, markers = zip(*looks, strict=True)
    assert len(set(colours)) == len(set(markers)) == 10
    assert axis.figure.get_suptitle().endswith("(10 of 12 settings)")


def test_a_dollar_in_a_setting_is_no_formula(run_folder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "SUFFIXES", ("svg",))
    for value in ("$x^$", "$y"):
        run_folder(0.5, strategy__policy=value)
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    pytest.importorskip("matplotlib")
    assert pictures.draw_pictures(found, tmp_path / "plots")


def test_without_matrices_there_are_still_the_metrics(comparison: Comparison, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    for path in tmp_path.rglob("accuracy_matrix.csv"):
        path.unlink()
    kinds = [kind for kind, _ in pictures.stream_drawings(comparison.streams[0])]
    assert kinds == list(KINDS[3:])


def test_matrices_of_different_sizes_are_refused(comparison: Comparison) -> None:
    name = next(iter(comparison.streams[0].groups[0].runs.values())).folder / "accuracy_matrix.csv"
    write_rows(name, [{"after_task": i, "task_1": 0.5} for i in range(2)])
    with pytest.raises(UserError, match="the matrices differ in size"):
        next(pictures.stream_drawings(comparison.streams[0]))


def test_a_missing_matplotlib_is_one_line(comparison, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"--plots needs matplotlib: pip install 'cl_runner\[plots"):
        pictures.draw_pictures(comparison, tmp_path)


def test_no_title_in_a_pdf_and_the_same_bytes_each_time(comparison: Comparison) -> None:
    pytest.importorskip("matplotlib")
    with canvas.styled("a test"):
        _, draw = list(pictures.stream_drawings(comparison.streams[0]))[3]
        figure = draw(canvas.Files)
        assert figure.get_suptitle()
        for suffix in pictures.SUFFIXES:
            titled = suffix != "pdf"
            once, again = (canvas.image(figure, suffix, title=titled) for _ in range(2))
            assert once == again and len(once) > 1000
        assert once.startswith(b"%PDF") and not figure.get_suptitle()


def test_ranks_with_their_critical_difference(run_folder, tmp_path: Path) -> None:
    """Demsar's diagram: names at their ranks, a bar over those that are not told apart."""
    for i, benchmark in enumerate("abcdefgh"):
        for strategy, acc in {"er": 0.8, "si": 0.5, "ewc": 0.6, "naive": 0.4}.items():
            swapped = {"si": 0.4, "naive": 0.5}.get(strategy, acc) if i % 2 else acc
            run_folder(swapped, strategy=strategy, benchmark=benchmark)
    pytest.importorskip("matplotlib")
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    (axis,) = streams.rank_diagram(found, canvas.Files).axes
    texts = [text.get_text().strip() for text in axis.texts]
    assert texts[:4] == ["ER (1.00)", "EWC (2.00)", "naive (3.50)", "SI (3.50)"]
    assert texts[4] == "CD = 1.66"  # q_0.05 = 2.569 for four methods, sqrt(4 * 5 / (6 * 8))
    hung = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 3]
    assert hung == [1, 2, 3.5, 3.5]
    bars = [list(line.get_xdata()) for line in axis.lines if line.get_linewidth() == 3]
    assert bars == [pytest.approx([0.97, 2.03]), pytest.approx([1.97, 3.53])]


@pytest.mark.parametrize(
    ("ranks", "critical", "expected"),
    [
        ([1, 2, 3], 0.5, []),
        ([1, 2, 3], 5, [(1, 3)]),
        ([1, 2, 3, 4], 1.5, [(1, 2), (2, 3), (3, 4)]),
        ([1, 1.2, 2, 4], 1.1, [(1, 2)]),
        ([1, 2], 1, []),  # as far as the critical difference is told apart
        ([1.5, 1.5], 0.1, []),  # nothing to join: they are at one place
    ],
)
def test_stretches_that_are_alike(ranks, critical: float, expected) -> None:
    assert streams.alike(ranks, critical) == expected


@given(POINTS)
def test_the_lines_of_the_front_pass_through_no_other_point(points) -> None:
    best = tradeoffs.front(points)
    for (x, y), (right, top) in pairwise(best):
        inside = [p for p in points if x < p[0] < right and y < p[1] < top]
        assert not inside


@given(POINTS)
def test_the_pareto_front_is_what_nothing_dominates(points) -> None:
    front = tradeoffs.front(points)
    better = [
        (x, y) for x, y in points for a, b in points if a <= x and b >= y and (a, b) != (x, y)
    ]
    assert sorted(front) == sorted(set(points) - set(better))


def test_intervals_are_students() -> None:
    mean, half = canvas.spread([[0.5, 0.1], [0.7, 0.1]])
    assert mean == pytest.approx([0.6, 0.1])
    assert half == pytest.approx([12.706204736 * 0.2 / np.sqrt(2) / np.sqrt(2), 0], abs=1e-9)
    assert canvas.spread([[0.5]])[1] == pytest.approx([0])


def named(axis) -> list[str]:
    """What an x-axis says at its ticks."""
    return [tick.get_text() for tick in axis.get_xticklabels()]


def test_tasks_and_classes_are_called_by_their_names(run_folder, tmp_path: Path) -> None:
    names = ["2021-01", "a name so long that no axis has room for it", "自転車 $x_1$"]
    titles = Titles(tasks=names, classes={0: "bike", 1: "bus"})
    for strategy in ("er", "joint"):
        out = run_folder(0.5, strategy=strategy)
        R = read_matrix(out / "accuracy_matrix.csv")
        curve = [[0, 5, 0.2, 0.2, 0.2]]
        found = {("test", "domain"): R}
        write_matrices(out, found, "domain", {("test", "domain"): curve}, titles)
        write_rows(out / "costs.csv", [{"after_task": k, "steps": 9} for k in range(4)])
        rows = [
            {"after_task": 3, "reading": "domain", "split": "test", "class": c, "count": 4}
            | {"predicted": 0}
            for c in (0, 1)
        ]
        write_rows(out / "confusion.csv", titled(rows, titles))
    figures = drawn(tmp_path)
    short = ["2021-01", "a name …m for it", "自転車 $x_1$"]
    for kind in ("matrices", "tasks", "average_accuracy"):
        axis = figures[kind].axes[-1 if kind == "tasks" else 0]
        assert named(axis) == short
        assert {tick.get_rotation() for tick in axis.get_xticklabels()} == {40}
    assert [axis.get_ylabel() for axis in figures["tasks"].axes] == short
    heat = figures["matrices"].axes[0]
    assert [tick.get_text() for tick in heat.get_yticklabels()] == ["untrained", *short]
    assert [text.get_text() for text in figures["steps"].axes[0].texts] == [
        f"learns {name}" for name in short
    ]
    assert named(figures["confusion"].axes[0]) == ["bike", "bus"]
    for figure in figures.values():
        assert canvas.image(figure, "svg")  # that a font lacks a letter is no warning
    path = tmp_path / "runs" / "toy-domain-joint-0"
    write_matrices(path, found, "domain", None, Titles(tasks=["x", "y", "z"]))
    assert named(drawn(tmp_path)["average_accuracy"].axes[0]) == ["1", "2", "3"]  # not the same
