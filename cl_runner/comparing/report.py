"""A comparison as one HTML page that needs nothing else: tables, pictures, commands, settings."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cl_runner.comparing import pictures, render
from cl_runner.comparing.advice import advice
from cl_runner.comparing.figures.canvas import Files, NoMatplotlib, image, styled
from cl_runner.comparing.render import Names, Sheet
from cl_runner.comparing.runs import Run
from cl_runner.comparing.table import Comparison, Group, StreamGroup
from cl_runner.comparing.terminal import printable_lines
from cl_runner.comparing.verdict import verdict
from cl_runner.errors import UserError, check
from cl_runner.machine.reading import read_text, yaml_values
from cl_runner.results import status
from cl_runner.results.names import CONFIG, OVERRIDES
from cl_runner.version import __version__

GENERATOR = '<meta name="generator" content="cl-compare'  # by which a page of ours is known
PAGE = Path(__file__).parent / "page"  # the template, its style and its script
SOFTWARE = {  # columns of a run's row, and what they are called
    "cl_runner_version": "cl_runner",
    "commit": "commit",
    "torch_version": "torch",
    "python_version": "Python",
}
MACHINE = {"used_device": "", "used_precision": "", "used_engine": "", "used_threads": "threads"}
Figures = Mapping[str, list[dict[str, str]]]  # by section


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


def page(
    comparison: Comparison, command: str, made: str, columns: Names = None
) -> tuple[str, str | None]:
    """The page, and why it has no pictures where it has none.

    command: the command line that asked for it, and made: when, both shown on the page. columns:
    as for `render.sheets`. Raises UserError for damaged files.
    """
    figures: dict[str, list[dict[str, str]]] = {}
    missing = None
    try:
        for section, figure in drawings(comparison):
            figures.setdefault(section, []).append(figure)
    except NoMatplotlib as error:
        missing = str(error)
    style, script = ((PAGE / f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable_lines(value) if type(value) is str else value,
    )
    anchors = identities(comparison)
    sheets = render.sheets(comparison, columns)
    text = environment.get_template("page.html.jinja").render(
        generator=GENERATOR,
        version=__version__,
        style=style,
        style_hash=content_hash(style),
        script=script,
        script_hash=content_hash(script),
        summary=summary(comparison),
        origins=origins(comparison, made),
        command=command,
        missing=missing,
        streams=[
            stream_part(stream, comparison, sheets, figures, anchors)
            for stream in comparison.streams
        ],
        overall=overall_part(comparison, sheets, figures),
        notes=render.rules(comparison),
        failed=[(r.row["status"], r.name, render.reason(r)) for r in comparison.incomplete],
    )
    return text, missing


def content_hash(text: str) -> str:
    """By which the page's Content-Security-Policy knows our own style and script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def summary(comparison: Comparison) -> str:
    """What was compared."""
    runs = sum(len(g.runs) for s in comparison.streams for g in s.groups)
    lost = len(comparison.incomplete)
    streams = len(comparison.streams)
    text = f"{runs} complete runs on {streams} stream{'s' if streams > 1 else ''}"
    text += f", {lost} that are not complete" if lost else ""
    return f"{text}, sorted by {comparison.question.metric}."


def origins(comparison: Comparison, made: str) -> list[tuple[str, str]]:
    """When, by which versions, and on which machines."""
    runs = [r for s in comparison.streams for g in s.groups for r in g.runs.values()]
    told = [status.read(run.folder) for run in runs]
    days = sorted({str(t["time"])[:10] for t in told if t.get("time")})
    hosts = sorted({str(t["host"]) for t in told if t.get("host")})

    def said(names: Mapping[str, str]) -> str:
        values = {n: sorted({v for run in runs if (v := run.row.get(n))}) for n in names}
        parts = [f"{names[n]} {' / '.join(v)}".strip() for n, v in values.items() if v]
        return ", ".join(parts)

    found = {
        "page": f"{made}, cl-compare {__version__}",
        "runs ended": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "software": said(SOFTWARE),
        "machine": ", ".join(filter(None, [*hosts, said(MACHINE)])),
    }
    return [(name, text) for name, text in found.items() if text]


