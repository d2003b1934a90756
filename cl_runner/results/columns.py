"""Everything that is measured of a run: one line for each metric and each cost.

What is said of them elsewhere is read from this table: the columns of costs.csv, statistics.csv and
comparison.csv, the tables of cl-compare, which value is better, and which no run can have. So
adding a metric takes its function in `functional.metrics` and a line here; adding a cost takes what
measures it (the meter, or the footprint of a state) and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cl_runner.functional.metrics import (
    acc,
    average_anytime_accuracy,
    average_incremental_accuracy,
    bwt,
    edit_success,
    edits_retained,
    forgetting,
    fwt,
    generality,
    intransigence,
    learning_accuracy,
    locality,
    min_acc,
    next_task_accuracy,
    online_accuracy,
    others_loss,
    personal_gain,
    worst_case_acc,
)

Kind = Literal["metric", "calibration", "cost", "group"]
Needs = Literal["matrix", "curve", "bound", "online", "edits", "base"]
EDIT_READINGS = ("success", "retained", "locality", "generality")  # of edits.csv, in their order
LARGEST = 1e30  # of what is counted: no machine has come near, and its square is a number


@dataclass(frozen=True)
class Unit:
    """What the numbers of a column are."""

    symbol: str = ""  # in a table it stands for the last word of the column's name
    low: float = 0.0  # no run can have measured less,
    high: float = LARGEST  # or more
    whole: bool = False  # whether they are whole numbers
    prefixed: bool = False  # whether large ones are written with k, M, G or T


FRACTION, DIFFERENCE = Unit(high=1.0), Unit(low=-1.0, high=1.0)  # of fractions
NATS, SQUARES, RATIO = Unit(), Unit(high=2.0), Unit(low=-LARGEST)
COUNT, SECONDS = Unit(whole=True), Unit("seconds")
JOULES = Unit("J", prefixed=True)
FLOPS, BYTES = Unit("FLOPs", whole=True, prefixed=True), Unit("B", whole=True, prefixed=True)


@dataclass(frozen=True)
class Column:
    """One number of a run.

    The kinds: a metric follows from the accuracy matrix, a calibration is the mean of a column of
    calibration.csv, a cost is what the run took or holds, and what is of a group follows from its
    runs and those of other groups.
    """

    name: str
    kind: Kind
    unit: Unit
    formula: Callable[..., float] | None = None  # of a metric
    # What the formula takes: R alone, R and the curve, R and a bound; the counts of online.csv; the
    # readings of edits.csv; R alone, where the first task makes a common model.
    needs: Needs = "matrix"
    better: Literal["more", "less"] = "less"
    # The tables of cl-compare. Where they are too wide, the columns in the last places leave.
    place: int | None = None  # None: only where it is asked for
    brief: bool = False  # also where there is little room: at a sweep's end, on a paper's page
    compared: bool = True  # whether it is in comparison.csv when nobody asks for it
    told: bool = True  # whether a run's last table shows it, if it needs R alone: in 80 columns
    # Costs. costs.csv has a row for each task, summary.csv the total.
    by_task: bool = True  # whether it is a column of costs.csv
    total: Literal["sum", "last", "largest"] = "sum"  # of a run by its tasks
    exact: bool = True  # whether it is the same when a run is repeated


# In the order of statistics.csv and of costs.csv. BWT has no place in a table: it is forgetting
# with the other sign for all that is forgotten from the diagonal on. Nor has worst_case_ACC: it is
# min_ACC and the last task's accuracy in one number.
COLUMNS = (
    Column("ACC", "metric", FRACTION, acc, better="more", place=1, brief=True),
    Column("BWT", "metric", DIFFERENCE, bwt, better="more"),
    Column("FWT", "metric", DIFFERENCE, fwt, better="more", place=17),
    Column("forgetting", "metric", DIFFERENCE, forgetting, place=2, brief=True),
    Column("learning_accuracy", "metric", FRACTION, learning_accuracy, better="more", place=4),
    Column(
        "average_incremental_accuracy",
        "metric",
        FRACTION,
        average_incremental_accuracy,
        better="more",
        compared=False,
    ),
    Column("intransigence", "metric", DIFFERENCE, intransigence, needs="bound", place=11),
    Column("min_ACC", "metric", FRACTION, min_acc, needs="curve", better="more", place=13),
    Column("worst_case_ACC", "metric", FRACTION, worst_case_acc, needs="curve", better="more"),
    Column(
        "average_anytime_accuracy",
        "metric",
        FRACTION,
        average_anytime_accuracy,
        needs="curve",
        better="more",
        place=12,
    ),
    Column(
        "next_task_accuracy",
        "metric",
        FRACTION,
        next_task_accuracy,
        better="more",
        place=18,
        told=False,
    ),
    Column(
        "online_accuracy",
        "metric",
        FRACTION,
        online_accuracy,
        needs="online",
        better="more",
        place=19,
        told=False,
    ),
    Column(
        "personal_gain",
        "metric",
        DIFFERENCE,
        personal_gain,
        needs="base",
        better="more",
        place=5,
        told=False,
    ),
    Column("others_loss", "metric", DIFFERENCE, others_loss, needs="base", place=6, told=False),
    *(
        Column(name, "metric", FRACTION, formula, "edits", "more", place=place, told=False)
        for place, name, formula in zip(
            range(7, 11),
            EDIT_READINGS,
            (edit_success, edits_retained, locality, generality),
            strict=True,
        )
    ),
    Column("NLL", "calibration", NATS, place=14),
    Column("Brier", "calibration", SQUARES, place=15),
    Column("ECE", "calibration", FRACTION, place=16),
    Column("seconds", "cost", SECONDS, place=4, by_task=False, exact=False),
    Column("train_seconds", "cost", SECONDS, compared=False, exact=False),
    Column("evaluation_seconds", "cost", SECONDS, compared=False, exact=False),
    Column("steps", "cost", COUNT, compared=False),
    Column("samples", "cost", COUNT, place=7),
    Column("flops", "cost", FLOPS, place=1, brief=True),
    Column("evaluation_flops", "cost", FLOPS, place=8),
    Column("energy_joules", "cost", JOULES, place=9, exact=False),
    Column("parameters", "cost", COUNT, place=6, total="last"),
    Column("parameter_bytes", "cost", BYTES, compared=False, by_task=False, total="last"),
    Column("buffer_samples", "cost", COUNT, compared=False, by_task=False, total="last"),
    Column("buffer_bytes", "cost", BYTES, place=3, total="last"),
    Column("memory_bytes", "cost", BYTES, place=2, brief=True, total="last"),
    Column("generator_parameters", "cost", COUNT, compared=False, total="last"),
    Column("peak_memory_bytes", "cost", BYTES, place=5, total="largest", exact=False),
    # Only where the guard is on (run.guard), from guard.csv.
    Column("worst_drop", "cost", FRACTION, compared=False, by_task=False, total="largest"),
    Column("rollbacks", "cost", COUNT, compared=False, by_task=False),
    Column("position", "group", RATIO, better="more", place=3),  # 0: as naive, 1: as joint
)


# One column.


def column_of(name: str) -> Column | None:
    """The line of a column of a file; None where there is none, as for a setting.

    A metric's columns begin with the split and the reading where those are not the usual ones.
    """
    lines = {column.name: column for column in COLUMNS}
    own = name
    while own and own not in lines:
        own = own.partition("_")[2]
    found = lines.get(own)
    prefixed = found is not None and found.kind in ("metric", "calibration")
    return found if own == name or prefixed else None


def column_name(name: str, split: str, reading: str, own_reading: str) -> str:
    """What a metric is called in summary.csv; own_reading: as the scenario says."""
    prefix = "" if split == "test" else f"{split}_"
    prefix += "" if reading == own_reading else f"{reading}_"
    return prefix + name


def is_metric(name: str) -> bool:
    """Whether a column is a metric or a calibration, of whichever split and reading."""
    column = column_of(name)
    return column is not None and column.kind in ("metric", "calibration")


def is_cost(name: str) -> bool:
    """Whether a column is a cost."""
    column = column_of(name)
    return column is not None and column.kind == "cost"


def larger_is_better(name: str) -> bool:
    """Whether more of a column is better; not so of forgetting, intransigence and costs."""
    column = column_of(name)
    return column is not None and column.better == "more"


def reproducible(name: str) -> bool:
    """Whether a column is the same when the run is repeated: false for times and peak memory."""
    column = column_of(name)
    return column is None or column.exact


# Several.


def of_kind(*kinds: Kind) -> list[Column]:
    """The columns of some kinds."""
    return [column for column in COLUMNS if column.kind in kinds]


def formulas(needs: Needs) -> dict[str, Callable[..., float]]:
    """The formulas of the metrics that need the same, by the metrics' names."""
    return {c.name: c.formula for c in COLUMNS if c.formula is not None and c.needs == needs}


