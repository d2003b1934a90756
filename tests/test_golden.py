"""Seeded runs give what they gave: to the last bit on the machine that wrote them down.

See scripts/golden.py, which writes tests/golden/. Elsewhere kernels add up in another order, and a
sample near a decision's border may fall on its other side.
"""

from __future__ import annotations

import io

import golden
import numpy as np
import pytest

TOLERANCE = 0.03  # of an accuracy elsewhere: three of some 100 samples of a task
FAST = ("naive", "ewc", "derpp")


def values(matrix: str) -> np.ndarray:
    return np.genfromtxt(io.StringIO(matrix), delimiter=",", skip_header=1)


@pytest.mark.parametrize(
    "name",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in golden.RUNS],
)
def test_a_golden_run_is_unchanged(name, data_root):
    matrix, weights = golden.run(name, data_root)
    kept = (golden.FOLDER / f"{name}.csv").read_text(encoding="utf-8")
    if (golden.FOLDER / golden.MACHINE).read_text(encoding="utf-8") == golden.machine():
        assert matrix == kept
        assert weights == golden.read_weights()[name]
    else:
        assert matrix.splitlines()[0] == kept.splitlines()[0]
        assert np.abs(values(matrix) - values(kept)).max() <= TOLERANCE
        total, norm = golden.read_weights()[name]
        assert weights[0] == pytest.approx(total, abs=0.1 * norm)
        assert weights[1] == pytest.approx(norm, rel=0.01)


def test_every_golden_run_learns_something():
    for name in golden.RUNS:
        matrix = values((golden.FOLDER / f"{name}.csv").read_text(encoding="utf-8"))[:, 1:]
        assert np.diag(matrix[1:]).min() > matrix[0].max()


def test_no_golden_file_is_without_its_run():
    names = {path.stem for path in golden.FOLDER.glob("*.csv")}
    assert names == {*golden.RUNS, "weights"} == {*golden.read_weights(), "weights"}
