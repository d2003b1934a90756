"""Accuracy by task: matrices, curves over the tasks and over the steps, confusion of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cl_runner.comparing.figures.canvas import (
    GroupMatrices,
    called,
    head,
    label,
    legend_right,
    look,
    name_ticks,
    short,
    some,
    spread,
    wrapped,
)
from cl_runner.comparing.runs import Run
from cl_runner.comparing.table import BOUNDS, UPPER, Group, StreamGroup
from cl_runner.errors import UserError
from cl_runner.functional.metrics import Matrix, average_accuracy
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import matrix_name, read_curves, read_matrix, read_titles
from cl_runner.results.names import ACCURACY_TABLE, CONFUSION_TABLE, COST_TABLE
from cl_runner.results.titles import CLASSES

PANELS = 5  # tasks with a panel of their own
CONFUSIONS = 8  # groups with a confusion matrix


def read_group(group: Group, stream: StreamGroup) -> list[Matrix]:
    """The matrices of a group's runs, as many as there are files."""
    name = matrix_name("test", stream.reading, stream.scenario)
    paths = [run.folder / name for run in group.runs.values()]
    return [read_matrix(path) for path in paths if path.is_file()]


def read_names(group: Group, stream: StreamGroup) -> list[str]:
    """What the runs of a group call the tasks; none where they have no names, or not the same."""
    name = matrix_name("test", stream.reading, stream.scenario)
    paths = [run.folder / name for run in group.runs.values()]
    found = {tuple(read_titles(path)) for path in paths if path.is_file()}
    return [*found.pop()] if len(found) == 1 else []


def task_names(groups: Sequence[Group], stream: StreamGroup) -> list[str]:
    """What all these groups call the tasks, likewise."""
    found = [read_names(group, stream) for group in groups]
    return found[0] if all(names == found[0] for names in found) else []


def heatmaps(stream: StreamGroup, matrices: GroupMatrices, plt: Any) -> Any:
    """The mean matrix of each group."""
    means = [(group, mean_matrix(group, found)) for group, found in matrices]
    figure, columns = tiles(means, "accuracy (fraction)", plt)
    T, names = means[0][1].shape[1], task_names([group for group, _ in matrices], stream)
    before = "untrained" if names else "none"  # a task may be called so
    for i, axis in enumerate(figure.axes[: len(means)]):
        name_ticks(axis, [task - 1 for task in some(T)], [called(task, names) for task in some(T)])
        axis.set_yticks([0, *some(T)], [before, *(called(task, names) for task in some(T))])
        if i % columns == 0:
            axis.set_ylabel("trained up to task")
        axis.set_xlabel("tested on task")
    head(figure, stream, "Accuracy matrices, means over the seeds")
    return figure


def mean_matrix(group: Group, found: Sequence[Matrix]) -> Matrix:
    """Over the seeds; of joint training, which learns all tasks at once, the last row only."""
    mean: Matrix = np.mean(found, axis=0)
    if group.strategy == UPPER:
        mean[1:-1] = np.nan
    return mean


