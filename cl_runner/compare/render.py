"""A comparison as text, CSV, Markdown, LaTeX or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from cl_runner import results, status
from cl_runner.compare.runs import COSTS, Run
from cl_runner.compare.statistics import FEW, LEVEL, Paired
from cl_runner.compare.table import PRICE, QUALITY, Comparison, Group, Overall, Stream

if TYPE_CHECKING:
    from rich.console import Console

# Marks in a table, explained below it.
MARKS = {"best": "*", "no": "~", "untested": "?", "too_few": "?", "yes": "", "bound": ""}
OVERALL = "all streams"  # stands for the title of a stream
SHORT = ("ACC", "forgetting")  # at the end of a sweep
UNITS = {"flops": "FLOPs", "bytes": "B"}  # what ends a cost's name, and what people call it
PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}
SIGNATURE = ("benchmark", "scenario", "reading", "strategy", "settings", "n")  # of comparison.csv
HUGE = 1e9  # counts from which on three digits say more than all
MANY = 60  # lines of incomplete runs that are still worth printing one by one


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table for people: cells as text, and which row is the best."""

    kind: str  # quality, price, tests, overall
    section: str  # the title of the stream, or OVERALL
    title: str
    header: list[str]
    rows: list[list[str]]
    bold: list[bool]


def sheets(comparison: Comparison) -> list[Sheet]:
    """The tables: for each stream what was reached, at what price, and how sure it is."""
    found = []
    for stream in comparison.streams:
        found += [
            quality_sheet(stream, comparison.question.metric),
            price_sheet(stream),
            *test_sheets(stream, comparison),
        ]
    if comparison.overall is not None:
        found.append(overall_sheet(comparison.overall, comparison.question.metric))
    return [sheet for sheet in found if sheet.rows]


def quality_sheet(stream: Stream, metric: str) -> Sheet:
    """The metrics, mean and half of the 95 % interval."""
    names = [
        n for n in dict.fromkeys([metric, *QUALITY]) if any(g.values[n] for g in stream.groups)
    ]
    positions = any(g.position is not None for g in stream.groups)
    failures = any(g.incomplete for g in stream.groups)
    header = ["strategy", "", "n", *(["incomplete"] if failures else [])]
    columns = [column(name, stream.groups) for name in names]
    header += [title for title, _ in columns]
    rows = []
    for i, g in enumerate(stream.groups):
        mark = MARKS[g.distinguishable] if g.runs else ""
        lost = [str(len(g.incomplete) or "")] if failures else []
        cells = [g.label, mark, str(len(g.runs)), *lost, *(cells[i] for _, cells in columns)]
        rows.append([*cells, *([number(g.position, 2)] if positions else [])])
    header += ["position"] if positions else []
    bold = [g.best for g in stream.groups]
    return Sheet(
        kind="quality",
        section=stream.title,
        title=stream.title,
        header=header,
        rows=rows,
        bold=bold,
    )


def price_sheet(stream: Stream) -> Sheet:
    """The means of what was paid."""
    names = [n for n in PRICE if any(g.values[n] for g in stream.groups)]
    groups = [g for g in stream.groups if g.runs]
    columns = [column(name, groups) for name in names]
    rows = [[g.label, *(cells[i] for _, cells in columns)] for i, g in enumerate(groups)]
    header = ["strategy", *(title for title, _ in columns)]
    bold = [g.best for g in groups]
    title = f"{stream.title}: mean costs of a run"
    return Sheet(
        kind="price", section=stream.title, title=title, header=header, rows=rows, bold=bold
    )


def test_sheets(stream: Stream, comparison: Comparison) -> list[Sheet]:
    """Paired tests against the best and against the baseline."""
    best = next((g.label for g in stream.groups if g.best), "")
    families = [("the best", best, [(g, g.versus_best) for g in stream.groups])]
    if comparison.question.baseline:
        base = comparison.question.baseline
        families.append(("the baseline", base, [(g, g.versus_baseline) for g in stream.groups]))
    header = ["strategy", "shared seeds", "gain", "test", "p", "p (Holm)", "effect"]
    found = []
    for what, other, pairs in families:
        tested = [(g, result) for g, result in pairs if result is not None]
        rows = [[g.label, *test_cells(result)] for g, result in tested]
        title = f"{stream.title}: {comparison.question.metric} against {what}, {other}"
        bold = [False] * len(rows)
        found.append(
            Sheet(
                kind="tests", section=stream.title, title=title, header=header, rows=rows, bold=bold
            )
        )
    return found


