"""What a strategy gives up for what: forgetting, stability and plasticity, accuracy and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cl_runner.comparing.figures.canvas import (
    head,
    label,
    legend_right,
    look,
    mean_and_half,
    scale,
    wrapped,
)
from cl_runner.comparing.table import BOUNDS, Group, StreamGroup
from cl_runner.results.columns import kept_bytes

# The first that tells the runs apart is what a run's computation is measured by.
COMPUTE = {
    "flops": "floating-point operations of training",
    "samples": "samples trained on, repetitions counted",
    "train_seconds": "training time (seconds)",
}


def bars(stream: StreamGroup, groups: Sequence[Group], plt: Any) -> Any:
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
    stream: StreamGroup,
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


def mark_front(axis: Any, points: Sequence[tuple[float, float]]) -> None:
    """Rings round the Pareto front, joined by straight lines.

    A point between two neighbours in both directions would be on the front itself, so the lines
    pass through no other point.
    """
    style = {"marker": "o", "ms": 13, "mfc": "none", "mec": "0.5", "color": "0.6", "ls": "--"}
    if points:
        axis.plot(*zip(*front(points), strict=True), label="Pareto front", zorder=0, **style)


def stability(stream: StreamGroup, groups: Sequence[Group], plt: Any) -> Any:
    """Learning accuracy against forgetting: the upper left is best."""
    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")

    def point(group: Group) -> tuple[Any, Any] | None:
        x, y = mean_and_half(group, "forgetting"), mean_and_half(group, "learning_accuracy")
        return None if x is None or y is None else (x, y)

    mark_front(axis, scatter(axis, stream, groups, point))
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
    sizes = [[run.number(name) for name in kept_bytes()] for run in group.runs.values()]
    known = [sum(v for v in own if v is not None) for own in sizes if own[0] is not None]
    return sum(known) / len(known) / 1e6 if known else None


def computation(groups: Sequence[Group]) -> str | None:
    """The column that tells what the groups computed; None if there is none for all of them."""
    for name in COMPUTE:
        means = [g.mean(name) for g in groups]
        if all(mean is not None for mean in means) and (len(set(means)) > 1 or name == "flops"):
            return name
    return None


def against_memory(stream: StreamGroup, groups: Sequence[Group], plt: Any) -> Any:
    """ACC against what is kept between tasks."""
    sizes = {id(g): (m, 0.0) for g in groups if (m := memory(g)) is not None}
    figure = against_price(stream, groups, sizes, plt)
    figure.axes[0].set_xlabel("parameters, buffer and the strategy's own memory (MB)")
    head(figure, stream, "Accuracy against memory (best: upper left): mean, 95 % interval")
    return figure


def against_compute(stream: StreamGroup, groups: Sequence[Group], measure: str, plt: Any) -> Any:
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
    stream: StreamGroup,
    groups: Sequence[Group],
    prices: Mapping[int, tuple[float, float]],
    plt: Any,
) -> Any:
    """ACC against a cost, with the Pareto front of the strategies; bounds are no part of it.

    prices: mean and half of the interval by the identity of the group.
    """
    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")

    def point(group: Group) -> tuple[Any, Any] | None:
        x, y = prices.get(id(group)), mean_and_half(group, "ACC")
        return None if x is None or y is None else (x, y)

    bounds = [g for g in groups if g.strategy in BOUNDS]
    mark_front(axis, scatter(axis, stream, [g for g in groups if g not in bounds], point))
    scatter(axis, stream, bounds, point)
    scale(axis, "x", [x for x, _ in prices.values()])
    axis.set(ylabel="ACC (fraction)", ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    return figure
