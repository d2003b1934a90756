"""A picture of accuracies as SVG, in the colours of the page, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

LABEL, PLOT, VALUE, ROW = 190, 380, 90, 24  # widths and a row's height, in pixels


class Row(NamedTuple):
    """One line of the picture: accuracies in [0, 1], None where there is none."""

    label: str
    naive: float | None
    joint: float | None
    own: float


def place(accuracy: float) -> float:
    """Where an accuracy stands, in pixels from the left."""
    return round(LABEL + PLOT * accuracy, 1)


def line(row: Row, top: int) -> list[str]:
    """A row: the way from naive to joint, both, and the strategy's own accuracy."""
    y = top + ROW // 2
    shown = [f'<text class="label" x="{LABEL - 10}" y="{y + 4}">{escape(row.label)}</text>']
    if row.naive is not None and row.joint is not None:
        ends = f'x1="{place(row.naive)}" x2="{place(row.joint)}"'
        shown.append(f'<line class="way" {ends} y1="{y}" y2="{y}"/>')
    if row.naive is not None:
        shown.append(f'<circle class="naive" cx="{place(row.naive)}" cy="{y}" r="4.5"/>')
    if row.joint is not None:
        x = place(row.joint)
        shown.append(f'<line class="joint" x1="{x}" x2="{x}" y1="{y - 7}" y2="{y + 7}"/>')
    shown.append(f'<circle class="own" cx="{place(row.own)}" cy="{y}" r="4.5"/>')
    shown.append(f'<text class="value" x="{LABEL + PLOT + 14}" y="{y + 4}">{row.own:.3f}</text>')
    return shown


def accuracies(name: str, rows: Sequence[Row]) -> str:
    """Rows of a strategy's accuracy, each between naive fine-tuning's and joint training's."""
    height = ROW * len(rows) + 58
    bottom = ROW * len(rows) + 30
    about = f"Accuracy of {name} beside naive fine-tuning and joint training"
    size = f'viewBox="0 0 {LABEL + PLOT + VALUE} {height}"'
    shown = [
        f'<svg class="accuracies" {size} role="img" aria-label="{escape(about)}">',
        f"<title>{escape(about)}</title>",
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = place(tick)
        shown.append(f'<line class="grid" x1="{x}" x2="{x}" y1="28" y2="{bottom}"/>')
        shown.append(f'<text class="tick" x="{x}" y="{bottom + 18}">{tick:g}</text>')
    marks = (("naive", "naive", 0), ("joint", "joint", 90), ("own", name, 180))
    for kind, text, offset in marks:
        x = LABEL + offset
        mark = (
            f'<line class="joint" x1="{x}" x2="{x}" y1="5" y2="19"/>'
            if kind == "joint"
            else f'<circle class="{kind}" cx="{x}" cy="12" r="4.5"/>'
        )
        shown += [mark, f'<text class="key" x="{x + 10}" y="16">{escape(text)}</text>']
    for i, row in enumerate(rows):
        shown += line(row, 30 + ROW * i)
    return "\n".join([*shown, "</svg>"])
