"""A comparison for a paper: tables for the LaTeX packages booktabs and siunitx (2 or 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cl_runner.comparing import render
from cl_runner.comparing.render import Names
from cl_runner.comparing.statistics import LEVEL
from cl_runner.comparing.table import BOUNDS, Comparison, Group, StreamGroup
from cl_runner.comparing.terminal import TextColumn, printable
from cl_runner.results.columns import shown

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "<": "$<$",
    ">": "$>$",
}
DAGGER, DOUBT = "$^\\dagger$", "$^?$"
MARKS = {"no": DAGGER, "untested": DOUBT, "too_few": DOUBT}  # as render.MARKS
NUMBER = re.compile(r"(?P<sign>[-+]?)(?P<whole>\d+)(\.(?P<part>\d+))?( ±(?P<half>\d+\.\d+))?")
# More columns on a page, bold numbers, and 0.828 ± 0.009 for 0.828(9).
SETUP = "\\setlength{\\tabcolsep}{4pt}\\sisetup{detect-weight, separate-uncertainty}"


def latex(comparison: Comparison, columns: Names = None) -> str:
    """A table per stream that fits a page, and one over the streams; the tests are in the CSV."""
    metric = comparison.question.metric
    blocks = ["% \\usepackage{booktabs, siunitx}"]
    for stream in (s for s in comparison.streams if any(g.runs for g in s.groups)):
        usual = [*shown("metric", only_brief=True), *shown("cost", only_brief=True)]
        names = dict.fromkeys([metric, *usual]) if columns is None else columns
        blocks.append(stream_table(stream, metric, list(names)))
    if comparison.overall is not None:
        sheet = render.overall_sheet(comparison)
        ranks = sheet.columns[:4]  # strategy, rank, mean and interval fit into a page's width
        blocks.append(table(ranks, f"{escaped(sheet.title)}.", render.OVERALL))
    notes = [*render.rules(comparison), *render.incomplete_lines(comparison)]
    return "\n\n".join([*blocks, "\n".join(f"% {printable(line)}" for line in notes)])


def stream_table(stream: StreamGroup, metric: str, names: Sequence[str]) -> str:
    """The bounds, and below them the strategies, the best first."""
    groups = sorted((g for g in stream.groups if g.runs), key=lambda g: g.strategy not in BOUNDS)
    counts = [str(len(g.runs)) for g in groups]
    known = [name for name in names if any(render.has(g, name) for g in groups)]
    found = [
        render.label_column(groups),
        *([render.plain_column("n", counts)] if len(set(counts)) > 1 else []),
        *(render.measured_column(name, groups) for name in known),
    ]
    marks = [MARKS.get(g.distinguishable, "") for g in groups]
    bounds = sum(g.strategy in BOUNDS for g in groups)
    return table(found, caption(stream, groups, metric), stream.title, marks, bounds)


def caption(stream: StreamGroup, groups: Sequence[Group], metric: str) -> str:
    """What a reader of the paper needs to read the table."""
    counts = {len(g.runs) for g in groups}
    seeds = f"{counts.pop()} seeds" if len(counts) == 1 else "$n$ seeds"
    marks = {MARKS.get(g.distinguishable) for g in groups}
    parts = [
        f"{escaped(stream.title)}: mean and half of the 95\\,\\% interval over {seeds}",
        "bold: the best of a column",
    ]
    if any(g.strategy in BOUNDS for g in groups):
        parts.append("above the rule: bounds")
    if DAGGER in marks:
        test = f"paired test, Holm, $p \\ge {LEVEL}$"
        parts.append(f"{DAGGER}: {escaped(metric)} not distinguishable from the best ({test})")
    if DOUBT in marks:
        parts.append(f"{DOUBT}: no test could tell")
    return "; ".join(parts) + "."


def table(
    columns: Sequence[TextColumn],
    about: str,
    title: str,
    marks: Sequence[str] = (),
    bounds: int = 0,
) -> str:
    """A table that floats. marks: what follows the first cells; a rule follows so many bounds."""
    formats = [column_format(c.cells) for c in columns[1:]]
    header = [f"{{{escaped(c.title)}}}" for c in columns]
    shown = [
        [cell(*pair, number=kind.startswith("S")) for pair in zip(c.cells, c.bold, strict=True)]
        for c, kind in zip(columns, ["l", *formats], strict=True)
    ]
    if marks:
        shown[0] = [name + mark for name, mark in zip(shown[0], marks, strict=True)]
    rows = [f"{' & '.join(cells)} \\\\" for cells in zip(*shown, strict=True)]
    if 0 < bounds < len(rows):
        rows.insert(bounds, "\\midrule")
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering\\small",
            SETUP,
            f"\\caption{{{about}}}",
            f"\\label{{tab:{slug}}}",
            f"\\begin{{tabular}}{{{' '.join(['l', *formats])}}}",
            "\\toprule",
            f"{' & '.join(header)} \\\\",
            "\\midrule",
            *rows,
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
        ]
    )


def column_format(cells: Sequence[str]) -> str:
    """S with the places that the numbers need; r where a cell is no number."""
    found = [NUMBER.fullmatch(c.replace(",", "")) for c in cells if c not in {"-", ""}]
    numbers = [m for m in found if m is not None]
    if not numbers or len(numbers) < len(found):
        return "r"

    def longest(group: str) -> int:
        return max(len(m[group] or "") for m in numbers)

    halves = [len(uncertainty(m["half"])) for m in numbers if m["half"]]
    sign = "-" if longest("sign") else ""
    decimals = f".{longest('part')}" if longest("part") else ""
    spread = f"({max(halves)})" if halves else ""
    return f"S[table-format={sign}{longest('whole')}{decimals}{spread}]"


def uncertainty(half: str) -> str:
    """In units of the last digit: 0.012 is (12)."""
    return half.replace(".", "").lstrip("0") or "0"


def cell(text: str, bold: bool, *, number: bool) -> str:
    """A cell as siunitx reads it: `0.828(9)`, `{--}` for what is missing, or text."""
    found = NUMBER.fullmatch(text.replace(",", "")) if number else None
    if found is None:
        shown = {"-": "{--}", "": ""}.get(text, escaped(text))
        return f"\\textbf{{{shown}}}" if bold else shown
    value, _, half = found[0].partition(" ±")
    shown = f"{value}({uncertainty(half)})" if half else value
    return f"\\bfseries {shown}" if bold else shown


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(character, character) for character in printable(text))