def task_costs(*totals: str) -> list[str]:
    """The columns of costs.csv; totals: only those whose total is one of these."""
    return [c.name for c in of_kind("cost") if c.by_task and (not totals or c.total in totals)]


def kept_bytes() -> list[str]:
    """The costs that add up to the bytes that a run keeps between its tasks."""
    return [c.name for c in of_kind("cost") if c.unit == BYTES and c.total == "last"]


def of_guard(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """The costs that follow from the rows of guard.csv; of a first task alone there are none."""
    rows = list(rows)
    falls = [float(row["reference"] or 0) - float(row["accuracy"] or 0) for row in rows]
    backs = sum(row["action"] == "rollback" for row in rows)
    return {"worst_drop": max(falls, default=None), "rollbacks": backs}


# Which are shown.


def shown(*kinds: Kind, only_brief: bool = False) -> list[str]:
    """The columns of a table of cl-compare, the most important first."""
    found = [c for c in of_kind(*kinds) if c.brief or not only_brief]
    placed = [(c.place, c.name) for c in found if c.place is not None]
    return [name for _, name in sorted(placed)]


def compared() -> list[str]:
    """The columns of comparison.csv, the metrics that matter most first."""
    return list(
        dict.fromkeys([*shown("metric", only_brief=True), *(c.name for c in COLUMNS if c.compared)])
    )


def printed() -> list[str]:
    """The metrics in a run's last table: of the compared ones, those told that need R alone."""
    told = {column.name for column in COLUMNS if column.told}
    return [name for name in compared() if name in formulas("matrix") and name in told]
