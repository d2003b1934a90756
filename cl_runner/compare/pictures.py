"""Pictures of a comparison, PNG and SVG: one set per stream, legible without their captions."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.compare.render import OVERALL
from cl_runner.compare.runs import Run, read_runs
from cl_runner.compare.table import (
    BOUNDS,
    LOWER,
    Comparison,
    Group,
    Overall,
    Question,
    Stream,
    compare,
    describe,
    larger_is_better,
)
from cl_runner.errors import UserError, check
from cl_runner.functional.metrics import Matrix, average_accuracy
from cl_runner.results import (
    interval,
    matrix_name,
    read_curves,
    read_matrix,
    read_rows,
    write_bytes,
)

# Okabe & Ito, and two of Tol's: safe for colour-blind readers; markers tell the groups apart in
# grey, too.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#E69F00", "#000000", "#999999", "#882255", "#AAAA00"),
)
MARKERS = "osD^vPX*<>"
SHOWN = len(COLOURS)  # groups in one picture
PANELS = 5  # tasks with a panel of their own
CONFUSIONS = 8  # groups with a confusion matrix
CURVE = 3  # values of a swept setting from which on they make a curve
DECADES = 10  # the ratio of values from which on an axis is logarithmic
Matrices = Sequence[tuple[Group, list[Matrix]]]  # of each group's runs
MEMORY = ("parameter_bytes", "buffer_bytes", "memory_bytes")
# The first that tells the runs apart is what a run's computation is measured by.
COMPUTE = {
    "flops": "floating-point operations of training",
    "samples": "samples trained on, repetitions counted",
    "train_seconds": "training time (seconds)",
}
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
    "svg.hashsalt": "cl_runner",
    "text.parse_math": False,  # a setting's value may contain dollars
}


class NoMatplotlib(UserError):
    """Pictures were asked for where matplotlib is not installed."""


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all pictures that the runs have the files for; their paths."""
    with pyplot("--plots") as plt:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from None
        files = []
        for title, kind, figure in figures(comparison, plt):
            name = re.sub(r"[^A-Za-z0-9.=]+", "_", title).strip("_")
            for suffix in ("png", "svg"):
                files.append(folder / f"{name}-{kind}.{suffix}")
                write_bytes(files[-1], image(figure, suffix))
    check(bool(files), "nothing to draw: no complete runs")
    return files


def of_folder(folder: Path) -> list[Path]:
    """Draw what the runs in a folder have the files for into its `pictures`. Raises UserError."""
    runs, _ = read_runs([str(folder)])
    return draw(compare(runs, Question()), folder / "pictures")


