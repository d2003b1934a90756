"""`cl.compare`: which strategy, how surely, and at what price, as tables, text and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cl_runner.api import html
from cl_runner.api.runs import Run, Runs, load_runs
from cl_runner.comparing import latex, pictures, render, report
from cl_runner.comparing.figures.canvas import styled
from cl_runner.comparing.runs import counted_once, version_notes
from cl_runner.comparing.statistics import Paired
from cl_runner.comparing.table import Comparison as Compared
from cl_runner.comparing.table import (
    Group,
    Question,
    StreamGroup,
    columns_asked_for,
    compare_runs,
    told_apart,
)
from cl_runner.errors import UserError, check
from cl_runner.results.files import write_text

if TYPE_CHECKING:
    import pandas as pd

Source: TypeAlias = "str | Path | Run | Runs"
# What the command's messages say, and what that is called here.
CALLED = {
    "--metric ": "metrics=",
    "--columns ": "metrics=",
    "--baseline ": "baseline=",
    "--by ": "by=",
    "--html ": "path=",
    "--by": "by",
    "--where": "Runs.where",
}


@dataclass(frozen=True, repr=False)
class Comparison:
    """The answer of `cl.compare`."""

    _found: Compared
    _columns: Sequence[str] | None  # those that were asked for; None: the usual ones

    @property
    def verdict(self) -> str:
        """Two sentences a stream: who is best and how surely, and what that costs."""
        return "\n\n".join(render.verdicts(self._found))

    @property
    def notes(self) -> list[str]:
        """What to know before the numbers are read."""
        return list(self._found.notes)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each strategy and setting on each stream, the best first.

        Of each metric and cost the mean over `n` runs, and in further columns `_sd`, `_low` and
        `_high`, the ends of the 95 % interval (Student's t); `_n` where fewer runs have measured
        it. These are the columns of comparison.csv, without the tests, and without empty ones.
        """
        import pandas as pd

        tests = ("vs_best_", "vs_baseline_")
        records = render.records(self._found, self._columns)
        rows = [{k: v for k, v in row.items() if not k.startswith(tests)} for row in records]
        counts = [row["n"] for row in rows]
        empty = {name for name in rows[0] if all(row[name] in (None, "") for row in rows)}
        empty |= {f"{name}_n" for name in empty}
        empty |= {n for n in rows[0] if n.endswith("_n") and [row[n] for row in rows] == counts}
        return pd.DataFrame(rows).drop(columns=[name for name in rows[0] if name in empty])

    @property
    def tests(self) -> pd.DataFrame:
        """A row for each paired test: whom against whom, difference, p, p by Holm, Cohen's d.

        The difference is positive where the strategy is better than what it is tested against.
        """
        import pandas as pd

        names = ("n", "test", "difference", "p", "p_holm", "effect")
        head = ("stream", "strategy", "against", "other", *names, "outcome")
        rows = []
        for stream in self._found.streams:
            for which, pairs in families(stream).items():
                other = reference(stream, self._found.question, which)
                for group, result in pairs:
                    told = [getattr(result, name) for name in names]
                    rows.append([stream.title, group.name, which, other, *told, told_apart(result)])
        return pd.DataFrame(rows, columns=head)

    @property
    def figures(self) -> list[str]:
        """The names of the pictures that the runs have the files for; `figure` draws one."""
        return list(dict.fromkeys(kind for _, kind, _ in pictures.drawings(self._found)))

    def figure(self, name: str, ax: Any = None, *, stream: str | None = None) -> Any:
        """Draw a picture, and give back its axes: one, or an array of them.

        Args:
            name: one of `figures`.
            ax: axes of yours to draw into, of a picture that has one panel; their title is yours to
                say. None: a new figure of pyplot, which a notebook shows. Save it with
                `bbox_inches="tight"`, since its legend stands beside the axes.
            stream: of runs on several streams, whose title.

        Raises UserError for a picture that is not there, and where matplotlib is not.
        """
        there = [
            (title, draw) for title, kind, draw in pictures.drawings(self._found) if kind == name
        ]
        known = f"known are {', '.join(self.figures)}"
        check(bool(there), f"there is no figure {name}; {known}")
        titles = [title for title, _ in there]
        if stream is not None:
            there = [(title, draw) for title, draw in there if title == stream]
        several = f"{name} is drawn of each stream: choose stream= one of {'; '.join(titles)}"
        check(len(there) == 1, several)
        with styled(f"figure({name!r})"):
            from matplotlib import interactive, is_interactive

            axes, shown = axes_of(there[0][1], name, ax), is_interactive()
        interactive(shown)  # as pyplot's first figure has set it: a notebook shows figures by it
        return axes

    def to_latex(self) -> str:
        """Tables for a paper, with the packages booktabs and siunitx."""
        return latex.latex(self._found, self._columns)

    def to_html(self, path: str | Path) -> Path:
        """Write the page that `cl-compare --html` writes; its path.

        Raises UserError for a file that is there and is no such page.
        """
        path = Path(path).expanduser()
        with in_python():
            report.check_page(path)
        made = time.strftime("%Y-%m-%d %H:%M %z")
        text, _ = report.page(self._found, "cl.compare(...)", made, self._columns)
        write_text(path, text)
        return path

    def __repr__(self) -> str:
        return render.short(self._found)

    def _repr_html_(self) -> str:
        parts = []
        for sheet in render.sheets(self._found, self._columns):
            bold = list(zip(*(column.bold for column in sheet.columns), strict=True))
            parts += [sheet.title, html.plain(sheet.header, sheet.rows, bold)]
        said, below = render.verdicts(self._found), render.remarks(self._found, bold=True)
        return html.block("", *said, *parts, *below)


