"""The table of columns: it has what is measured, and a new line in it is all that others need."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_runner.comparing.figures.tradeoffs import COMPUTE
from cl_runner.comparing.render import csv_text, sheets
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import Comparison, Question, columns_asked_for, compare_runs
from cl_runner.comparing.verdict import PRICES
from cl_runner.comparing.verify import verify_runs
from cl_runner.errors import UserError
from cl_runner.functional import metrics
from cl_runner.functional.calibration import BINS, calibration
from cl_runner.results import columns
from cl_runner.results.columns import (
    BYTES,
    COLUMNS,
    COUNT,
    FRACTION,
    Column,
    Kind,
    column_of,
    is_cost,
    is_metric,
    of_kind,
    printed,
    shown,
    task_costs,
)
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.results.seeds import merge_seeds
from cl_runner.results.text import format_metrics
from cl_runner.running import checkpoint, frame, record
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state
from cl_runner.training import meter
from cl_runner.training.meter import COUNTS, SECONDS, Meter

TOY = (
    "benchmark=split_digits",
    "benchmark.num_tasks=2",
    "model.hidden_sizes=[8]",
    "training.iterations=2",
    "verbose=false",
    "checkpoint.keep=true",
)


def names(*kinds: Kind) -> list[str]:
    return [column.name for column in of_kind(*kinds)]


# The table.


def test_every_column_has_one_line_and_a_place_of_its_own() -> None:
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    for kinds in (("metric", "calibration", "group"), ("cost",)):
        places = [column.place for column in of_kind(*kinds) if column.place is not None]  # type: ignore[arg-type]
        assert sorted(places) == list(range(1, len(places) + 1))
    for column in COLUMNS:
        assert column.compared or column.place is None, column.name  # what is shown is in the file
        assert column.place is not None or not column.brief, column.name
        assert (column.kind == "metric") == (column.formula is not None), column.name


def test_the_most_important_columns_come_first() -> None:
    """Where a table is too wide, columns leave from the right."""
    assert shown("metric", "group")[:4] == ["ACC", "forgetting", "position", "learning_accuracy"]
    assert shown("metric", only_brief=True) == ["ACC", "forgetting"]
    assert shown("cost", only_brief=True) == ["flops", "memory_bytes"]
    assert printed() == ["ACC", "forgetting", "BWT", "FWT", "learning_accuracy"]


def test_every_formula_of_a_run_is_a_metric() -> None:
    numbers = {
        function
        for function in vars(metrics).values()
        if inspect.isfunction(function)
        and function.__annotations__["return"] in (float, "float")
        and not function.__name__.startswith("_")
    }
    assert numbers == {column.formula for column in of_kind("metric")}


def test_what_is_measured_is_in_the_table(prepared) -> None:
    _, strategy, env = prepared(*TOY, "strategy=er")
    held = record.footprint(strategy, initial_state(strategy, env), env)
    assert held.keys() == {c.name for c in of_kind("cost") if c.total == "last"}
    assert list(calibration(torch.ones(BINS + 1, 3))) == names("calibration")
    assert task_costs("sum") == [*SECONDS, *COUNTS, "energy_joules"]
    assert {*COMPUTE, *PRICES} <= {*names("cost")}  # which words and a picture speak of


@pytest.mark.parametrize(
    ("column", "line"),
    [
        ("ACC", "ACC"),
        ("task_ACC", "ACC"),
        ("validation_task_min_ACC", "min_ACC"),
        ("task_NLL", "NLL"),
        ("train_seconds", "train_seconds"),
        ("task_seconds", None),  # costs are of the whole run
        ("strategy.buffer_bytes", None),
        ("seed", None),
        ("", None),
    ],
)
def test_a_column_of_a_file_is_found_in_the_table(column: str, line: str | None) -> None:
    found = column_of(column)
    assert (None if found is None else found.name) == line
    kind = None if found is None else found.kind
    assert is_cost(column) == (kind == "cost")
    assert is_metric(column) == (kind in ("metric", "calibration"))


# A metric and two costs that nobody knows: a line each, and what measures them.

NEW = (
    Column("median_ACC", "metric", FRACTION, lambda R: float(np.median(R[-1])), place=99),
    Column("phases", "cost", COUNT, place=9),
    Column("spare_bytes", "cost", BYTES, place=10, total="last"),
)


class PhaseMeter(Meter):
    """Also counts the phases of training."""

    phases = 0

    def begin(self, task: int, epochs: int, steps: int, *, resumed: bool = False) -> None:
        self.phases += 1
        super().begin(task, epochs, steps, resumed=resumed)


@pytest.fixture
def runs(configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs that measure what is new."""
    footprint = record.footprint
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, *NEW))
    monkeypatch.setattr(record, "footprint", lambda *of: footprint(*of) | {"spare_bytes": 2048})
    monkeypatch.setattr("cl_runner.training.env.Meter", PhaseMeter)
    for module in (meter, frame):
        monkeypatch.setattr(module, "COUNTS", (*COUNTS, "phases"))
    for strategy in ("er", "naive"):
        run(configure(*TOY, f"strategy={strategy}"), tmp_path / strategy)
    return tmp_path


