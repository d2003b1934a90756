"""A comparison as text, CSV, Markdown, LaTeX or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from cl_runner.comparing import terminal
from cl_runner.comparing.advice import advice
from cl_runner.comparing.names import display, listed
from cl_runner.comparing.runs import Run
from cl_runner.comparing.statistics import FEW, LEVEL, Paired
from cl_runner.comparing.table import BOUNDS, POSITION, Comparison, Group, StreamGroup
from cl_runner.comparing.terminal import TextColumn, printable
from cl_runner.comparing.verdict import PREFIXES, verdict
from cl_runner.results import files, status
from cl_runner.results.columns import (
    Column,
    column_of,
    compared,
    formulas,
    larger_is_better,
    shown,
)

if TYPE_CHECKING:
    from rich.console import Console

# Marks in a table, explained below it.
MARKS = {"best": "*", "no": "~", "untested": "?", "too_few": "?", "yes": "", "bound": ""}
OVERALL = "all streams"  # stands for the title of a stream
SIGNATURE = ("benchmark", "scenario", "reading", "strategy", "settings", "n")  # of comparison.csv
HUGE = 1e9  # counts from which on three digits say more than all
LISTED_BOUNDS = listed([display(name, {}) for name in BOUNDS])
MANY = 60  # lines of incomplete runs that are still worth printing one by one
Names = Sequence[str] | None  # the columns asked for; None: the usual ones


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table for people: cells as text; the best of each column is bold."""

    kind: str  # quality, price, tests, overall
    section: str  # the title of the stream, or OVERALL
    title: str
    columns: list[TextColumn]
    fixed: int = 1  # columns that never leave
    asked: bool = False  # whether the user chose the columns: then none leaves

    @property
    def header(self) -> list[str]:
        """The titles."""
        return [column.title for column in self.columns]

    @property
    def rows(self) -> list[list[str]]:
        """The cells, row by row."""
        return [list(row) for row in zip(*(c.cells for c in self.columns), strict=True)]


def sheets(comparison: Comparison, columns: Names = None) -> list[Sheet]:
    """The tables: for each stream what was reached, at what price, and how sure it is.

    columns: what the first table of a stream shows instead; then costs have no table of their own.
    """
    found = []
    for stream in comparison.streams:
        names = default(stream, comparison.question.metric) if columns is None else columns
        found.append(group_sheet(stream, names, asked=columns is not None))
        found += [price_sheet(stream)] if columns is None else []
        found += test_sheets(stream, comparison)
    if comparison.overall is not None:
        found.append(overall_sheet(comparison))
    told = [s for s in found if s.kind == "quality" or len(s.columns) > s.fixed]
    return [sheet for sheet in told if sheet.rows]


def default(stream: StreamGroup, metric: str) -> list[str]:
    """The metric, and the usual ones that the stream's runs have."""
    names = dict.fromkeys([metric, *shown("metric", "calibration", "group")])
    return [name for name in names if any(has(g, name) for g in stream.groups)]


def has(group: Group, name: str) -> bool:
    """Whether anything was measured."""
    return group.position is not None if name == POSITION else bool(group.values.get(name))


def group_sheet(stream: StreamGroup, names: Sequence[str], *, asked: bool = False) -> Sheet:
    """A row per group: the metrics' mean and half of the 95 % interval, and the costs' means."""
    groups = stream.groups
    failures = any(g.incomplete for g in groups)
    lost = [plain_column("incomplete", [str(len(g.incomplete) or "") for g in groups])]
    fixed = [
        label_column(groups),
        plain_column("", [MARKS[g.distinguishable] if g.runs else "" for g in groups]),
        plain_column("n", [str(len(g.runs)) for g in groups]),
        *(lost if failures else []),
    ]
    return Sheet(
        kind="quality",
        section=stream.title,
        title=stream.title,
        columns=[*fixed, *(measured_column(name, groups) for name in names)],
        fixed=len(fixed),
        asked=asked,
    )


def price_sheet(stream: StreamGroup) -> Sheet:
    """The means of what was paid."""
    groups = [g for g in stream.groups if g.runs]
    names = [name for name in shown("cost") if any(has(g, name) for g in groups)]
    return Sheet(
        kind="price",
        section=stream.title,
        title=f"{stream.title}: mean costs of a run",
        columns=[
            plain_column("strategy", [g.name for g in groups]),
            *(measured_column(name, groups) for name in names),
        ],
    )