def test_cells(result: Paired) -> list[str]:
    """A test's row; the gain is positive where the strategy is better than what it is tested on."""
    effect = "" if result.effect is None else f"{result.effect_name} {result.effect:.2f}"
    gain = "-" if result.difference is None else f"{result.difference:+.4f}"
    values = [p_value(result.p), p_value(result.p_holm)]
    return [str(result.n), gain, result.test, *values, effect or "-"]


def overall_sheet(overall: Overall, metric: str) -> Sheet:
    """Ranks and aggregates over the streams."""
    against = next((m.against for m in overall.methods if m.against), "")
    header = ["strategy", "average rank", "interquartile mean", "95 % interval"]
    header += [f"P(better than {against})", "95 % interval"]
    rows = []
    for m in overall.methods:
        cells = [m.label, f"{m.rank:.2f}", number(m.iqm, 4), between(m.iqm_interval)]
        rows.append([*cells, number(m.improvement, 2), between(m.improvement_interval, 2)])
    ranking = overall.ranking
    friedman = f"Friedman p = {p_value(ranking.friedman_p)}, " if ranking.friedman_p else ""
    title = (
        f"{metric} over {ranking.streams} streams: {friedman}average ranks differ from "
        f"{ranking.critical_difference:.2f} on (Nemenyi)"
    )
    best = min(m.rank for m in overall.methods)
    bold = [m.rank == best for m in overall.methods]
    return Sheet(kind="overall", section=OVERALL, title=title, header=header, rows=rows, bold=bold)


def remarks(comparison: Comparison) -> list[str]:
    """What stands below the tables."""
    return explanations(comparison) + incomplete_lines(comparison)


def explanations(comparison: Comparison) -> list[str]:
    """The marks, the rules, and what the reader should know."""
    question, groups = comparison.question, [g for s in comparison.streams for g in s.groups]
    marks = {g.distinguishable for g in groups if g.runs}
    interval = "mean ± half of the 95 % interval (Student's t) over n seeds"
    lines = [f"{interval}; the best {question.metric} is in bold or marked *"]
    if "bound" in marks:
        lines.append("joint and cumulative are bounds: never the best, tested or ranked")
    if "no" in marks:
        lines.append(f"~ not distinguishable from the best (paired test, Holm, p >= {LEVEL})")
    if marks & {"untested", "too_few"}:
        lines.append("? no test could tell it from the best; notes and the table of tests say why")
    if any(g.position is not None for g in groups):
        lines.append("position: 0 is naive, 1 is joint, over the seeds that all three share")
    ranking = None if comparison.overall is None else comparison.overall.ranking
    if ranking is not None and ranking.critical_difference > len(ranking.ranks) - 1:
        few_streams = f"{ranking.streams} streams are too few for"
        lines.append(f"{few_streams} average ranks of {len(ranking.ranks)} methods to differ")
    if comparison.overall is not None and comparison.overall.fewest < FEW:
        few_runs = f"few seeds ({comparison.overall.fewest}, at least {FEW} are wanted)"
        lines.append(f"{few_runs}: the bootstrap intervals over the streams are too narrow")
    if comparison.overall is not None and comparison.overall.left_out:
        names = ", ".join(comparison.overall.left_out)
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


def column(name: str, groups: Sequence[Group]) -> tuple[str, list[str]]:
    """The title of a metric or cost and its cells; FLOPs and bytes in a unit for all of them."""
    if name not in COSTS:
        return name.replace("_", " "), [with_half(g, name) for g in groups]
    means = [g.mean(name) for g in groups]
    *words, last = name.split("_")
    size = 1.0
    if last in UNITS:
        largest = max(m for m in means if m is not None)
        size = next((s for s in PREFIXES if largest >= s), 1.0)
        last = PREFIXES.get(size, "") + UNITS[last]
    whole = size == 1 and last != "seconds"
    cells = ["-" if m is None else amount(m / size, whole=whole) for m in means]
    return " ".join([*words, last]), cells


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


def between(interval: tuple[float, float] | None, digits: int = 4) -> str:
    """Low .. high."""
    return "-" if interval is None else " .. ".join(number(v, digits) for v in interval)


# Formats.


def plain(comparison: Comparison) -> str:
    """Aligned text without any control characters."""
    blocks = [aligned(sheet.title, [sheet.header, *sheet.rows]) for sheet in sheets(comparison)]
    return "\n\n".join([*blocks, "\n".join(remarks(comparison))])