def compare(
    runs: Source | Iterable[Source],
    *,
    baseline: str | None = None,
    metrics: str | Sequence[str] = "ACC",
    reading: str | None = None,
    by: Sequence[str] | None = None,
) -> Comparison:
    """Compare runs by strategy and setting, averaged over their seeds, with paired tests.

    Args:
        runs: what `cl.run`, `cl.sweep` and `cl.load_runs` give, folders, or several of them.
        baseline: a strategy that the others are tested against, besides the best one.
        metrics: what to sort and test by, any metric or cost; of several the first one, and all of
            them are the columns of the tables.
        reading: read the test data as this scenario: task, domain or class.
        by: group by these settings instead of all that differ.

    Raises UserError for a question that the runs cannot answer, and for damaged files.
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    check(bool(names), "metrics=[] asks for nothing")
    question = Question(
        metric=names[0], reading=reading, by=None if by is None else tuple(by), baseline=baseline
    )
    several = [runs] if isinstance(runs, str | Path | Run | Runs) else list(runs)
    there: dict[Path, Run] = {}
    for one in several:
        found = [one] if isinstance(one, Run) else one if isinstance(one, Runs) else load_runs(one)
        there |= {run.folder: run for run in found}
    check(bool(there), "there are no runs to compare")
    with in_python():
        once, notes = counted_once([run._found for run in there.values()])
        comparison = compare_runs(once, question)
        comparison.notes += notes + version_notes([run for run in once if run.complete])
        listed = None if isinstance(metrics, str) else ",".join(names)
        return Comparison(comparison, columns_asked_for(listed, comparison))


@contextmanager
def in_python() -> Iterator[None]:
    """The command's messages with the names that its options have here."""
    try:
        yield
    except UserError as error:
        line = str(error)
        for option, name in CALLED.items():
            line = line.replace(option, name)
        raise UserError(line) from None


# Tests.


def families(stream: StreamGroup) -> Mapping[str, list[tuple[Group, Paired]]]:
    """The tests against the best, and against the baseline."""
    groups = stream.groups
    return {
        "best": [(g, g.versus_best) for g in groups if g.versus_best is not None],
        "baseline": [(g, g.versus_baseline) for g in groups if g.versus_baseline is not None],
    }


def reference(stream: StreamGroup, question: Question, which: str) -> str:
    """Whom the tests of a family are against."""
    if which == "baseline":
        return question.baseline or ""
    return next((group.name for group in stream.groups if group.best), "")


# Pictures.


def axes_of(draw: Callable[[Any], Any], name: str, ax: Any) -> Any:
    """Draw into axes, or into a new figure of pyplot; the axes. Raises UserError."""
    if ax is not None:
        draw(Within(ax, name))
        return ax
    import matplotlib.pyplot as plt

    figure = draw(plt)
    axes = [one for one in figure.axes if one.axison and one.get_label() != "<colorbar>"]
    if len(axes) == 1:
        return axes[0]
    import numpy as np

    return np.array(axes, dtype=object)


class Within:
    """What stands for pyplot where a picture is drawn into axes that are there."""

    def __init__(self, ax: Any, name: str) -> None:
        self._ax, self._name = ax, name

    def subplots(self, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
        """Those axes, if one panel is all that is needed. Raises UserError."""
        single = rows * columns == 1
        check(single, f"the figure {self._name} has {rows * columns} panels: leave ax=... away")
        import numpy as np

        grid = np.array([[self._ax]], dtype=object)
        return Panel(self._ax), self._ax if options.get("squeeze", True) else grid


class Panel:
    """What stands for the figure there: its legend is the axes', its title is the caller's."""

    def __init__(self, ax: Any) -> None:
        self._ax, self.axes = ax, [ax]

    def suptitle(self, text: str, **_: Any) -> None:
        """None: what is shown is for the caller to say."""

    def legend(self, handles: Any, labels: Any, **_: Any) -> None:
        """A legend on the axes."""
        self._ax.legend(handles, labels, fontsize=8)

    def colorbar(self, image: Any, **options: Any) -> None:
        """A scale beside the axes."""
        self._ax.figure.colorbar(image, **(options | {"ax": self._ax}))

    def supylabel(self, text: str, **_: Any) -> None:
        """The label of the axes."""
        self._ax.set_ylabel(text)