def label_column(groups: Sequence[Group]) -> TextColumn:
    """The names of the groups, the best one's in bold."""
    return TextColumn(
        title="strategy", cells=[g.name for g in groups], bold=[g.best for g in groups]
    )


def plain_column(title: str, cells: list[str]) -> TextColumn:
    """A column without a best cell."""
    return TextColumn(title=title, cells=cells, bold=[False] * len(cells))


def test_sheets(stream: StreamGroup, comparison: Comparison) -> list[Sheet]:
    """Paired tests against the best and against the baseline."""
    best = next((g.name for g in stream.groups if g.best), "")
    families = [("the best", best, [(g, g.versus_best) for g in stream.groups])]
    if comparison.question.baseline:
        base = display(comparison.question.baseline, {})
        families.append(("the baseline", base, [(g, g.versus_baseline) for g in stream.groups]))
    header = ["strategy", "gain", "p (Holm)", "Cohen's d", "shared seeds", "test", "p"]
    found = []
    for what, other, pairs in families:
        rows = [[g.name, *test_cells(result)] for g, result in pairs if result is not None]
        columns = [plain_column(*pair) for pair in zip(header, transposed(rows), strict=False)]
        title = f"{stream.title}: {comparison.question.metric} against {what}, {other}"
        found.append(Sheet(kind="tests", section=stream.title, title=title, columns=columns))
    return found


