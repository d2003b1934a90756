"""Results as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from cl_runner.functional.metrics import Matrix
from cl_runner.results.columns import of_kind, printed, shown
from cl_runner.results.names import ACCURACY_MATRIX

MOST_TASKS = 50  # whose matrix is shown
LONGEST = 24  # characters of a task's name


def shortened(text: str, most: int) -> str:
    """A text of so many characters at most, the middle left out: names often differ in the end."""
    left = (most - 1) // 2
    return text if len(text) <= most else f"{text[:left]}…{text[len(text) - (most - 1 - left) :]}"


def format_matrix(R: Matrix, tasks: Sequence[str] = (), width: int | None = None) -> str:
    """R as text, one row per `after_task`, in thousandths without the leading zero.

    tasks: their names, where they have some, stand before the rows. Of a long stream, or one whose
    rows are longer than `width` characters, only how long it is.
    """
    T = R.shape[1]
    elsewhere = f"{T} tasks: the accuracies are in {ACCURACY_MATRIX}"
    if T > MOST_TASKS:
        return elsewhere

    def cell(value: float) -> str:
        if math.isnan(value):
            return "    "
        return f"{value:.3f}".removeprefix("0").rjust(5)

    titles = [shortened(name, LONGEST) for name in ("", *tasks)] if tasks else [""] * (T + 1)
    margin = max(map(len, titles)) + bool(tasks)
    lines = [" " * margin + "after \\ task " + " ".join(f"{j + 1:>5}" for j in range(T))]
    lines += [
        f"{titles[i]:{margin}}{i:>12} " + " ".join(map(cell, row))
        for i, row in enumerate(R.tolist())
    ]
    return elsewhere if width is not None and len(lines[0]) > width else "\n".join(lines)


def in_words(columns: Mapping[str, float | None]) -> str:
    """The metrics that matter most, in a few words."""
    values = {name: columns.get(name) for name in shown("metric", only_brief=True)}
    known = {name: v for name, v in values.items() if v is not None and not math.isnan(v)}
    return ", ".join(f"{name} {v:.3f}" for name, v in known.items())


def further(columns: Mapping[str, float | None]) -> str:
    """The metrics that `format_metrics` leaves out, in a line; empty where none was measured."""
    values = {c.name: columns.get(c.name) for c in of_kind("metric") if not c.told}
    known = {name: v for name, v in values.items() if v is not None and not math.isnan(v)}
    return " · ".join(f"{name} {v:.4f}" for name, v in known.items())


def format_metrics(columns: Mapping[str, float | None], readings: Iterable[str]) -> str:
    """The metrics as text, a row per reading; the first is the scenario's own."""
    names = printed()
    lines = ["reading   " + "  ".join(name.rjust(7) for name in names)]
    for i, reading in enumerate(readings):
        values = [columns.get(name if i == 0 else f"{reading}_{name}") for name in names]
        cells = ["-" if v is None or math.isnan(v) else f"{v:.4f}" for v in values]
        widths = [max(len(name), 7) for name in names]
        row = "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
        lines.append(f"{reading + '-IL':10}{row}")
    return "\n".join(lines)