def identities(comparison: Comparison) -> dict[int, str]:
    """An anchor for each row, by the identity of its group."""
    groups = [g for stream in comparison.streams for g in stream.groups]
    return {id(g): f"row-{n}" for n, g in enumerate(groups, 1)}


def stream_part(
    stream: StreamGroup,
    comparison: Comparison,
    sheets: Sequence[Sheet],
    figures: Figures,
    anchors: Mapping[int, str],
) -> dict[str, Any]:
    """What the template shows of a stream."""
    key = render.legend(stream.groups, comparison.question.metric, bold=True)
    own = [anchors[id(g)] for g in stream.groups]
    return {
        "title": stream.title,
        "verdict": verdict(stream) + advice(stream),
        "tables": [
            table(sheet, own, key) if sheet.kind == "quality" else table(sheet)
            for sheet in sheets
            if sheet.section == stream.title
        ],
        "figures": figures.get(stream.title, []),
        "rows": [origin(g, anchors[id(g)]) for g in stream.groups],
    }


def overall_part(
    comparison: Comparison, sheets: Sequence[Sheet], figures: Figures
) -> dict[str, Any] | None:
    """What the template shows of all streams together."""
    if comparison.overall is None:
        return None
    return {
        "title": f"Over the {comparison.overall.ranking.streams} streams",
        "tables": [table(sheet) for sheet in sheets if sheet.section == render.OVERALL],
        "figures": figures.get(render.OVERALL, []),
    }


# Tables.


def table(sheet: Sheet, anchors: Sequence[str] = (), key: Sequence[str] = ()) -> dict[str, Any]:
    """A sheet as the template shows it, sortable.

    anchors: where the rows' first cells link to. key: how to read the cells.
    """
    kinds = ["text", *(kind(c.cells) for c in sheet.columns[1:])]
    cells = [
        [
            {"text": text, "best": best, "value": value(text, k)}
            for text, best in zip(c.cells, c.bold, strict=True)
        ]
        for c, k in zip(sheet.columns, kinds, strict=True)
    ]
    rows = list(zip(*cells, strict=True))
    title = sheet.title.removeprefix(sheet.section).removeprefix(": ") or "what was reached"
    return {
        "kind": sheet.kind,
        "title": title[0].upper() + title[1:],
        "header": list(zip(sheet.header, kinds, strict=True)),
        "rows": list(zip(anchors or [""] * len(rows), rows, strict=True)),
        "key": key,
    }


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


def drawings(comparison: Comparison) -> Iterator[tuple[str, dict[str, str]]]:
    """Every picture without its title, with the section that it belongs to. Raises UserError."""
    with styled("drawing"):
        for section, name, draw in pictures.drawings(comparison):
            figure = draw(Files)
            lines = figure.get_suptitle().splitlines()
            content = image(figure, "svg", title=False)
            yield (
                section,
                {
                    "kind": "sweep" if name.startswith("sweep_") else name,
                    "title": lines[0],
                    "alt": ": ".join(lines),
                    "svg": base64.b64encode(content).decode(),
                },
            )


# Where a row comes from.


def origin(group: Group, anchor: str) -> dict[str, str]:
    """A group's command and its configuration."""
    runs = [*group.runs.values(), *group.incomplete]
    commands = "\n".join(commands_of(runs))
    settings, source = configuration(runs[0])
    return {
        "anchor": anchor,
        "name": group.name,
        "commands": commands or "not known: the runs' folders have no overrides.yaml any more",
        "configuration": settings,
        "source": source,
    }


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
        text = read_text(run.folder / CONFIG)
    except UserError:
        settings = run.configuration.items()
        lines = [f"{key}: {value or 'null'}" for key, value in settings]
        return "\n".join(lines), f"The configuration of {seed}, from {run.source.name}"
    return text.strip(), f"The configuration of {seed}, config.yaml"
