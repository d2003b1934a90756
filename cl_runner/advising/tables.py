"""The two tables that advice rests on: the streams, and what was measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cl_runner.results.files import read_rows

FOLDER = Path(__file__).parent
STREAMS, RESULTS = FOLDER / "streams.csv", FOLDER / "results.csv"
WORDS = (
    *("stream", "settings", "scenario", "kind", "data", "change", "boundaries"),
    *("strategy", "status", "source"),
)
STREAM_COLUMNS = (
    *("stream", "settings", "scenario", "kind", "data", "change", "boundaries", "images"),
    *("num_tasks", "classes", "classes_per_task", "samples_per_task", "input_size"),
    *("largest_to_smallest_class", "steps_per_task"),
)
RESULT_COLUMNS = (
    *("stream", "scenario", "strategy", "status", "n"),
    *("ACC", "ACC_sd", "forgetting", "kept_bytes", "flops"),
    *("needs_borders", "needs_tasks", "source"),
)
Row = dict[str, Any]  # a row of a table: text, numbers, and None where a cell is empty


def read(path: Path) -> list[Row]:
    """The rows of one of the tables; none if there is no such file. Raises UserError if damaged."""
    if not path.exists():
        return []
    return [{name: value(name, cell) for name, cell in row.items()} for row in read_rows(path)]


def value(name: str, cell: str) -> Any:
    """What a cell holds: text, a number, or None."""
    if name in WORDS:
        return cell
    if not cell:
        return None
    number = float(cell)
    return int(number) if number.is_integer() and "." not in cell else number
