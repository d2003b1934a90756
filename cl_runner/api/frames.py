"""CSV files of text as tables of pandas, each column with its type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from cl_runner.config.outline import outline, schemas
from cl_runner.results.columns import column_of

if TYPE_CHECKING:
    import pandas as pd

# Columns of text beside the settings: a hash or a version may look like a number.
TEXT = {
    *("run", "status", "benchmark", "scenario", "strategy", "model", "optimizer"),
    *("config_hash", "commit", "cl_runner_version", "torch_version", "python_version"),
    *("used_device", "used_precision", "used_engine", "energy_source"),
    *("after_name", "eval_name", "reading", "split"),
}
TRUTH = {"True": True, "False": False}


def list_of(cell: str) -> list[Any]:
    """A list as cl_runner writes it. Raises ValueError."""
    if not cell.startswith("["):
        raise ValueError(f"{cell} is no list")
    found: list[Any] = json.loads(cell)
    return found


def truth_of(cell: str) -> bool:
    """A truth value as cl_runner writes it. Raises ValueError."""
    if cell not in TRUTH:
        raise ValueError(f"{cell} is neither True nor False")
    return TRUTH[cell]


READ: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": truth_of,
    "list": list_of,
    "str": str,
}


def table(rows: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Rows of text as a table; columns in order of first appearance, empty ones left out."""
    import pandas as pd

    names = dict.fromkeys(name for row in rows for name in row)
    strategies = {row.get("strategy", "") for row in rows}
    found = {}
    for name in names:
        cells = [row.get(name, "") for row in rows]
        if any(cells):
            found[name] = column(cells, kinds(name, strategies))
    return pd.DataFrame(found)


def column(cells: Sequence[str], allowed: Sequence[str]) -> pd.Series:
    """Cells as a column of the first kind that reads all of them; what is empty is missing."""
    import pandas as pd

    for kind in (*allowed, "str"):
        try:
            values = [READ[kind](cell) if cell else None for cell in cells]
        except ValueError:
            continue
        whole = all(cells)
        dtype = {
            "int": "int64" if whole else "Int64",
            "float": "float64",
            "bool": "bool" if whole else "boolean",
        }.get(kind, "object")
        return pd.Series(values, dtype=dtype)
    raise AssertionError("every cell is text")


def kinds(name: str, strategies: Iterable[str]) -> Sequence[str]:
    """The kinds that a column of ours may have, the likeliest first.

    What is measured has its unit, a setting the type of its field; of a setting that no class of
    ours has, the cells tell.
    """
    measured = column_of(name)
    if measured is not None:
        return ["int", "float"] if measured.unit.whole else ["float"]
    if name in TEXT:
        return []
    section, _, key = name.rpartition(".")
    owners = schemas(section) if section != "strategy" else map(outline, strategies)
    types = {str(f.type) for one in owners if one for f in fields(one) if f.name.rstrip("_") == key}
    if not types:
        return ["int", "float", "bool", "list"]
    found = [kind for kind in ("list", "bool", "int", "float") if any(kind in t for t in types)]
    scalars = [type_ for type_ in types if not type_.startswith("list[")]
    fractions = any("float" in type_ for type_ in scalars)
    return ["float" if kind == "int" and fractions else kind for kind in found]