def tiles(
    tables: Sequence[tuple[Group, Matrix]], what: str, plt: Any, *, zeros: bool = True
) -> tuple[Any, int]:
    """A panel of coloured cells per group, with the numbers where they fit; and the columns of it.

    tables: fractions, all of one shape. zeros: whether numbers that round to zero are written.
    """
    width = tables[0][1].shape[1]
    size = min(max(2.6, 0.42 * width), 4.2)
    rows = -(-len(tables) // (4 if size < 3.5 else 3))  # legible on a page's width
    columns = -(-len(tables) // rows)
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
            if width <= 10 and not np.isnan(value) and (zeros or text != ".00"):
                axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=7)
        axis.set_title(wrapped(label(group)), fontsize=8)
        axis.spines[:].set_visible(False)
        axis.set_facecolor("0.93")  # where nothing was measured
    figure.colorbar(image, ax=axes, label=what, shrink=0.8)
    return figure, columns


def curves(
    axis: Any, x: Any, stream: StreamGroup, matrices: GroupMatrices, row: Callable[[Matrix], Any]
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


def task_curves(stream: StreamGroup, matrices: GroupMatrices, plt: Any) -> Any:
    """A panel per task, after figure 2A of Kirkpatrick et al. 2017 (arXiv 1612.00796)."""
    T = matrices[0][1][0].shape[1]
    names = task_names([group for group, _ in matrices], stream)
    figure, panels = task_panels(T, names, plt)
    for task, axis in panels.items():
        axis.axvspan(0.5, task + 0.5, color="0.93", lw=0)
        after = np.arange(task + 1, T + 1)
        curves(axis, after, stream, matrices, lambda R, task=task: R[task + 1 :, task])  # type: ignore[misc]
    figure.axes[0].set(xlim=(0.5, T + 0.5))
    figure.axes[-1].set(xlabel="tasks trained so far (grey: not yet trained)")
    name_ticks(figure.axes[-1], some(T), [called(task, names) for task in some(T)])
    legend_right(figure, figure.axes[0])
    head(
        figure, stream, "Accuracy on single tasks while the others are learned: mean, 95 % interval"
    )
    return figure


def task_panels(T: int, names: Sequence[str], plt: Any) -> tuple[Any, dict[int, Any]]:
    """A figure of accuracies, and its panels one below the other by the indices of their tasks."""
    tasks = sorted({round(t) for t in np.linspace(0, T - 1, min(PANELS, T))})
    size = (6.4, 1.25 * len(tasks) + 0.6)
    figure, axes = plt.subplots(
        len(tasks), 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, task in zip(axes.flat, tasks, strict=True):
        title = called(task + 1, names) if names else f"task {task + 1}"
        axis.set_ylabel(title, fontsize=8 if names else None)
        axis.grid(alpha=0.3)
    axes[0, 0].set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    figure.supylabel("accuracy (fraction)", fontsize=9)
    return figure, dict(zip(tasks, axes.flat, strict=True))


def average_curves(stream: StreamGroup, matrices: GroupMatrices, plt: Any) -> Any:
    """ACC_k over k."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    T = matrices[0][1][0].shape[1]
    curves(axis, np.arange(1, T + 1), stream, matrices, average_accuracy)
    axis.set(xlabel="tasks trained so far", ylabel="mean accuracy on them (fraction)")
    names = task_names([group for group, _ in matrices], stream)
    name_ticks(axis, some(T), [called(task, names) for task in some(T)])
    axis.set(ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    head(figure, stream, "Average accuracy on the tasks learned so far: mean, 95 % interval")
    return figure


@dataclass(frozen=True, kw_only=True)
class Course:
    """A run at all of its evaluations."""

    accuracies: dict[tuple[int, int], Sequence[float]]  # per task; (after_task, step) of each
    steps: list[float]  # optimizer steps of each task


def read_courses(group: Group, stream: StreamGroup) -> list[Course]:
    """Those of a group's runs that were evaluated within their tasks."""
    found = [read_course(run, stream) for run in group.runs.values()]
    return [course for course in found if course is not None]


def read_course(run: Run, stream: StreamGroup) -> Course | None:
    """None where a file is missing, or tells nothing from within the tasks. Raises UserError."""
    matrix = run.folder / matrix_name("test", stream.reading, stream.scenario)
    paths = (run.folder / ACCURACY_TABLE, run.folder / COST_TABLE, matrix)
    if not all(path.is_file() for path in paths):
        return None
    try:
        R = read_matrix(matrix).tolist()
        within = (read_curves(paths[0], len(R) - 1) or {}).get(("test", stream.reading), [])
        steps = [float(row["steps"]) for row in read_rows(paths[1])][1:]
        if len(R) != 1 + len(steps):
            raise ValueError("their tasks are not the same")
    except (ValueError, KeyError) as error:
        raise UserError(f"cannot read {paths[0]} with {paths[1].name}: {error}") from None
    ends = {(k, 0): row for k, row in enumerate(R)}
    rows = {(int(k), int(step)): row for k, step, *row in within}
    return Course(accuracies=ends | rows, steps=steps) if rows else None


def step_curves(
    stream: StreamGroup,
    courses: Sequence[tuple[Group, list[Course]]],
    bounds: GroupMatrices,
    plt: Any,
) -> Any:
    """Accuracy over the optimizer steps, after figure 1 of De Lange et al. 2023 (arXiv 2205.13452).

    Where runs took different numbers of steps for a task, its part of each is scaled to their mean.
    Bounds, which learn other tasks at other times, are shown as what they are at the end.
    """
    steps = np.array([course.steps for _, found in courses for course in found])
    widths = steps.mean(0)
    starts = np.array([0.0, *np.cumsum(widths)])
    T = len(widths)
    names = task_names([group for group, _ in courses], stream)
    figure, panels = task_panels(T, names, plt)
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
        turned: dict[str, Any] = {"rotation": 40, "ha": "left"} if names else {"ha": "center"}
        text = f"learns {called(task, names)}"
        top.text(place, 1.03, text, transform=height, fontsize=8, **turned)
    scaled = "" if (steps == steps[0]).all() else ", each task scaled to the mean of the runs"
    bottom.set_xlabel(f"optimizer steps{scaled} (grey: not yet trained)")
    legend_right(figure, top)
    text = "Accuracy on single tasks within the training of all: mean, 95 % interval"
    head(figure, stream, text, len(courses) + len(bounds))
    return figure


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """What the classes were taken for, and what they are called."""

    counts: Counter[tuple[int, int]]  # (class, predicted) -> samples
    names: dict[int, str]  # of classes; of none where the tasks have no names


def read_confusion(group: Group, stream: StreamGroup) -> Confusion:
    """What a group's runs took each class for after the last task, all runs together.

    Raises UserError for a file that is none of cl-run.
    """
    counts, names = Counter[tuple[int, int]](), dict[int, str]()
    for run in group.runs.values():
        path = run.folder / CONFUSION_TABLE
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
                for key, beside in CLASSES.items():
                    if row.get(beside):
                        names[int(row[key])] = row[beside]
        except (ValueError, KeyError) as error:
            raise UserError(f"cannot read {path}: {error}") from None
    return Confusion(counts=counts, names=names)


def confusion_matrices(
    stream: StreamGroup, confusions: Sequence[tuple[Group, Confusion]], plt: Any
) -> Any:
    """A panel per group, the rows as fractions of their class."""
    K = 1 + max(max(pair) for _, found in confusions for pair in found.counts)
    names = {c: name for _, found in confusions for c, name in found.names.items()}
    tables = []
    for group, found in confusions:
        table = np.zeros((K, K))
        for pair, count in found.counts.items():
            table[pair] = count
        tables.append((group, table / np.maximum(table.sum(1, keepdims=True), 1)))
    figure, columns = tiles(tables, "fraction of the class's samples", plt, zeros=False)
    marked = range(0, K, -(-K // 10))
    classes = [short(names.get(c, str(c))) for c in marked]
    for i, axis in enumerate(figure.axes[: len(tables)]):
        name_ticks(axis, marked, classes)
        axis.set_yticks(marked, classes)
        axis.set_xlabel("taken for class")
        if i % columns == 0:
            axis.set_ylabel("class" if names else "class (output of the network)")
    text = "Confusion after the last task, the test samples of all seeds together"
    head(figure, stream, text, len(tables))
    return figure
