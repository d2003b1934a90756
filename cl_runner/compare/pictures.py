"""Pictures of a comparison, PNG and SVG: one set per stream, legible without their captions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.compare.table import BOUNDS, LOWER, Comparison, Group, Stream
from cl_runner.errors import UserError, check
from cl_runner.functional.metrics import Matrix, average_accuracy
from cl_runner.results import interval, matrix_name, read_matrix

# Okabe & Ito: safe for colour-blind readers; markers tell the groups apart in grey, too.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999"
MARKERS = "osD^vPX*"
SHOWN = len(COLOURS)  # groups in one picture
PANELS = 5  # tasks with a panel of their own
Matrices = Sequence[tuple[Group, list[Matrix]]]  # of each group's runs
MEMORY = ("parameter_bytes", "buffer_bytes", "memory_bytes")


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all pictures that the runs have the files for; their paths."""
    try:
        import matplotlib as mpl
    except ImportError:
        message = "--plots needs matplotlib: pip install 'cl_runner[plots]', or leave --plots out"
        raise UserError(message) from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    style: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    files = []
    with mpl.rc_context({**style, "svg.hashsalt": "cl_runner", "legend.frameon": False}):
        for stream in comparison.streams:
            name = re.sub(r"[^A-Za-z0-9.=]+", "_", stream.title).strip("_")
            for kind, figure in pictures(stream, plt):
                for suffix in ("png", "svg"):
                    files.append(folder / f"{name}-{kind}.{suffix}")
                    metadata = {"Date": None} if suffix == "svg" else {}
                    figure.savefig(files[-1], dpi=130, metadata=metadata, bbox_inches="tight")
                plt.close(figure)
    check(bool(files), "nothing to draw: no complete runs")
    return files


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
    # The bounds neither forget nor pay for the data that they keep.
    real = [g for g in shown if g.strategy not in BOUNDS]
    if any(g.values["forgetting"] for g in real):
        yield "forgetting", bars(stream, real, plt)
        yield "stability_plasticity", stability(stream, real, plt)
    if any(memory(g) for g in real):
        yield "memory", against_memory(stream, real, plt)


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
    """Colour and marker of a group, the same in all pictures."""
    i = next(i for i, other in enumerate(chosen(stream)) if other is group)
    return {"color": COLOURS[i], "marker": MARKERS[i]}


def head(figure: Any, stream: Stream, text: str) -> None:
    """What is shown, and of which stream."""
    groups, shown = sum(bool(g.runs) for g in stream.groups), len(chosen(stream))
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
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    T = matrices[0][1][0].shape[1]
    size = min(max(2.6, 0.42 * T), 4.2)
    figure, axes = plt.subplots(
        *(rows, columns),
        figsize=(size * columns + 0.8, (size + 0.5) * rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(matrices) :]:
        axis.set_axis_off()
    for i, (axis, (group, found)) in enumerate(zip(axes.flat, matrices, strict=False)):
        R = np.mean(found, axis=0)
        image = axis.imshow(R, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (y, x), value in np.ndenumerate(R):
            text = f"{value:.2f}".removeprefix("0")
            colour = "black" if value > 0.55 else "white"
            if T <= 10:
                axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=7)
        axis.set_title(wrapped(label(group)), fontsize=8)
        axis.spines[:].set_visible(False)
        axis.set_xticks([task - 1 for task in some(T)], some(T))
        axis.set_yticks([0, *some(T)], ["none", *some(T)])
        if i % columns == 0:
            axis.set_ylabel("trained up to task")
        axis.set_xlabel("tested on task")
    figure.colorbar(image, ax=axes, label="accuracy (fraction)", shrink=0.8)
    head(figure, stream, "Accuracy matrices, means over the seeds")
    return figure


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
    tasks = sorted({round(t) for t in np.linspace(0, max(T - 2, 0), min(PANELS, T))})
    size = (6.4, 1.25 * len(tasks) + 0.6)
    figure, axes = plt.subplots(
        len(tasks), 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, task in zip(axes.flat, tasks, strict=True):
        axis.axvspan(0.5, task + 0.5, color="0.93", lw=0)
        after = np.arange(task + 1, T + 1)
        curves(axis, after, stream, matrices, lambda R, task=task: R[task + 1 :, task])  # type: ignore[misc]
        axis.set_ylabel(f"task {task + 1}")
        axis.grid(alpha=0.3)
    axes[0, 0].set(xlim=(0.5, T + 0.5), ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    axes[-1, 0].set(xlabel="tasks trained so far (grey: not yet trained)", xticks=some(T))
    figure.supylabel("accuracy (fraction)", fontsize=9)
    legend_right(figure, axes[0, 0])
    head(
        figure, stream, "Accuracy on single tasks while the others are learned: mean, 95 % interval"
    )
    return figure


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
    style: dict[str, Any] = {"height": 0.65, "capsize": 3, "ecolor": "0.45"}
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
    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")

    def point(group: Group) -> tuple[Any, Any] | None:
        x, y = memory(group), mean_and_half(group, "ACC")
        return None if x is None or y is None else ((x, 0.0), y)

    scatter(axis, stream, groups, point)
    sizes = [m for g in groups if (m := memory(g))]
    if max(sizes) > 10 * min(sizes):
        axis.set_xscale("log")
    axis.set_xlabel("parameters, buffer and the strategy's own memory (MB)")
    axis.set(ylabel="ACC (fraction)", ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    head(figure, stream, "Accuracy against memory: mean and 95 % interval")
    return figure
