"""Every strategy with no option at all: it ends, it is finite, and it is not below fine-tuning.

The bound is the mean of naive fine-tuning over three seeds, from results/defaults.csv. MNIST and
three seeds of every strategy are in `python scripts/defaults.py`, which writes that table.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pytest

from cl_runner import strategies
from cl_runner.config import SCENARIOS
from cl_runner.results import read_matrix
from cl_runner.runner import run

LONG = bool(os.environ.get("CL_RUNNER_DEFAULTS"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LONG, reason="half an hour: set CL_RUNNER_DEFAULTS=1"),
]
TABLE = Path(__file__).parents[2] / "results" / "defaults.csv"
# Fine-tuning itself, with a growing output layer, and of the output layer alone: no claim.
NO_CLAIM = ("naive", "expandable_head", "frozen_features")


def cases() -> list[tuple[str, str, str]]:
    """(strategy, benchmark, scenario): every strategy in each scenario that it has."""
    found = []
    for name in strategies.available():
        own = [s for s in SCENARIOS if s in strategies.find(name).scenarios]
        for benchmark in ("split_digits", "permuted_digits", "rotated_digits"):
            found += [(name, benchmark, scenario) for scenario in own]
    return found


def naive(benchmark: str, scenario: str) -> tuple[float, float]:
    """Mean and standard deviation of naive fine-tuning's ACC over three seeds."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["strategy"], row["benchmark"], row["scenario"]) == (
                "naive",
                benchmark,
                scenario,
            ):
                assert row["n"] == "3"
                return float(row["ACC"]), float(row["ACC_sd"])
    raise LookupError(f"no naive, {benchmark}, {scenario} in {TABLE}")


@pytest.mark.parametrize(("strategy", "benchmark", "scenario"), cases())
def test_no_option_ends_finite_and_not_below_naive(
    configure, tmp_path: Path, strategy: str, benchmark: str, scenario: str
) -> None:
    chosen = (f"strategy={strategy}", f"benchmark={benchmark}", f"scenario={scenario}")
    acc = run(configure(*chosen, "verbose=false"), tmp_path / "run")
    matrix = read_matrix(tmp_path / "run" / "accuracy_matrix.csv")
    assert math.isfinite(acc)
    assert len(matrix) == len(matrix[0]) + 1
    if strategy not in NO_CLAIM:
        mean, sd = naive(benchmark, scenario)
        # One seed against the mean of three: three SD of the difference, and slack.
        assert acc >= mean - 3 * sd * math.sqrt(1 + 1 / 3) - 0.02, f"naive: {mean} +- {sd}"
