"""A comparison as one HTML page that needs nothing else: tables, pictures, commands, settings."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from cl_runner import __version__
from cl_runner.compare import pictures, render
from cl_runner.compare.render import Sheet
from cl_runner.compare.runs import OVERRIDES, Run
from cl_runner.compare.table import Comparison, Group
from cl_runner.errors import UserError, check
from cl_runner.reading import read_text, yaml_values

GENERATOR = '<meta name="generator" content="cl-compare'  # by which a page of ours is known
PAPERS = "https://arxiv.org/abs/"  # the only addresses on the page
INTERVALS = (
    "<p>Every interval is the 95 % interval of the mean over the seeds (Student's t), unless the "
    "text says otherwise.</p>"
)
TABLES = {  # how to read each kind of table
    "quality": "One row per strategy and setting, the best first; accuracies are fractions. More "
    "is better, but less of forgetting, intransigence, NLL, Brier score and ECE.",
    "price": "What one run took and kept, averaged over the seeds. Less is cheaper; times and peak "
    "memory depend on the machine. FLOPs are floating-point operations, of training unless they "
    "are said to be of evaluation.",
    "tests": "Does the row differ from the one it is tested against by more than luck? The gain is "
    "positive where the row is better. Below 0.05, p (Holm) says that it does; the effect says by "
    "how much, in units of the spread between seeds.",
    "overall": "All strategies that every stream has. Rank 1 is the best; the interquartile mean "
    "is that of the middle half of all runs; P is the chance that a run of the row beats a run of "
    'the other (<a href="{papers}2108.13264">Agarwal et al. 2021</a>).',
}
PICTURES = {  # how to read each kind of picture
    "matrices": "Row i, column j: the accuracy on task j after training on task i. The diagonal is "
    "what was just learned; a column that darkens downwards is a task being forgotten.",
    "tasks": "Each panel is one task, followed while the later ones are learned: a line that falls "
    "is forgetting.",
    "steps": "Each panel is one task, followed while it and the later ones are trained; dotted "
    "lines stand between the tasks. A line that dips where a task begins, and recovers, is the "
    'stability gap (<a href="{papers}2205.13452">De Lange et al. 2023</a>).',
    "confusion": "Row i, column j: the share of the samples of class i that were taken for class "
    "j. The diagonal is right; a column that is bright below and above it is a class that is "
    "preferred, often of the last task. Classes are the network's outputs; if tasks have classes "
    "of their own, those of the first task come first.",
    "average_accuracy": "The mean accuracy on all tasks learned so far. The last point is ACC.",
    "sweep": "How much the setting matters, and which value is best. Choose it by the metrics of "
    "validation data, not by these.",
    "forgetting": "The accuracy that was lost since each task was known best. Shorter is better.",
    "stability_plasticity": "Up: learns new tasks well. Left: keeps the old ones. The dashed line "
    "joins those that no other beats in both.",
    "memory": "What accuracy costs in memory. The dashed line joins those that no other beats in "
    "both.",
    "compute": "What accuracy costs in computation. The dashed line joins the strategies that no "
    "other beats in both; the bounds stand apart.",
    "profiles": "The share of runs at least as good as a threshold; a curve that lies above "
    'another is better everywhere (<a href="{papers}2108.13264">Agarwal et al. 2021</a>).',
    "fisher_overlap": "Do two tasks need the same weights of a layer? 1: exactly the same, 0: none "
    '(<a href="{papers}1612.00796">Kirkpatrick et al. 2017</a>).',
}
STYLE = """\
:root { color-scheme: light; }
body { color: #1a1a1a; background: #fff; font: 16px/1.5 system-ui, sans-serif;
  max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.25; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; border-top: 2px solid #444; padding-top: 1rem; }
h3 { font-size: 1.05rem; margin-bottom: .25rem; }
p { max-width: 48rem; margin: .25rem 0 .75rem; }
a { color: #0b4f8a; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #ccc; }
td { white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
.words td { white-space: normal; vertical-align: top; }
.words td:last-child, li { overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #444; vertical-align: bottom; }
tr.best td { font-weight: bold; background: #eef4fa; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; text-align: inherit; }
th button::after { content: "\\a0\\2195"; color: #666; }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; color: inherit; }
figure { margin: 0 0 1.5rem; }
img { max-width: 100%; height: auto; }
details { margin: .25rem 0; }
summary { cursor: pointer; }
pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { white-space: normal; padding: .15rem .3rem; }
  figure, tr, pre { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  th button::after { content: none; }
}
"""
SCRIPT = """\
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    if (!header.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") === "descending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => header.dataset.kind === "number"
        ? key(a) - key(b) : key(a).localeCompare(key(b), "en", { numeric: true });
      // What is not known stays at the end, whichever way.
      const missing = (row) => key(row) === "";
      const rows = [...body.rows].sort((a, b) =>
        missing(a) - missing(b) || (missing(a) ? 0 : up ? compare(a, b) : compare(b, a)));
      body.append(...rows);
    });
  });
}
"""


def check_page(path: Path) -> None:
    """Only a page of ours, or no file at all, may be where the new one goes."""
    check(path.absolute().parent.is_dir(), f"--html {path}: there is no folder {path.parent}")
    check(not path.is_dir(), f"--html {path} is a folder; give a file's name")
    if path.exists():
        check(path.is_file(), f"--html {path} is no regular file; choose another name")
        try:
            with path.open(encoding="utf-8") as file:
                ours = GENERATOR in file.read(1000)
        except (OSError, ValueError):
            ours = False
        check(ours, f"--html {path} exists and is no page of cl-compare; choose another name")


def page(comparison: Comparison, command: str) -> tuple[str, str | None]:
    """The page, and why it has no pictures where it has none.

    command: the command line that asked for it, shown on the page. The same runs give the same
    page. Raises UserError for damaged files.
    """
    try:
        drawn, missing = list(drawings(comparison)), None
    except pictures.NoMatplotlib as error:
        drawn, missing = [], str(error)
    parts = [introduction(comparison, command, missing)]
    tables = groupby(render.sheets(comparison), key=lambda sheet: sheet.section)
    sheets = {section: list(found) for section, found in tables}
    rows = identities(comparison)
    for i, stream in enumerate(comparison.streams):
        parts.append(f"<h2>{escape(stream.title)}</h2>")
        parts += [
            table(sheet, rows if sheet.kind == "quality" else {}, i)
            for sheet in sheets.get(stream.title, [])
        ]
        parts += [figure for section, figure in drawn if section == stream.title]
        parts.append("<h3>Commands and configurations</h3>")
        parts.append("<p>What made each row, to paste into a shell, and all of its settings.</p>")
        parts += [origin(g, rows[i, g.label]) for g in stream.groups]
    if comparison.overall is not None:
        parts.append(f"<h2>Over the {comparison.overall.ranking.streams} streams</h2>")
        parts += [table(sheet, {}, -1) for sheet in sheets.get(render.OVERALL, [])]
        parts += [figure for section, figure in drawn if section == render.OVERALL]
    parts += [notes(comparison), *failed(comparison.incomplete)]
    return whole("\n".join(parts)), missing


def whole(body: str) -> str:
    """The HTML document around its body."""
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{GENERATOR} {__version__}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Continual learning: a comparison of strategies</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
</head>
<body>
{body}
<script>
{SCRIPT}</script>
</body>
</html>
"""


def introduction(comparison: Comparison, command: str, missing: str | None) -> str:
    """What was compared, and where on the page it is."""
    runs = sum(len(g.runs) for s in comparison.streams for g in s.groups)
    lost = len(comparison.incomplete)
    streams = len(comparison.streams)
    text = f"{runs} complete runs on {streams} stream{'s' if streams > 1 else ''}"
    text += f", {lost} that are not complete" if lost else ""
    lines = [
        "<h1>Continual learning: a comparison of strategies</h1>",
        f"<p>{text}, sorted by {escape(comparison.question.metric)}.</p>",
        INTERVALS,
        f"<pre><code>{escape(command)}</code></pre>",
    ]
    if missing is not None:
        lines.append(f"<p>No pictures: {escape(missing)}</p>")
    return "\n".join(lines)


def identities(comparison: Comparison) -> dict[tuple[int, str], str]:
    """An anchor for each row, by stream and label."""
    pairs = [(i, g.label) for i, stream in enumerate(comparison.streams) for g in stream.groups]
    return {pair: f"row-{n}" for n, pair in enumerate(pairs, 1)}


# Tables.


def table(sheet: Sheet, rows: Mapping[tuple[int, str], str], stream: int) -> str:
    """A sheet as a table that can be sorted; its first column links to where a row comes from."""
    columns = list(zip(*sheet.rows, strict=True))
    kinds = ["text", *(kind(column) for column in columns[1:])]
    header = "".join(
        f'<th scope="col" data-kind="{k}">{escape(name)}</th>'
        for k, name in zip(kinds, sheet.header, strict=True)
    )
    lines = []
    for cells, best in zip(sheet.rows, sheet.bold, strict=True):
        anchor = rows.get((stream, cells[0]))
        first = escape(cells[0])
        texts = [f'<a href="#{anchor}">{first}</a>' if anchor else first, *map(escape, cells[1:])]
        values = [escape(value(c, k), quote=True) for c, k in zip(cells, kinds, strict=True)]
        inner = "".join(
            f'<td data-value="{v}">{text}</td>' for v, text in zip(values, texts, strict=True)
        )
        lines.append(f"<tr{' class=best' if best else ''}>{inner}</tr>")
    about = TABLES[sheet.kind].format(papers=PAPERS)
    title = sheet.title.removeprefix(sheet.section).removeprefix(": ") or "what was reached"
    return (
        f"<h3>{escape(title[0].upper() + title[1:])}</h3>\n<p>{about}</p>\n"
        f'<div class="scroll" tabindex="0"><table class="sortable">\n<thead><tr>{header}</tr>'
        "</thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table></div>"
    )


NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(e[-+]?\d+)?")
EMPTY = {"", "-"}


def kind(column: Sequence[str]) -> str:
    """Whether a column is sorted as numbers: every cell that is not empty begins with one."""
    cells = [cell for cell in column if cell not in EMPTY]
    numbers = all(NUMBER.match(c.removeprefix("< ")) for c in cells)
    return "number" if cells and numbers else "text"


def value(cell: str, of: str) -> str:
    """What a cell is sorted by; "" where it is empty."""
    if cell in EMPTY or of == "text":
        return "" if cell in EMPTY else cell
    found = NUMBER.match(cell.removeprefix("< "))
    assert found is not None, "kind() has seen to that"
    number = float(found[0].replace(",", ""))
    # Less than 0.001 comes before 0.001.
    return repr(number / 2 if cell.startswith("< ") else number)


# Pictures.


def drawings(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Every picture as HTML, with the section that it belongs to. Raises UserError."""
    with pictures.pyplot("--html with pictures") as plt:
        for section, name, figure in pictures.figures(comparison, plt):
            lines = figure.get_suptitle().splitlines()
            content = base64.b64encode(pictures.image(figure, "svg")).decode()
            group = "sweep" if name.startswith("sweep_") else name
            about = PICTURES[group].format(papers=PAPERS)
            yield (
                section,
                (
                    f"<h3>{escape(lines[0])}</h3>\n<p>{about}</p>\n"
                    f'<figure><img alt="{escape(": ".join(lines))}" '
                    f'src="data:image/svg+xml;base64,{content}"></figure>'
                ),
            )


# Where a row comes from.


def origin(group: Group, anchor: str) -> str:
    """A group's command and its configuration, folded."""
    runs = [*group.runs.values(), *group.incomplete]
    commands = commands_of(runs)
    text = "\n".join(commands) or "not known: the runs' folders have no overrides.yaml any more"
    settings, source = configuration(runs[0])
    return (
        f'<details id="{anchor}"><summary>{escape(group.label)}</summary>\n'
        f"<pre><code>{escape(text)}</code></pre>\n<p>{escape(source)}:</p>\n"
        f"<pre><code>{escape(settings)}</code></pre></details>"
    )


def commands_of(runs: Sequence[Run]) -> list[str]:
    """The commands that repeat runs: one where they differ in their seed alone."""
    found: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        overrides = overrides_of(run)
        if overrides is None:
            continue
        seeds = [o.partition("=")[2] for o in overrides if o.startswith("seed=")]
        rest = tuple(o for o in overrides if not o.startswith("seed="))
        found.setdefault(rest, []).extend(seeds)
    commands = []
    for rest, seeds in found.items():
        flags = ["-m"] if len(seeds) > 1 else []
        last = [f"seed={','.join(seeds)}"] if seeds else []
        commands.append(shlex.join(["cl-run", *flags, *rest, *last]))
    return commands


def overrides_of(run: Run) -> list[str] | None:
    """What a run's command line said; None where no file says it."""
    try:
        found = yaml_values(run.folder / OVERRIDES)
    except UserError:
        return None
    return [str(override) for override in found] if isinstance(found, list) else None


def configuration(run: Run) -> tuple[str, str]:
    """A run's resolved configuration as YAML, and where that was read."""
    seed = f"seed {run.row['seed']}" if run.row.get("seed") else "the run"
    try:
        text = read_text(run.folder / "config.yaml")
    except UserError:
        settings = run.configuration.items()
        lines = [f"{key}: {value or 'null'}" for key, value in settings]
        return "\n".join(lines), f"The configuration of {seed}, from {run.source.name}"
    return text.strip(), f"The configuration of {seed}, config.yaml"


# The end.


def notes(comparison: Comparison) -> str:
    """What the terminal says below the tables, without the list of runs that are not complete."""
    lines = render.explanations(comparison)
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>Notes</h2>\n<ul>\n{items}\n</ul>"


def failed(runs: Sequence[Run]) -> Iterator[str]:
    """The runs that are not averaged in, with their reasons."""
    if not runs:
        return
    yield "<h2>Runs that are not complete</h2>"
    yield "<p>They are not averaged in.</p>"
    lines = [
        "".join(f"<td>{escape(cell)}</td>" for cell in (r.row["status"], r.name, render.reason(r)))
        for r in runs
    ]
    header = "".join(f'<th scope="col">{name}</th>' for name in ("status", "run", "reason"))
    yield (
        f'<div class="scroll" tabindex="0"><table class="words">\n<thead><tr>{header}</tr></thead>'
        "\n<tbody>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</tbody></table></div>"
    )