@contextmanager
def pyplot(wanted: str) -> Iterator[Any]:
    """matplotlib.pyplot in the style of these pictures. Raises NoMatplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        message = (
            f"{wanted} needs matplotlib: pip install 'cl_runner[plots]', or leave {wanted} out"
        )
        raise NoMatplotlib(message) from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        yield plt


def image(figure: Any, suffix: str) -> bytes:
    """A figure as the bytes of a PNG or SVG file."""
    file = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else {}
    figure.savefig(file, format=suffix, dpi=130, metadata=metadata, bbox_inches="tight")
    return file.getvalue()


def figures(comparison: Comparison, plt: Any) -> Iterator[tuple[str, str, Any]]:
    """Every figure: the stream that it shows, its kind, and itself; the next one closes it."""
    for stream in comparison.streams:
        for kind, figure in pictures(stream, plt):
            yield stream.title, kind, figure
            plt.close(figure)
    if comparison.overall is not None:
        figure = profiles(comparison.overall, comparison.question.metric, plt)
        yield OVERALL, "profiles", figure
        plt.close(figure)


def pictures(stream: Stream, plt: Any) -> Iterator[tuple[str, Any]]:
    """The figures of one stream by their kind; those that need matrices only where they are."""
    shown = chosen(stream)
    matrices = [(g, found) for g in shown if (found := read(g, stream))]
    shapes = {R.shape for _, found in matrices for R in found}
    check(len(shapes) < 2, f"{stream.title}: the matrices differ in size; see cl-compare verify")
    if matrices:
        yield "matrices", heatmaps(stream, matrices, plt)
        yield "tasks", task_curves(stream, matrices, plt)
        yield "average_accuracy", average_curves(stream, matrices, plt)
    real = [g for g in shown if g.strategy not in BOUNDS]
    if courses := [(g, own) for g in real if (own := read_courses(g, stream))]:
        bounds = [(g, found) for g, found in matrices if g.strategy in BOUNDS]
        yield "steps", step_curves(stream, courses, bounds, plt)
    if confusions := [(g, counts) for g in shown if (counts := read_confusion(g, stream))]:
        yield "confusion", confusion_matrices(stream, confusions[:CONFUSIONS], plt)
    for key, lines in swept(stream).items():
        yield f"sweep_{key.removeprefix('strategy.')}", sweep_curve(stream, key, lines, plt)
    # The bounds neither forget nor pay for the data that they keep.
    several = len(real) > 1  # one point compares nothing
    if several and any(g.values["forgetting"] for g in real):
        yield "forgetting", bars(stream, real, plt)
        yield "stability_plasticity", stability(stream, real, plt)
    if several and any(memory(g) for g in real):
        yield "memory", against_memory(stream, real, plt)
    if several and (measure := computation(shown)) is not None:
        yield "compute", against_compute(stream, shown, measure, plt)
    if overlaps := [(g, layers) for g in shown if (layers := fisher_overlaps(g))]:
        yield "fisher_overlap", overlap_curves(stream, overlaps, plt)


def chosen(stream: Stream) -> list[Group]:
    """The best groups, as many as can be told apart, and naive in any case."""
    groups = [g for g in stream.groups if g.runs]
    cut = [g for g in groups[SHOWN:] if g.strategy == LOWER][:1]
    return groups[: SHOWN - len(cut)] + cut


def read(group: Group, stream: Stream) -> list[Matrix]:
    """The matrices of a group's runs, as many as there are files."""
    name = matrix_name("test", stream.reading, stream.scenario)
    paths = [run.folder / name for run in group.runs.values()]
    return [read_matrix(path) for path in paths if path.is_file()]


def label(group: Group) -> str:
    """The group and its number of seeds."""
    return f"{group.label} (n = {len(group.runs)})"


def look(group: Group, stream: Stream) -> dict[str, Any]:
    """Colour and marker of a group: in all pictures the same, of all streams with these groups."""
    order = sorted(chosen(stream), key=lambda g: (g.strategy in BOUNDS, g.label))
    i = next(i for i, other in enumerate(order) if other is group)
    return {"color": COLOURS[i], "marker": MARKERS[i]}


def head(figure: Any, stream: Stream, text: str, shown: int | None = None) -> None:
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


def heatmaps(stream: Stream, matrices: Matrices, plt: Any) -> Any:
    """The mean matrix of each group."""
    means = [(group, np.mean(found, axis=0)) for group, found in matrices]
    figure, columns = tiles(means, "accuracy (fraction)", plt)
    T = means[0][1].shape[1]
    for i, axis in enumerate(figure.axes[: len(means)]):
        axis.set_xticks([task - 1 for task in some(T)], some(T))
        axis.set_yticks([0, *some(T)], ["none", *some(T)])
        if i % columns == 0:
            axis.set_ylabel("trained up to task")
        axis.set_xlabel("tested on task")
    head(figure, stream, "Accuracy matrices, means over the seeds")
    return figure