def answer(folder: Path, metric: str = "ACC") -> Comparison:
    return compare_runs(read_runs([str(folder)])[0], Question(metric=metric))


def test_a_new_line_is_a_column_of_the_files(runs: Path) -> None:
    (row,) = read_rows(runs / "er" / "summary.csv")
    R = read_matrix(runs / "er" / "accuracy_matrix.csv")
    assert float(row["median_ACC"]) == pytest.approx(np.median(R[-1]))
    assert (row["phases"], row["spare_bytes"]) == ("2", "2048")
    costs = read_rows(runs / "er" / "costs.csv")
    assert [cells["phases"] for cells in costs] == ["0", "1", "1"]
    assert {cells["spare_bytes"] for cells in costs} == {"2048"}
    merge_seeds(runs, {0: runs / "er"})
    assert "median_ACC" in [cells["metric"] for cells in read_rows(runs / "statistics.csv")]
    assert "median_ACC" in format_metrics({}, ["class"])


def test_a_new_line_is_in_the_tables_of_a_comparison(runs: Path) -> None:
    comparison = answer(runs)
    quality, price = sheets(comparison)[:2]
    assert quality.header[-1] == "median ACC"
    assert price.header[-2:] == ["phases", "spare kB"]
    assert price.columns[-1].cells == ["2.05", "2.05"]
    header = csv_text(comparison).partition("\n")[0].split(",")
    assert {"median_ACC", "phases", "phases_sd", "spare_bytes"} <= set(header)
    asked = columns_asked_for("spare_bytes,median_ACC", comparison)
    assert sheets(comparison, asked)[0].header[-2:] == ["spare kB", "median ACC"]


def test_a_new_line_says_what_is_better(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answer(runs, "median_ACC").streams[0].groups
    values = [group.mean("median_ACC") for group in first]
    assert values == sorted(values) and len(set(values)) == 2
    metric, *costs = NEW
    better = Column(metric.name, "metric", FRACTION, metric.formula, better="more")
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, better, *costs))
    last = answer(runs, "median_ACC").streams[0].groups
    assert [group.mean("median_ACC") for group in last] == values[::-1]


def test_a_new_line_is_verified(runs: Path) -> None:
    assert verify_runs([str(runs)]) == (2, [])
    path = runs / "er" / "summary.csv"
    (row,) = read_rows(path)
    write_rows(path, [row | {"median_ACC": 0.123, "phases": 3, "spare_bytes": 1}])
    said = "\n".join(verify_runs([str(runs)])[1])
    for lie in ("median_ACC is 0.123", "adds up to 2.0 phases", "ends with spare_bytes '2048'"):
        assert lie in said
    for cells, wrong in (({"median_ACC": 1.5}, "[0, 1]"), ({"phases": -1}, "[0, 1e+30]")):
        write_rows(path, [row | cells])
        with pytest.raises(UserError) as error:
            read_runs([str(path)])
        assert str(error.value).endswith(f"which is not in {wrong}")
    write_rows(path, [row | {"phases": 1.5}])
    assert "phases is 1.5, not whole" in "\n".join(verify_runs([str(runs)])[1])


def test_a_checkpoint_has_the_new_costs(runs: Path, prepared) -> None:
    config, strategy, env = prepared(*TOY, "strategy=er")
    expected = frame.frame_of(config, strategy, initial_state(strategy, env), env)
    found = checkpoint.load(runs / "er", config.resolved, expected)
    assert found is not None and found.counts["phases"] == 2
    assert list(found.tables["costs"][-1])[-2:] == ["phases", "spare_bytes"]