def transposed(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows as columns."""
    return [list(cells) for cells in zip(*rows, strict=True)]


def test_cells(result: Paired) -> list[str]:
    """A test's row; the gain is positive where the strategy is better than what it is tested on."""
    gain = "-" if result.difference is None else f"{result.difference:+.4f}"
    effect = number(result.effect, 2)
    return [gain, p_value(result.p_holm), effect, str(result.n), result.test, p_value(result.p)]


def overall_sheet(comparison: Comparison) -> Sheet:
    """Ranks and aggregates over the streams."""
    overall, metric = comparison.overall, comparison.question.metric
    assert overall is not None
    names, methods, ranking = display_names(comparison), overall.methods, overall.ranking
    against = next((names[m.against] for m in methods if m.against), "")
    ranks, sign = [m.rank for m in methods], 1 if larger_is_better(metric) else -1
    best = max(sign * m.iqm for m in methods)
    columns = [
        plain_column("strategy", [names[m.label] for m in methods]),
        TextColumn(
            title="average rank",
            cells=[f"{rank:.2f}" for rank in ranks],
            bold=[rank == min(ranks) for rank in ranks],
        ),
        TextColumn(
            title="interquartile mean",
            cells=[number(m.iqm, 4) for m in methods],
            bold=[sign * m.iqm == best for m in methods],
        ),
        plain_column("95 % interval", [between(m.iqm_interval) for m in methods]),
        plain_column(f"P(better than {against})", [number(m.improvement, 2) for m in methods]),
        plain_column("95 % interval", [between(m.improvement_interval, 2) for m in methods]),
    ]
    friedman = f"Friedman {said_p(ranking.friedman_p)}, " if ranking.friedman_p else ""
    title = (
        f"{metric} over {ranking.streams} streams: {friedman}average ranks differ from "
        f"{ranking.critical_difference:.2f} on (Nemenyi)"
    )
    return Sheet(kind="overall", section=OVERALL, title=title, columns=columns)


def display_names(comparison: Comparison) -> dict[str, str]:
    """The names of the groups by their labels, which are the names of the methods over streams."""
    return {g.label: g.name for stream in comparison.streams for g in stream.groups}


def verdicts(comparison: Comparison) -> list[str]:
    """On each stream, named if there are several, a paragraph; and one on updating, if asked."""
    several = len(comparison.streams) > 1
    return [
        " ".join([*([f"{stream.title}:"] if several else []), *sentences])
        for stream in comparison.streams
        for sentences in (verdict(stream), advice(stream))
        if sentences
    ]


def remarks(comparison: Comparison, *, bold: bool = False) -> list[str]:
    """What stands below the tables."""
    return explanations(comparison, bold=bold) + incomplete_lines(comparison)


def legend(groups: Sequence[Group], metric: str, *, bold: bool) -> list[str]:
    """How to read the cells and marks of these groups; bold: whether the format has that."""
    marks = {g.distinguishable for g in groups if g.runs}
    lines = ["mean ± half of the 95 % interval (Student's t) over n seeds"]
    lines += ["bold: the best of a column, bounds aside"] if bold else []
    lines.append(f"* the best {metric}")
    if "bound" in marks:
        lines.append(f"{LISTED_BOUNDS} are bounds: never the best, tested or ranked")
    if "no" in marks:
        lines.append(f"~ not distinguishable from the best (paired test, Holm, p >= {LEVEL})")
    if marks & {"untested", "too_few"}:
        lines.append("? no test could tell it from the best; notes and the table of tests say why")
    if any(g.position is not None for g in groups):
        lines.append("position: 0 is naive, 1 is joint, over the seeds that all three share")
    return lines


def explanations(comparison: Comparison, *, bold: bool) -> list[str]:
    """The marks, the rules, and what the reader should know."""
    groups = [g for stream in comparison.streams for g in stream.groups]
    return legend(groups, comparison.question.metric, bold=bold) + rules(comparison)


def rules(comparison: Comparison) -> list[str]:
    """How was ranked, and the notes on these runs."""
    lines = []
    ranking = None if comparison.overall is None else comparison.overall.ranking
    if ranking is not None and ranking.critical_difference > len(ranking.ranks) - 1:
        few_streams = f"{ranking.streams} streams are too few for"
        lines.append(f"{few_streams} average ranks of {len(ranking.ranks)} methods to differ")
    if comparison.overall is not None and comparison.overall.fewest < FEW:
        few_runs = f"few seeds ({comparison.overall.fewest}, at least {FEW} are wanted)"
        lines.append(f"{few_runs}: the bootstrap intervals over the streams are too narrow")
    if comparison.overall is not None and comparison.overall.left_out:
        shown = display_names(comparison)
        names = ", ".join(shown[name] for name in comparison.overall.left_out)
        lines.append(f"not ranked, since some stream lacks them: {names}")
    return lines + [f"note: {note}" for note in comparison.notes]


def incomplete_lines(comparison: Comparison) -> list[str]:
    """The runs that were not averaged in, each with its reason."""
    runs = comparison.incomplete
    if not runs:
        return []
    lines = [f"{len(runs)} runs are not complete and not averaged in:"]
    lines += [f"  {run.row['status']}: {run.name}, {reason(run)}" for run in runs[:MANY]]
    return lines + ([f"  and {len(runs) - MANY} more"] if len(runs) > MANY else [])


def reason(run: Run) -> str:
    """What the run's folder says about its failure, and the folder."""
    why = str(status.read(run.folder).get("reason", ""))
    return f"{' '.join(why.split())} ({run.folder})" if why else f"see {run.folder}"


# Cells.


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits, and no -0; a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def measured_column(name: str, groups: Sequence[Group]) -> TextColumn:
    """A metric or cost; FLOPs and bytes in a unit for all of its cells."""
    if name == POSITION:
        cells = [number(g.position, 2) for g in groups]
        return TextColumn(title=name, cells=cells, bold=best_cells(name, groups, cells), name=name)
    found = column_of(name)
    if found is not None and found.kind == "cost":
        title, cells = cost(found, [g.mean(name) for g in groups])
    else:
        title, cells = name.replace("_", " "), [with_half(g, name) for g in groups]
    return TextColumn(title=title, cells=cells, bold=best_cells(name, groups, cells), name=name)


def cost(of: Column, means: Sequence[float | None]) -> tuple[str, list[str]]:
    """The title of a cost, with a unit that suits the largest, and its cells."""
    *words, last = of.name.split("_")
    largest = max((m for m in means if m is not None), default=0.0)
    size = next((s for s in PREFIXES if of.unit.prefixed and largest >= s), 1.0)
    last = PREFIXES.get(size, "") + (of.unit.symbol or last)
    whole = of.unit.whole and size == 1
    cells = ["-" if m is None else amount(m / size, whole=whole) for m in means]
    return " ".join([*words, last]), cells


def best_cells(name: str, groups: Sequence[Group], cells: Sequence[str]) -> list[bool]:
    """Which cells are the best of a column, or look like it; none where all look alike.

    Bounds are left aside.
    """
    up = larger_is_better(name)
    means = {
        i: mean if up else -mean
        for i, g in enumerate(groups)
        if g.strategy not in BOUNDS
        and (mean := g.position if name == POSITION else g.mean(name)) is not None
    }
    looks = {i: cells[i].partition(" ±")[0] for i in means}
    if len(set(looks.values())) < 2:
        return [False] * len(groups)
    best = looks[max(means, key=lambda i: means[i])]
    return [looks.get(i) == best for i in range(len(groups))]


def with_half(group: Group, name: str) -> str:
    """Mean ± half of the interval; the mean alone for one run."""
    found = group.statistics(name)
    if found["low"] is None:
        return number(found["mean"])
    return f"{number(found['mean'])} ±{found['high'] - found['mean']:.3f}"


def amount(value: float, *, whole: bool) -> str:
    """What is counted, in whole numbers with thousands apart; others with three digits."""
    if not whole and 0 < value < 0.001:
        return "< 0.001"
    short = (not whole and value < 1000) or value >= HUGE
    return f"{value:.3g}" if short else f"{value:,.0f}"


def p_value(p: float | None) -> str:
    """Three digits; the smallest as `< 0.001`."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def said_p(p: float | None) -> str:
    """A p-value in a sentence."""
    shown = p_value(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def between(interval: tuple[float, float] | None, digits: int = 4) -> str:
    """Low .. high."""
    return "-" if interval is None else " .. ".join(number(v, digits) for v in interval)


# Formats.


def plain(comparison: Comparison, columns: Names = None) -> str:
    """Aligned text without any control characters, as wide as its tables are."""
    blocks = [
        "\n".join([printable(sheet.title), terminal.text(terminal.lines(clean(sheet.columns)))])
        for sheet in sheets(comparison, columns)
    ]
    above = "\n".join(map(printable, verdicts(comparison)))
    below = "\n".join(map(printable, remarks(comparison)))
    return "\n\n".join([above, *blocks, below])


def clean(columns: Sequence[TextColumn]) -> list[TextColumn]:
    """Columns that can be printed: what comes from a file may steer a terminal."""
    return [
        replace(c, title=printable(c.title), cells=[printable(cell) for cell in c.cells])
        for c in columns
    ]


def short(comparison: Comparison) -> str:
    """What the end of a sweep shows: ACC and forgetting of each group, and what is missing.

    Where eval.tasks leaves out both, whatever metrics there are.
    """
    blocks = []
    for stream in comparison.streams:
        usual = shown("metric", only_brief=True)
        names = [name for name in usual if any(has(g, name) for g in stream.groups)]
        names = names or default(stream, comparison.question.metric)
        label, _mark, *rest = group_sheet(stream, names).columns
        text = terminal.text(terminal.lines(clean([label, *rest])))
        blocks.append(f"{printable(stream.title)}\n{text}")
    explained = "mean ± half of the 95 % interval (Student's t) over n seeds"
    return "\n\n".join([*blocks, explained])


def print_terminal(comparison: Comparison, console: Console, columns: Names = None) -> None:
    """Tables as wide as a terminal, the best of each column in bold."""
    from rich.text import Text

    def write(text: str, style: str = "", *, whole: bool = False) -> None:
        shown = printable(text)
        for one in [shown] if whole else terminal.broken(shown, console.width):
            console.print(Text(one, style), soft_wrap=True)

    for paragraph in verdicts(comparison):
        write(paragraph)
    for sheet in sheets(comparison, columns):
        write("")
        write(sheet.title, "bold")
        lines, left = fitted(sheet, console.width)
        for line in lines:
            pieces = [(text, "bold" if strong else "") for text, strong in line]
            console.print(Text.assemble(*pieces), soft_wrap=True)
        if left:
            write(not_shown(left, console.width), "dim")
    write("")
    for text in explanations(comparison, bold=True):
        write(text, "dim")
    for text in incomplete_lines(comparison):
        write(text, "dim", whole=True)  # it ends with a path


def fitted(sheet: Sheet, width: int) -> tuple[list[terminal.Line], list[TextColumn]]:
    """The lines of a sheet in a width, and the columns that left.

    Where the user chose the columns, further tables show what the first has no room for.
    """
    columns = clean(sheet.columns)
    parts, left = terminal.fitted(columns, sheet.fixed, width, several=sheet.asked)
    tables = [terminal.lines(part, width) for part in parts]
    lines = tables[0] + [line for more in tables[1:] for line in [[], *more]]
    return lines, left


def not_shown(left: Sequence[TextColumn], width: int) -> str:
    """Which columns a terminal has no room for, and how to see them."""
    names = ", ".join(column.name or column.title for column in left)
    how = "--columns chooses" if left[0].name else "a wider terminal shows more"
    return f"not shown at a width of {width}: {names}; {how}"


def markdown(comparison: Comparison, columns: Names = None) -> str:
    """Tables as GitHub shows them, the best of each column in bold."""

    def escaped(text: str) -> str:
        marks = {"*": "\\*", "~": "\\~"}
        return marks.get(text, printable(text).replace("|", "\\|"))

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    blocks = []
    for sheet in sheets(comparison, columns):
        cells = [
            [
                f"**{escaped(text)}**" if strong else escaped(text)
                for text, strong in zip(c.cells, c.bold, strict=True)
            ]
            for c in sheet.columns
        ]
        rule = "|---" + "|---:" * (len(sheet.header) - 1) + "|"
        header = line([escaped(title) for title in sheet.header])
        rows = [line(row) for row in zip(*cells, strict=True)]
        blocks.append("\n".join([f"**{printable(sheet.title)}**", "", header, rule, *rows]))
    above = "\n\n".join(map(printable, verdicts(comparison)))
    notes = "\n".join(f"- {printable(text.strip())}" for text in remarks(comparison, bold=True))
    return "\n\n".join([above, *blocks, notes.replace("- * ", "- \\* ")])


def records(comparison: Comparison, columns: Names = None) -> list[dict[str, Any]]:
    """A row per group, as in comparison.csv; settings that differ have columns of their own."""
    keys = sorted({key for s in comparison.streams for g in s.groups for key in g.settings})
    stream_keys = sorted({key for s in comparison.streams for key in s.settings})
    everything = [comparison.question.metric, *compared()]
    groups = [g for s in comparison.streams for g in s.groups]
    special = {*formulas("edits"), *formulas("base")}  # of a benchmark of its own
    everything = [n for n in everything if n not in special or any(has(g, n) for g in groups)]
    names = list(dict.fromkeys(everything if columns is None else columns))
    rows = []
    for stream in comparison.streams:
        for g in stream.groups:
            row: dict[str, Any] = {
                "benchmark": stream.benchmark,
                "scenario": stream.scenario,
                "reading": stream.reading,
                "strategy": g.strategy,
                "settings": g.label.removeprefix(g.strategy).strip(),
                "n": len(g.runs),
                "incomplete": len(g.incomplete),
                "seeds": " ".join(map(str, g.runs)),
            }
            row |= {f"{key}": stream.settings.get(key) for key in stream_keys}
            row |= {key: g.settings.get(key) for key in keys}
            for name in names:
                if name == POSITION:
                    continue
                found = g.statistics(name)
                row |= {name: found["mean"], f"{name}_n": found["n"]}
                row |= {f"{name}_{key}": found[key] for key in ("sd", "low", "high")}
            row |= {POSITION: g.position} if POSITION in names else {}
            row |= {"distinguishable_from_best": g.distinguishable}
            row |= test_columns("best", g.versus_best) | test_columns("baseline", g.versus_baseline)
            rows.append(row)
    return rows


def test_columns(other: str, result: Paired | None) -> dict[str, Any]:
    """A paired test as columns."""
    names = ("n", "test", "difference", "p", "p_holm", "effect", "effect_name")
    return {f"vs_{other}_{k}": None if result is None else getattr(result, k) for k in names}


def csv_text(comparison: Comparison, columns: Names = None) -> str:
    """comparison.csv: what is not known is empty."""
    return files.csv_text(records(comparison, columns))


def json_text(comparison: Comparison, columns: Names = None) -> str:
    """All there is, as JSON."""
    overall = comparison.overall
    return json.dumps(
        {
            "question": asdict(comparison.question),
            "verdict": verdicts(comparison),
            "groups": records(comparison, columns),
            "over_streams": None if overall is None else asdict(overall),
            "incomplete": [
                {"status": run.row["status"], "run": run.name, "reason": reason(run)}
                for run in comparison.incomplete
            ],
            "notes": remarks(comparison),
        },
        indent=2,
        ensure_ascii=False,
    )