def tiles(
    tables: Sequence[tuple[Group, Matrix]], what: str, plt: Any, *, zeros: bool = True
) -> tuple[Any, int]:
    """A panel of coloured cells per group, with the numbers where they fit; and the columns of it.

    tables: fractions, all of one shape. zeros: whether numbers that round to zero are written.
    """
    width = tables[0][1].shape[1]
    size = min(max(2.6, 0.42 * width), 4.2)
    columns = min(4 if size < 3.5 else 3, len(tables))  # legible on a page's width
    rows = -(-len(tables) // columns)
    figure, axes = plt.subplots(
        *(rows, columns),
        figsize=(size * columns + 0.8, (size + 0.5) * rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(tables) :]:
        axis.set_axis_off()
    for axis, (group, table) in zip(axes.flat, tables, strict=False):
        image = axis.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (y, x), value in np.ndenumerate(table):
            text = f"{value:.2f}".removeprefix("0")
            colour = "black" if value > 0.55 else "white"
            if width <= 10 and (zeros or text != ".00"):
                axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=7)
        axis.set_title(wrapped(label(group)), fontsize=8)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=what, shrink=0.8)
    return figure, columns


def some(T: int) -> range:
    """The tasks that an axis names."""
    return range(1, T + 1, -(-T // 10))


def wrapped(text: str, width: int = 30) -> str:
    """A long label in lines, broken between its settings."""
    lines = [""]
    for word in text.replace(" (n = ", " (n\u00a0=\u00a0").split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip(" ")
    return "\n".join(lines)


def spread(values: Sequence[Any]) -> tuple[Any, Any]:
    """Mean and half of the 95 % interval of rows of values; no interval for one row."""
    found = [interval([float(v) for v in column]) for column in np.transpose(values)]
    mean = np.array([f["mean"] for f in found])
    high = [f["mean"] if f["high"] is None else f["high"] for f in found]
    return mean, np.array(high) - mean


def curves(
    axis: Any, x: Any, stream: Stream, matrices: Matrices, row: Callable[[Matrix], Any]
) -> None:
    """Means with their intervals, side by side where they would cover each other; bounds dashed.

    row: what of a matrix is shown, a value for each x.
    """
    for i, (group, found) in enumerate(matrices):
        mean, half = spread([row(R) for R in found])
        # The intervals of accuracies are cut at 0 and 1, where accuracies end.
        ends = np.stack([np.minimum(half, mean), np.minimum(half, 1 - mean)])
        line = "--" if group.strategy in BOUNDS else "-"
        style = {"ms": 4, "lw": 1.3, "ls": line, "elinewidth": 0.7, "capsize": 1.5}
        place = x + 0.05 * (i - (len(matrices) - 1) / 2)
        axis.errorbar(
            place, mean, yerr=ends, label=wrapped(label(group)), **look(group, stream), **style
        )


def task_curves(stream: Stream, matrices: Matrices, plt: Any) -> Any:
    """A panel per task, after figure 2A of Kirkpatrick et al. 2017 (arXiv 1612.00796)."""
    T = matrices[0][1][0].shape[1]
    figure, panels = task_panels(T, plt)
    for task, axis in panels.items():
        axis.axvspan(0.5, task + 0.5, color="0.93", lw=0)
        after = np.arange(task + 1, T + 1)
        curves(axis, after, stream, matrices, lambda R, task=task: R[task + 1 :, task])  # type: ignore[misc]
    figure.axes[0].set(xlim=(0.5, T + 0.5))
    figure.axes[-1].set(xlabel="tasks trained so far (grey: not yet trained)", xticks=some(T))
    legend_right(figure, figure.axes[0])
    head(
        figure, stream, "Accuracy on single tasks while the others are learned: mean, 95 % interval"
    )
    return figure


def task_panels(T: int, plt: Any) -> tuple[Any, dict[int, Any]]:
    """A figure of accuracies, and its panels one below the other by the indices of their tasks."""
    tasks = sorted({round(t) for t in np.linspace(0, max(T - 2, 0), min(PANELS, T))})
    size = (6.4, 1.25 * len(tasks) + 0.6)
    figure, axes = plt.subplots(
        len(tasks), 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, task in zip(axes.flat, tasks, strict=True):
        axis.set_ylabel(f"task {task + 1}")
        axis.grid(alpha=0.3)
    axes[0, 0].set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    figure.supylabel("accuracy (fraction)", fontsize=9)
    return figure, dict(zip(tasks, axes.flat, strict=True))


def average_curves(stream: Stream, matrices: Matrices, plt: Any) -> Any:
    """ACC_k over k."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    T = matrices[0][1][0].shape[1]
    curves(axis, np.arange(1, T + 1), stream, matrices, average_accuracy)
    axis.set(xlabel="tasks trained so far", ylabel="mean accuracy on them (fraction)")
    axis.set(xticks=some(T), ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    head(figure, stream, "Average accuracy on the tasks learned so far: mean, 95 % interval")
    return figure


def bars(stream: Stream, groups: Sequence[Group], plt: Any) -> Any:
    """Forgetting with intervals."""
    figure, axis = plt.subplots(figsize=(6.4, 0.42 * len(groups) + 1), layout="constrained")
    style: dict[str, Any] = {"height": 0.65, "capsize": 3, "ecolor": "0.1", "alpha": 0.6}
    for y, group in enumerate(groups):
        found = group.statistics("forgetting")
        if found["n"]:
            half = 0.0 if found["high"] is None else found["high"] - found["mean"]
            colour = look(group, stream)["color"]
            axis.barh(y, found["mean"], xerr=half, color=colour, **style)
    axis.set_yticks(range(len(groups)), [wrapped(label(g), 44) for g in groups])
    axis.invert_yaxis()
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -0.5), min(high, 1.03))  # beyond, intervals say nothing
    axis.axvline(0, color="black", lw=0.8)
    axis.set_xlabel("forgetting (fraction of accuracy lost; less is better)")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    head(figure, stream, "Forgetting: mean and 95 % interval")
    return figure


def scatter(
    axis: Any,
    stream: Stream,
    groups: Sequence[Group],
    point: Callable[[Group], tuple[Any, Any] | None],
) -> list[tuple[float, float]]:
    """A point with its intervals for each group that has one; the points."""
    points = []
    for group in groups:
        place = point(group)
        if place is not None:
            (x, x_half), (y, y_half) = place
            style = {"ms": 7, "ls": "none", "elinewidth": 0.8, "capsize": 2}
            axis.errorbar(
                x,
                y,
                xerr=x_half,
                yerr=y_half,
                label=wrapped(label(group)),
                **look(group, stream),
                **style,
            )
            points.append((x, y))
    return points


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front: no other point has less x and more y, or one of them and the same other."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def mean_and_half(group: Group, name: str) -> tuple[float, float] | None:
    """Of a column; the half interval is 0 for one run."""
    found = group.statistics(name)
    if found["mean"] is None:
        return None
    return found["mean"], 0.0 if found["high"] is None else found["high"] - found["mean"]


def stability(stream: Stream, groups: Sequence[Group], plt: Any) -> Any:
    """Learning accuracy against forgetting: the upper left is best."""
    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")

    def point(group: Group) -> tuple[Any, Any] | None:
        x, y = mean_and_half(group, "forgetting"), mean_and_half(group, "learning_accuracy")
        return None if x is None or y is None else (x, y)

    best = front(scatter(axis, stream, groups, point))
    axis.step(*zip(*best, strict=True), where="post", color="0.6", ls="--", zorder=0)
    axis.plot([], [], color="0.6", ls="--", label="Pareto front")
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    axis.set(xlim=(max(left, -0.5), min(right, 1.03)), ylim=(max(low, -0.03), min(high, 1.03)))
    axis.set_xlabel("forgetting (fraction; less is more stable)")
    axis.set_ylabel("learning accuracy (fraction; more is more plastic)")
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    head(figure, stream, "Stability against plasticity (best: upper left): mean, 95 % intervals")
    return figure


def memory(group: Group) -> float | None:
    """MB that a run keeps at its end, mean over the seeds; None where it is not known."""
    sizes = [[run.number(name) for name in MEMORY] for run in group.runs.values()]
    known = [sum(v for v in own if v is not None) for own in sizes if own[0] is not None]
    return sum(known) / len(known) / 1e6 if known else None


def against_memory(stream: Stream, groups: Sequence[Group], plt: Any) -> Any:
    """ACC against what is kept between tasks."""
    sizes = {id(g): (m, 0.0) for g in groups if (m := memory(g)) is not None}
    figure = against_price(stream, groups, sizes, plt)
    figure.axes[0].set_xlabel("parameters, buffer and the strategy's own memory (MB)")
    head(figure, stream, "Accuracy against memory (best: upper left): mean, 95 % interval")
    return figure


def computation(groups: Sequence[Group]) -> str | None:
    """The column that tells what the groups computed; None if there is none for all of them."""
    for name in COMPUTE:
        means = [g.mean(name) for g in groups]
        if all(mean is not None for mean in means) and (len(set(means)) > 1 or name == "flops"):
            return name
    return None


def against_compute(stream: Stream, groups: Sequence[Group], measure: str, plt: Any) -> Any:
    """ACC against what was computed."""
    from matplotlib.ticker import EngFormatter

    prices = {id(g): p for g in groups if (p := mean_and_half(g, measure)) is not None}
    figure = against_price(stream, groups, prices, plt)
    figure.axes[0].set_xlabel(f"{COMPUTE[measure]} per run")
    if measure != "train_seconds":
        figure.axes[0].xaxis.set_major_formatter(EngFormatter())
    head(figure, stream, "Accuracy against computation (best: upper left): mean, 95 % interval")
    return figure


def against_price(
    stream: Stream, groups: Sequence[Group], prices: Mapping[int, tuple[float, float]], plt: Any
) -> Any:
    """ACC against a cost, with the Pareto front of the strategies; bounds are no part of it.

    prices: mean and half of the interval by the identity of the group.
    """
    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")

    def point(group: Group) -> tuple[Any, Any] | None:
        x, y = prices.get(id(group)), mean_and_half(group, "ACC")
        return None if x is None or y is None else (x, y)

    bounds = [g for g in groups if g.strategy in BOUNDS]
    best = front(scatter(axis, stream, [g for g in groups if g not in bounds], point))
    scatter(axis, stream, bounds, point)
    if len(best) > 1:
        axis.step(*zip(*best, strict=True), where="post", color="0.6", ls="--", zorder=0)
        axis.plot([], [], color="0.6", ls="--", label="Pareto front")
    scale(axis, "x", [x for x, _ in prices.values()])
    axis.set(ylabel="ACC (fraction)", ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    return figure


def scale(axis: Any, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis where the values span decades, linear near zero if there is a zero."""
    positive = [v for v in values if v > 0]
    if not positive or min(values) < 0 or max(positive) < DECADES * min(positive):
        return
    place = axis.set_xscale if which == "x" else axis.set_yscale
    if len(positive) == len(values):
        place("log")
    else:
        place("symlog", linthresh=min(positive))


# Within the tasks.


@dataclass(frozen=True, kw_only=True)
class Course:
    """A run at all of its evaluations."""

    accuracies: dict[tuple[int, int], Sequence[float]]  # per task; (after_task, step) of each
    steps: list[float]  # optimizer steps of each task


def read_courses(group: Group, stream: Stream) -> list[Course]:
    """Those of a group's runs that were evaluated within their tasks."""
    found = [read_course(run, stream) for run in group.runs.values()]
    return [course for course in found if course is not None]


def read_course(run: Run, stream: Stream) -> Course | None:
    """None where a file is missing, or tells nothing from within the tasks. Raises UserError."""
    matrix = run.folder / matrix_name("test", stream.reading, stream.scenario)
    paths = (run.folder / "accuracies.csv", run.folder / "costs.csv", matrix)
    if not all(path.is_file() for path in paths):
        return None
    try:
        curves = read_curves(paths[0]) or {}
        within = curves.get(("test", stream.reading), [])
        steps = [float(row["steps"]) for row in read_rows(paths[1])][1:]
        R = read_matrix(matrix).tolist()
        if any(len(row) != 2 + len(steps) for row in within) or len(R) != 1 + len(steps):
            raise ValueError("their tasks are not the same")
    except (ValueError, KeyError) as error:
        raise UserError(f"cannot read {paths[0]} with {paths[1].name}: {error}") from None
    ends = {(k, 0): row for k, row in enumerate(R)}
    rows = {(int(k), int(step)): row for k, step, *row in within}
    return Course(accuracies=ends | rows, steps=steps) if rows else None


def step_curves(
    stream: Stream, courses: Sequence[tuple[Group, list[Course]]], bounds: Matrices, plt: Any
) -> Any:
    """Accuracy over the optimizer steps, after figure 1 of De Lange et al. 2023 (arXiv 2205.13452).

    Where runs took different numbers of steps for a task, its part of each is scaled to their mean.
    Bounds, which learn other tasks at other times, are shown as what they are at the end.
    """
    steps = np.array([course.steps for _, found in courses for course in found])
    widths = steps.mean(0)
    starts = np.array([0.0, *np.cumsum(widths)])
    T = len(widths)
    figure, panels = task_panels(T, plt)
    for task, axis in panels.items():
        axis.axvspan(0, starts[task], color="0.93", lw=0)
        for border in starts[1:-1]:
            axis.axvline(border, color="0.5", lw=0.7, ls=":")
        for group, matrices in bounds:
            end = float(np.mean([R[-1, task] for R in matrices]))
            style: dict[str, Any] = {"color": look(group, stream)["color"], "ls": "--", "lw": 1.1}
            axis.axhline(end, label=wrapped(f"{label(group)} at its end"), **style)
        for i, (group, found) in enumerate(courses):
            shared = set.intersection(*(set(course.accuracies) for course in found))
            times = sorted(time for time in shared if time >= (task, 0))
            own = np.mean([course.steps for course in found], axis=0)
            pace = np.append(widths / np.maximum(own, 1), 0)
            x = np.array([starts[k] + step * pace[k] for k, step in times])
            mean, half = spread([[c.accuracies[time][task] for time in times] for c in found])
            colour, marker = look(group, stream).values()
            every: dict[str, Any] = {"marker": marker, "ms": 3.5, "markevery": (i / 50, 0.12)}
            axis.plot(x, mean, color=colour, lw=1.2, label=wrapped(label(group)), **every)
            band = np.clip([mean - half, mean + half], 0, 1)
            axis.fill_between(x, *band, color=colour, alpha=0.2, lw=0)
    top, bottom = figure.axes[0], figure.axes[-1]
    top.set(xlim=(0, starts[-1]))
    for task in some(T):
        place = (starts[task - 1] + starts[task]) / 2
        height = top.get_xaxis_transform()
        top.text(place, 1.03, f"learns {task}", transform=height, ha="center", fontsize=8)
    scaled = "" if (steps == steps[0]).all() else ", each task scaled to the mean of the runs"
    bottom.set_xlabel(f"optimizer steps{scaled} (grey: not yet trained)")
    legend_right(figure, top)
    text = "Accuracy on single tasks within the training of all: mean, 95 % interval"
    head(figure, stream, text, len(courses) + len(bounds))
    return figure


Confusion = Counter[tuple[int, int]]  # (class, predicted) -> samples


def read_confusion(group: Group, stream: Stream) -> Confusion:
    """What a group's runs took each class for after the last task, all runs together.

    Raises UserError for a file that is none of cl-run.
    """
    counts: Confusion = Counter()
    for run in group.runs.values():
        path = run.folder / "confusion.csv"
        if not path.is_file():
            continue
        try:
            rows = [
                row
                for row in read_rows(path)
                if (row["split"], row["reading"]) == ("test", stream.reading)
            ]
            last = max((int(row["after_task"]) for row in rows), default=0)
            for row in (row for row in rows if int(row["after_task"]) == last):
                counts[int(row["class"]), int(row["predicted"])] += int(row["count"])
        except (ValueError, KeyError) as error:
            raise UserError(f"cannot read {path}: {error}") from None
    return counts


def confusion_matrices(
    stream: Stream, confusions: Sequence[tuple[Group, Confusion]], plt: Any
) -> Any:
    """A panel per group, the rows as fractions of their class."""
    K = 1 + max(max(pair) for _, counts in confusions for pair in counts)
    tables = []
    for group, counts in confusions:
        table = np.zeros((K, K))
        for pair, count in counts.items():
            table[pair] = count
        tables.append((group, table / np.maximum(table.sum(1, keepdims=True), 1)))
    figure, columns = tiles(tables, "fraction of the class's samples", plt, zeros=False)
    named = range(0, K, -(-K // 10))
    for i, axis in enumerate(figure.axes[: len(tables)]):
        axis.set_xticks(named)
        axis.set_yticks(named)
        axis.set_xlabel("taken for class")
        if i % columns == 0:
            axis.set_ylabel("class (output of the network)")
    text = "Confusion after the last task, the test samples of all seeds together"
    head(figure, stream, text, len(tables))
    return figure


# Sweeps of a setting.

Line = tuple[str, list[tuple[float, Group]]]  # its name, and the groups by their values


def swept(stream: Stream) -> dict[str, list[Line]]:
    """The settings with enough numbers to make a curve: a line per strategy and other settings."""
    found: dict[str, dict[str, list[tuple[float, Group]]]] = {}
    for one in (g for g in stream.groups if g.runs):
        for key, text in one.settings.items():
            value = finite(text)
            if value is not None:
                rest = {k: v for k, v in one.settings.items() if k != key}
                name = " ".join([one.strategy, *describe(rest)])
                found.setdefault(key, {}).setdefault(name, []).append((value, one))
    curves = {
        key: [
            (name, sorted(points, key=lambda p: p[0]))
            for name, points in lines.items()
            if len(points) >= CURVE
        ]
        for key, lines in found.items()
    }
    return {key: lines for key, lines in curves.items() if lines}


def finite(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def sweep_curve(stream: Stream, key: str, lines: Sequence[Line], plt: Any) -> Any:
    """ACC and forgetting over the values of a setting, with the bounds that have one value."""
    figure, axes = plt.subplots(2, 1, figsize=(6.4, 5.2), sharex=True, layout="constrained")
    for axis, metric in zip(axes, ("ACC", "forgetting"), strict=True):
        for i, (name, points) in enumerate(lines[:SHOWN]):
            known = [(x, m) for x, g in points if (m := mean_and_half(g, metric)) is not None]
            if known:
                seeds = sorted({len(g.runs) for _, g in points})
                n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
                xs, (means, halves) = (
                    [x for x, _ in known],
                    zip(*(m for _, m in known), strict=True),
                )
                look_: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i]}
                style = {"ms": 5, "lw": 1.3, "elinewidth": 0.7, "capsize": 2, **look_}
                label_ = wrapped(f"{name} (n = {n})")
                axis.errorbar(xs, means, yerr=halves, label=label_, **style)
        axis.set_ylabel(f"{metric} (fraction)")
        axis.grid(alpha=0.3)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -0.5), min(high, 1.03))  # beyond, intervals say nothing
    values = sorted({x for _, points in lines for x, _ in points})
    scale(axes[0], "x", values)
    if len(values) <= 8:
        axes[0].set_xticks(values, [f"{v:g}" for v in values])
        axes[0].xaxis.set_minor_locator(plt.NullLocator())
    axes[1].set_xlabel(key)
    legend_right(figure, axes[0])
    part = f", {SHOWN} of {len(lines)} curves" if len(lines) > SHOWN else ""
    text = f"ACC and forgetting by {key}: mean, 95 % interval{part}"
    figure.suptitle(f"{text}\n{stream.title}", fontsize=10, x=0.01, y=1.0, ha="left", va="bottom")
    return figure


# Over the streams.


def profiles(overall: Overall, metric: str, plt: Any) -> Any:
    """Performance profiles (Agarwal et al. 2021, arXiv 2108.13264, fig. 3), bands pointwise."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    shown = overall.methods[:SHOWN]
    order = sorted(method.label for method in shown)  # as in `look`
    for method in shown:
        i = order.index(method.label)
        x, share, low, high = np.array(method.profile, dtype=np.float64).T
        style: dict[str, Any] = {"marker": MARKERS[i], "markevery": (i, 12), "ms": 4}
        axis.plot(x, share, color=COLOURS[i], lw=1.3, label=wrapped(method.label), **style)
        axis.fill_between(x, low, high, color=COLOURS[i], alpha=0.15, lw=0)
    beyond = "at least" if larger_is_better(metric) else "at most"
    axis.set(xlabel=f"{metric.replace('_', ' ')}, threshold", ylim=(-0.03, 1.03))
    axis.set_ylabel(f"share of runs {beyond} the threshold")
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    part = f" ({len(shown)} of {len(overall.methods)} methods)" if overall.methods[SHOWN:] else ""
    text = f"Performance profiles (higher is better), 95 % stratified bootstrap{part}"
    where = f"{overall.ranking.streams} streams, each with the same weight"
    figure.suptitle(f"{text}\n{where}", fontsize=10, x=0.01, y=1.0, ha="left", va="bottom")
    return figure


# Fisher information.

Overlaps = dict[str, list[float]]  # by layer: a value per pair of tasks and run


def fisher_overlaps(group: Group) -> Overlaps:
    """The overlaps that a group's runs have written, layers in the network's order.

    Raises UserError for a file that is none of cl-run.
    """
    found: Overlaps = {}
    for run in group.runs.values():
        path = run.folder / "fisher_overlap.csv"
        if not path.is_file():
            continue
        try:
            for row in read_rows(path):
                values = found.setdefault(row["layer"], [])
                values += [float(row["overlap"])] if row["overlap"] else []
        except (ValueError, KeyError) as error:
            raise UserError(f"cannot read {path}: {error}") from None
    return {layer: values for layer, values in found.items() if values}


def overlap_curves(stream: Stream, overlaps: Sequence[tuple[Group, Overlaps]], plt: Any) -> Any:
    """Fisher overlap by layer, after figure 2C of Kirkpatrick et al. 2017 (arXiv 1612.00796)."""
    layers = list(dict.fromkeys(layer for _, found in overlaps for layer in found))
    figure, axis = plt.subplots(figsize=(max(4.4, 0.9 * len(layers)), 3.6), layout="constrained")
    for i, (group, found) in enumerate(overlaps):
        own = [(layers.index(layer), values) for layer, values in found.items()]
        places = np.array([x for x, _ in own]) + 0.08 * (i - (len(overlaps) - 1) / 2)
        means = np.array([np.mean(values) for _, values in own])
        ends = np.array([[np.min(values), np.max(values)] for _, values in own])
        bars = np.abs(ends - means[:, None]).T  # rounding may leave -0
        style = {"ms": 5, "lw": 1.3, "elinewidth": 0.8, "capsize": 2.5}
        name = wrapped(label(group))
        axis.errorbar(places, means, yerr=bars, label=name, **look(group, stream), **style)
    axis.set_xticks(range(len(layers)), layers, rotation=30 if len(layers) > 5 else 0)
    axis.set(xlabel="layer, from the input on", ylabel="Fisher overlap (0: disjoint, 1: the same)")
    axis.set(ylim=(-0.03, 1.03), xlim=(-0.5, len(layers) - 0.5))
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    head(figure, stream, "Do two tasks use the same weights? Mean over pairs of tasks; bars: range")
    return figure
