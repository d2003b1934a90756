"""Every strategy with no option at all: it ends, it is finite, and it is not below fine-tuning.

The bound is naive fine-tuning's mean over three seeds, from results/defaults.csv, which
`python scripts/defaults.py` writes: three seeds of every strategy, and MNIST.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import defaults
import pandas as pd
import pytest

from cl_runner import strategies
from cl_runner.results.matrices import read_matrix
from cl_runner.running.loop import run

LONG = bool(os.environ.get("CL_RUNNER_DEFAULTS"))
STREAMS = ("split_digits", "permuted_digits", "rotated_digits")
SLOW = ("mer", "la_maml", "den", "fromp", "generative_replay")  # more than ten seconds a run
CELLS = [cell for cell in defaults.cells(strategies.available()) if cell.benchmark in STREAMS]


def is_quick(cell: defaults.Cell) -> bool:
    """Whether a cell is run always: split_digits, in the scenario in which most is forgotten."""
    own = strategies.find(cell.strategy).scenarios
    hardest = next(s for s in ("class", "domain", "task") if s in own)
    return cell[1:] == (STREAMS[0], hardest) and cell.strategy not in SLOW


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(defaults.CSV)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_no_option_ends_finite_and_not_below_naive(
    configure, tmp_path: Path, table: pd.DataFrame, cell: defaults.Cell
) -> None:
    if not (LONG or is_quick(cell)):
        pytest.skip("two hours of one core: set CL_RUNNER_DEFAULTS=1")
    chosen = [f"{key}={value}" for key, value in cell._asdict().items()]
    acc = run(configure(*chosen, "verbose=false"), tmp_path / "run")
    matrix = read_matrix(tmp_path / "run" / "accuracy_matrix.csv")
    assert math.isfinite(acc)
    assert len(matrix) == len(matrix[0]) + 1
    if cell.strategy not in defaults.NO_CLAIM:
        (bound,) = (
            row
            for row in table.itertuples()
            if (row.strategy, row.benchmark, row.scenario) == ("naive", *cell[1:])
        )
        assert bound.n == 3
        # One seed against the mean of three: three SD of the difference, and slack.
        assert acc >= bound.ACC - 3 * bound.ACC_sd * math.sqrt(1 + 1 / 3) - defaults.SLACK


def test_the_table_holds_every_strategy_and_none_below_naive(table: pd.DataFrame) -> None:
    cells = [tuple(cell) for cell in defaults.cells(strategies.available())]
    rows = table[list(defaults.Cell._fields)]
    assert sorted(rows.itertuples(index=False, name=None)) == sorted(cells)
    assert defaults.worse(table) == []
    assert sorted(pd.read_csv(defaults.COSTS).strategy) == sorted(strategies.available())
