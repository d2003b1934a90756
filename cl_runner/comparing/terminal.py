"""Tables as lines of text: no cell is folded or cut, and nothing in them steers a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

Line = list[tuple[str, bool]]  # pieces of text, and whether they are bold
GAP = "  "


@dataclass(frozen=True, kw_only=True)
class TextColumn:
    """One column of a table for people."""

    title: str
    cells: list[str]
    bold: list[bool]
    name: str = ""  # what `--columns` calls it


def printable(text: str) -> str:
    r"""The text with `\x1b` and the like for what is not seen: controls, odd spaces, line ends."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def printable_lines(text: str) -> str:
    """The same line by line: the ends of lines stay."""
    return "\n".join(map(printable, text.split("\n")))


def cells_wide(text: str) -> int:
    """How many places of a terminal a text takes: two for a Chinese character, none for accents."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def broken(text: str, width: int, indent: str = "") -> list[str]:
    """A text in lines, broken between words only: a path or a number stays whole."""
    if cells_wide(text) <= width:
        return [text]
    found: list[str] = []
    for word in text.split():
        if found and cells_wide(found[-1]) + 1 + cells_wide(word) <= width:
            found[-1] += f" {word}"
        else:
            found.append((indent if found else "") + word)
    return found or [""]


def fitted(
    columns: Sequence[TextColumn], fixed: int, limit: int, *, several: bool
) -> tuple[list[list[TextColumn]], list[TextColumn]]:
    """The columns that fit into a width, and those that left, from the right.

    fixed: so many columns stay in any case, and one more. several: what would leave makes further
    tables.
    """
    own, rest = list(columns[:fixed]), list(columns[fixed:])
    parts: list[list[TextColumn]] = []
    while rest or not parts:
        fits = [k for k in range(2, len(rest) + 1) if total(own + rest[:k]) <= limit]
        count = max(fits, default=1)
        parts.append(own + rest[:count])
        rest = rest[count:]
        if not several:
            break
    return parts, rest


def total(columns: Sequence[TextColumn]) -> int:
    """The width of a table whose titles are folded between their words."""
    return sum(map(narrowest, columns)) + len(GAP) * (len(columns) - 1)


def narrowest(column: TextColumn) -> int:
    """The width of a column's longest cell and of the longest word of its title."""
    return max(map(cells_wide, [*column.cells, *column.title.split(), ""]))


def lines(columns: Sequence[TextColumn], limit: int | None = None) -> list[Line]:
    """A table, its first column to the left and the others to the right.

    With a limit titles are folded between their words; so are the first column's cells, between
    the settings, if one of them is wider than what the other columns leave.
    """
    first, *others = columns
    if limit is None:
        widths = [max(map(cells_wide, [c.title, *c.cells])) for c in columns]
    else:
        widths = [narrowest(c) for c in columns]
        left = limit - total(others) - len(GAP)
        longest = max(cells_wide(word) for cell in first.cells for word in cell.split() or [""])
        widths[0] = min(widths[0], max(left, longest + len(GAP)))
    titles = [broken(c.title, w) for c, w in zip(columns, widths, strict=True)]
    depth = max(map(len, titles))
    above = [[""] * (depth - len(title)) + title for title in titles]
    found = [line(row, [True] * len(widths), widths) for row in zip(*above, strict=True)]
    for i, label in enumerate(first.cells):
        start, *more = broken(label, widths[0], GAP)
        cells = [start, *(c.cells[i] for c in others)]
        found.append(line(cells, [c.bold[i] for c in columns], widths))
        found += [[(text, first.bold[i])] for text in more]
    return found


def line(cells: Sequence[str], bold: Sequence[bool], widths: Sequence[int]) -> Line:
    """Cells side by side, without spaces at the end."""
    pieces: Line = []
    for i, (cell, strong, width) in enumerate(zip(cells, bold, widths, strict=True)):
        space = " " * (width - cells_wide(cell))
        pieces += [(cell, strong), (space, False)] if i == 0 else [(space, False), (cell, strong)]
        pieces.append((GAP, False))
    while pieces and not pieces[-1][0].strip():
        pieces.pop()
    return pieces


def text(found: Sequence[Line]) -> str:
    """Lines as plain text."""
    return "\n".join("".join(piece for piece, _ in one) for one in found)
