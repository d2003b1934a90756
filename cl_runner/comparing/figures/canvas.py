"""What all figures share: matplotlib, colours and names of the groups, titles, legends, axes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from cl_runner.comparing.table import BOUNDS, LOWER, Group, StreamGroup
from cl_runner.comparing.terminal import broken
from cl_runner.errors import UserError
from cl_runner.functional.metrics import Matrix
from cl_runner.results.seeds import interval
from cl_runner.results.text import shortened

# Okabe & Ito, and two of Tol's: safe for colour-blind readers; markers tell the groups apart in
# grey, too.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#E69F00", "#000000", "#999999", "#882255", "#AAAA00"),
)
MARKERS = "osD^vPX*<>"
SHOWN = len(COLOURS)  # groups in one picture
LONGEST = 16  # characters of a name at an axis
DECADES = 10  # the ratio of values from which on an axis is logarithmic
GroupMatrices = Sequence[tuple[Group, list[Matrix]]]  # of each group's runs
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # journals want fonts that can be read, not drawings of letters
    "svg.hashsalt": "cl_runner",
    "text.parse_math": False,  # a setting's value may contain dollars
}


class NoMatplotlib(UserError):
    """Pictures were asked for where matplotlib is not installed."""


@contextmanager
def styled(wanted: str) -> Iterator[None]:
    """The style of these pictures, inside the block. Raises NoMatplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        message = f"{wanted} needs matplotlib: pip install 'cl_runner[plots]'"
        raise NoMatplotlib(message) from None
    with mpl.rc_context(STYLE):
        yield


class Files:
    """What pictures for files need of pyplot, without its windows and its backend."""

    @staticmethod
    def subplots(
        *shape: int, figsize: Any = None, layout: Any = None, **rest: Any
    ) -> tuple[Any, Any]:
        """A figure, and its axes."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=figsize, layout=layout)
        return figure, figure.subplots(*shape, **rest)


def image(figure: Any, suffix: str, *, title: bool = True) -> bytes:
    """A figure as the bytes of a file of this kind, the same for the same figure."""
    if not title:
        figure.suptitle("")
    file = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
    with warnings.catch_warnings():  # names may be of any script
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file, format=suffix, dpi=130, metadata=metadata, bbox_inches="tight")
    return file.getvalue()


def chosen(stream: StreamGroup) -> list[Group]:
    """The best groups, as many as can be told apart, and naive in any case."""
    groups = [g for g in stream.groups if g.runs]
    cut = [g for g in groups[SHOWN:] if g.strategy == LOWER][:1]
    return groups[: SHOWN - len(cut)] + cut


def label(group: Group) -> str:
    """The group and its number of seeds."""
    return f"{group.name} (n = {len(group.runs)})"


def look(group: Group, stream: StreamGroup) -> dict[str, Any]:
    """Colour and marker of a group: in all pictures the same, of all streams with these groups."""
    order = sorted(chosen(stream), key=lambda g: (g.strategy in BOUNDS, g.label))
    i = next(i for i, other in enumerate(order) if other is group)
    return {"color": COLOURS[i], "marker": MARKERS[i]}


def head(figure: Any, stream: StreamGroup, text: str, shown: int | None = None) -> None:
    """What is shown, and of which stream. shown: how many groups, unless all the chosen ones."""
    groups = sum(bool(g.runs) for g in stream.groups)
    shown = len(chosen(stream)) if shown is None else shown
    part = f" ({shown} of {groups} settings)" if shown < groups else ""
    figure.suptitle(
        f"{text}\n{stream.title}{part}", fontsize=10, x=0.01, y=1.0, ha="left", va="bottom"
    )


def legend_right(figure: Any, axis: Any) -> None:
    """Beside the data, never on them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def some(T: int) -> range:
    """The tasks that an axis names."""
    return range(1, T + 1, -(-T // 10))


def called(task: int, names: Sequence[str]) -> str:
    """What an axis says for a task, counted from 1: its name, or its number where it has none."""
    return short(names[task - 1]) if names else str(task)


def short(name: str) -> str:
    """A name as an axis has room for it."""
    return shortened(name, LONGEST)


def name_ticks(axis: Any, places: Sequence[int], labels: Sequence[str]) -> None:
    """Label places of the x-axis; words are turned, so that they do not cover each other."""
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    short_ones = all(text.isdigit() and len(text) < 4 for text in labels)
    axis.set_xticks(places, labels, **({} if short_ones else turned))


def wrapped(text: str, width: int = 30) -> str:
    """A long label in lines, broken between its settings."""
    return "\n".join(broken(text.replace(" (n = ", " (n\u00a0=\u00a0"), width))


def spread(values: Sequence[Any]) -> tuple[Any, Any]:
    """Mean and half of the 95 % interval of rows of values; no interval for one row."""
    found = [interval([float(v) for v in column]) for column in np.transpose(values)]
    mean = np.array([f["mean"] for f in found])
    high = [f["mean"] if f["high"] is None else f["high"] for f in found]
    return mean, np.array(high) - mean


def mean_and_half(group: Group, name: str) -> tuple[float, float] | None:
    """Of a column; the half interval is 0 for one run."""
    found = group.statistics(name)
    if found["mean"] is None:
        return None
    return found["mean"], 0.0 if found["high"] is None else found["high"] - found["mean"]


def scale(axis: Any, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis where the values span decades, linear near zero if there is a zero.

    Its ticks have numbers without mathematics, which `STYLE` turns off.
    """
    positive = [v for v in values if v > 0]
    if not positive or min(values) < 0 or max(positive) < DECADES * min(positive):
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    place = axis.set_xscale if which == "x" else axis.set_yscale
    own = axis.xaxis if which == "x" else axis.yaxis
    if len(positive) == len(values):
        place("log")
        if max(values) < DECADES**2 * min(values):  # of powers of ten one or two would be in sight
            own.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        place("symlog", linthresh=min(positive))
    own.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    own.set_minor_formatter(NullFormatter())
