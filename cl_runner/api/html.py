"""What a notebook shows: small tables, every text of which is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from cl_runner.results.text import shortened

if TYPE_CHECKING:
    import pandas as pd

MOST = 20  # tasks whose matrix is shown
LONGEST = 24  # characters of a name
LOW, HIGH = (253, 231, 220), (44, 123, 182)  # the colours of 0 and 1


def block(title: str, *parts: str) -> str:
    """A title above tables (which are HTML) and lines of text (which are not)."""
    below = [part if part.startswith("<table") else f"<div>{escape(part)}</div>" for part in parts]
    shown = "".join(part for part in below if part != "<div></div>")
    head = f"<div><b>{escape(title)}</b></div>" if title else ""
    return f"<div>{head}{shown}</div>"


def plain(
    header: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[Sequence[bool]] = ()
) -> str:
    """A table of texts; bold: which cells are."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = []
    for i, row in enumerate(rows):
        strong = bold[i] if bold else [False] * len(row)
        shown = [
            f"<td>{'<b>' if b else ''}{escape(text)}{'</b>' if b else ''}</td>"
            for text, b in zip(row, strong, strict=True)
        ]
        lines.append(f"<tr>{''.join(shown)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def shaded(matrix: pd.DataFrame) -> str:
    """An accuracy matrix whose cells are the darker the higher; of many tasks a line instead."""
    tasks = len(matrix.columns)
    if tasks > MOST:
        return f"{tasks} tasks: Run.matrix has their accuracies"
    head = "".join(f"<th>{name_of(task)}</th>" for task in matrix.columns)
    lines = []
    for after, row in zip(matrix.index, matrix.to_numpy().tolist(), strict=True):
        lines.append(f"<tr><th>{name_of(after)}</th>{''.join(map(cell, row))}</tr>")
    top = f"<thead><tr><th>after \\ task</th>{head}</tr></thead>"
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>"


def name_of(task: object) -> str:
    """A task's name, as long as there is room for."""
    return escape(shortened(str(task), LONGEST))


def cell(value: float) -> str:
    """A fraction on the colour that it has; nothing where it is none."""
    if math.isnan(value):
        return "<td></td>"
    mixed = [round(low + (high - low) * value) for low, high in zip(LOW, HIGH, strict=True)]
    text = "#fff" if value > 0.6 else "#000"
    colours = f"background:rgb({','.join(map(str, mixed))});color:{text}"
    return f'<td style="{colours}">{value:.3f}</td>'


def short(text: str) -> str:
    """A cell of a file with as many digits as a reader wants."""
    try:
        number = float(text)
    except ValueError:
        return shortened(text, 60)
    return text if len(text) <= 6 else f"{number:.4g}"
