"""The pictures: their kinds, their data, and what happens without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_runner.compare import pictures
from cl_runner.compare.runs import read_runs
from cl_runner.compare.table import Comparison, Question, compare
from cl_runner.errors import UserError
from cl_runner.results import write_rows

KINDS = ("matrices", "tasks", "average_accuracy", "forgetting", "stability_plasticity", "memory")
POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1)


@pytest.fixture
def comparison(run_folder, tmp_path: Path) -> Comparison:
    for strategy, acc in {"naive": 0.4, "er": 0.6, "joint": 0.9}.items():
        for seed in (0, 1):
            run_folder(acc + seed / 20, strategy=strategy, seed=seed)
    return compare(read_runs([str(tmp_path)])[0], Question())


def test_every_kind_is_drawn_as_png_and_svg(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = pictures.draw(comparison, tmp_path / "new" / "plots")
    names = {f"toy_3_tasks_domain_IL-{kind}.{end}" for kind in KINDS for end in ("png", "svg")}
    assert {path.name for path in files} == names
    assert all(path.stat().st_size > 1000 for path in files)


def test_figures_show_the_data_with_labelled_axes(comparison: Comparison) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    figures = dict(pictures.pictures(comparison.streams[0], plt))
    try:
        assert tuple(figures) == KINDS
        for figure in figures.values():
            labelled = [axis for axis in figure.axes if axis.axison and axis.get_visible()]
            assert any(axis.get_xlabel() for axis in labelled)
            assert figure._suptitle.get_text().endswith("toy, 3 tasks, domain-IL")
        (axis,) = figures["average_accuracy"].axes
        lines = {c.get_label(): c.lines[0] for c in axis.containers}
        assert lines["er (n\u00a0=\u00a02)"].get_ydata()[-1] == pytest.approx(0.625)
        (bars,) = figures["forgetting"].axes
        widths = [patch.get_width() for patch in bars.patches]
        er, naive = (g for g in comparison.streams[0].groups if g.strategy != "joint")
        assert widths == pytest.approx([er.mean("forgetting"), naive.mean("forgetting")])
        image = figures["matrices"].axes[0].images[0].get_array()
        assert image[-1].mean() == pytest.approx(0.925)  # joint comes first
    finally:
        plt.close("all")


def test_without_matrices_there_are_still_the_metrics(comparison: Comparison, tmp_path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    for path in tmp_path.rglob("accuracy_matrix.csv"):
        path.unlink()
    assert [kind for kind, _ in pictures.pictures(comparison.streams[0], plt)] == list(KINDS[3:])
    plt.close("all")


def test_matrices_of_different_sizes_are_refused(comparison: Comparison) -> None:
    name = next(iter(comparison.streams[0].groups[0].runs.values())).folder / "accuracy_matrix.csv"
    write_rows(name, [{"after_task": i, "task_1": 0.5} for i in range(2)])
    with pytest.raises(UserError, match="the matrices differ in size"):
        next(pictures.pictures(comparison.streams[0], None))


def test_a_missing_matplotlib_is_one_line(comparison, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"--plots needs matplotlib: pip install 'cl_runner\[plots"):
        pictures.draw(comparison, tmp_path)


@given(POINTS)
def test_the_pareto_front_is_what_nothing_dominates(points) -> None:
    front = pictures.front(points)
    better = [
        (x, y) for x, y in points for a, b in points if a <= x and b >= y and (a, b) != (x, y)
    ]
    assert sorted(front) == sorted(set(points) - set(better))


def test_intervals_are_students() -> None:
    mean, half = pictures.spread([[0.5, 0.1], [0.7, 0.1]])
    assert mean == pytest.approx([0.6, 0.1])
    assert half == pytest.approx([12.706204736 * 0.2 / np.sqrt(2) / np.sqrt(2), 0], abs=1e-9)
    assert pictures.spread([[0.5]])[1] == pytest.approx([0])