def aligned(title: str, cells: Sequence[Sequence[str]]) -> str:
    """A table in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([title, *lines])


def short(comparison: Comparison) -> str:
    """What the end of a sweep shows: ACC and forgetting of each group, and what is missing."""
    blocks = []
    for stream in comparison.streams:
        names = [n for n in SHORT if any(g.values[n] for g in stream.groups)]
        lost = any(g.incomplete for g in stream.groups)
        header = ["strategy", "n", *(["incomplete"] if lost else []), *names]
        rows = []
        for g in stream.groups:
            counts = [str(len(g.runs)), *([str(len(g.incomplete) or "")] if lost else [])]
            rows.append([g.label, *counts, *(with_half(g, n) for n in names)])
        blocks.append(aligned(stream.title, [header, *rows]))
    explained = "mean ± half of the 95 % interval (Student's t) over n seeds"
    return "\n\n".join([*blocks, explained])


def print_rich(comparison: Comparison, console: Console) -> None:
    """Tables on a terminal: the best in bold, long cells folded to its width."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for sheet in sheets(comparison):
        table = Table(title=Text(sheet.title, style="bold"), box=SIMPLE_HEAD, title_justify="left")
        for i, name in enumerate(sheet.header):
            # Two names may be equal: a column has no identity but its place.
            width = max(map(len, name.split()), default=0)  # fold between words, not in them
            side: Literal["left", "right"] = "left" if i == 0 else "right"
            table.add_column(Text(name), justify=side, overflow="fold", min_width=width)
        for row, bold in zip(sheet.rows, sheet.bold, strict=True):
            table.add_row(*map(Text, row), style="bold" if bold else "")
        console.print(table, highlight=False)
    for line in remarks(comparison):
        console.print(Text(line, style="dim"))


def markdown(comparison: Comparison) -> str:
    """Tables as GitHub shows them, the best row in bold."""
    backslash = "\\"

    def line(cells: Sequence[str]) -> str:
        marks = {"*": "\\*", "~": "\\~"}
        return f"| {' | '.join(marks.get(c, c.replace('|', backslash + '|')) for c in cells)} |"

    blocks = []
    for sheet in sheets(comparison):
        rows = [
            [f"**{cell}**" if bold and cell not in {"", "*", "-"} else cell for cell in row]
            for row, bold in zip(sheet.rows, sheet.bold, strict=True)
        ]
        rule = "|---" + "|---:" * (len(sheet.header) - 1) + "|"
        blocks.append(
            "\n".join([f"**{sheet.title}**", "", line(sheet.header), rule, *map(line, rows)])
        )
    notes = "\n".join(f"- {text.strip()}" for text in remarks(comparison))
    return "\n\n".join([*blocks, notes.replace("marked *", "marked \\*")])


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "<": "$<$",
    ">": "$>$",
}


def latex(comparison: Comparison) -> str:
    """Tables for the package booktabs, the best row in bold."""

    def escaped(text: str) -> str:
        return "".join(LATEX.get(character, character) for character in text)

    blocks = []
    for sheet in sheets(comparison):
        rows = [
            " & ".join(f"\\textbf{{{escaped(c)}}}" if bold and c else escaped(c) for c in row)
            for row, bold in zip(sheet.rows, sheet.bold, strict=True)
        ]
        header = " & ".join(map(escaped, sheet.header))
        lines = [
            f"% {sheet.title}",
            f"\\begin{{tabular}}{{l{'r' * (len(sheet.header) - 1)}}}",
            "\\toprule",
            f"{header} \\\\",
            "\\midrule",
            *(f"{row} \\\\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, "\n".join(f"% {line}" for line in remarks(comparison))])


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per group, as in comparison.csv; settings that differ have columns of their own."""
    keys = sorted({key for s in comparison.streams for g in s.groups for key in g.settings})
    stream_keys = sorted({key for s in comparison.streams for key in s.settings})
    metrics = list(dict.fromkeys([comparison.question.metric, *QUALITY, *PRICE]))
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
            for name in metrics:
                found = g.statistics(name)
                row |= {name: found["mean"], f"{name}_n": found["n"]}
                row |= {f"{name}_{key}": found[key] for key in ("sd", "low", "high")}
            row |= {"position": g.position, "distinguishable_from_best": g.distinguishable}
            row |= test_columns("best", g.versus_best) | test_columns("baseline", g.versus_baseline)
            rows.append(row)
    return rows


def test_columns(other: str, result: Paired | None) -> dict[str, Any]:
    """A paired test as columns."""
    names = ("n", "test", "difference", "p", "p_holm", "effect", "effect_name")
    return {f"vs_{other}_{k}": None if result is None else getattr(result, k) for k in names}


def csv_text(comparison: Comparison) -> str:
    """comparison.csv: what is not known is empty."""
    return results.csv_text(records(comparison))


def json_text(comparison: Comparison) -> str:
    """All there is, as JSON."""
    overall = comparison.overall
    return json.dumps(
        {
            "question": asdict(comparison.question),
            "groups": records(comparison),
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


FORMATS = {"csv": csv_text, "markdown": markdown, "latex": latex, "json": json_text}
