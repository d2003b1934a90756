"""Strategies over several streams: performance profiles, ranks and their critical difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cl_runner.comparing.figures.canvas import COLOURS, MARKERS, SHOWN, legend_right, wrapped
from cl_runner.comparing.render import display_names, said_p
from cl_runner.comparing.table import Comparison
from cl_runner.results.columns import larger_is_better


def title(figure: Any, text: str, streams: int) -> None:
    """What is shown, and over how many streams."""
    where = f"{streams} streams, each with the same weight"
    figure.suptitle(f"{text}\n{where}", fontsize=10, x=0.01, y=1.0, ha="left", va="bottom")


def profiles(comparison: Comparison, plt: Any) -> Any:
    """Performance profiles (Agarwal et al. 2021, arXiv 2108.13264, fig. 3), bands pointwise."""
    overall, metric, names = (
        comparison.overall,
        comparison.question.metric,
        display_names(comparison),
    )
    assert overall is not None
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    shown = overall.methods[:SHOWN]
    order = sorted(method.label for method in shown)  # as in `look`
    for method in shown:
        i = order.index(method.label)
        x, share, low, high = np.array(method.profile, dtype=np.float64).T
        style: dict[str, Any] = {"marker": MARKERS[i], "markevery": (i, 12), "ms": 4}
        name = wrapped(names[method.label])
        axis.plot(x, share, color=COLOURS[i], lw=1.3, label=name, **style)
        axis.fill_between(x, low, high, color=COLOURS[i], alpha=0.15, lw=0)
    beyond = "at least" if larger_is_better(metric) else "at most"
    axis.set(xlabel=f"{metric.replace('_', ' ')}, threshold", ylim=(-0.03, 1.03))
    axis.set_ylabel(f"share of runs {beyond} the threshold")
    axis.grid(alpha=0.3)
    legend_right(figure, axis)
    part = f" ({len(shown)} of {len(overall.methods)} methods)" if overall.methods[SHOWN:] else ""
    text = f"Performance profiles (higher is better), 95 % stratified bootstrap{part}"
    title(figure, text, overall.ranking.streams)
    return figure


def rank_diagram(comparison: Comparison, plt: Any) -> Any:
    """Average ranks and Nemenyi's critical difference, after figure 1 of Demsar 2006.

    The methods hang from the axis of ranks, the better half to the left; a bar joins neighbours
    that the test does not tell apart.
    """
    assert comparison.overall is not None
    ranking, names = comparison.overall.ranking, display_names(comparison)
    ranks, k = list(ranking.ranks.values()), len(ranking.ranks)
    bars = alike(ranks, ranking.critical_difference)
    first = 0.8 + 0.5 * len(bars)  # below the axis: the bars, then the names
    half = -(-k // 2)
    figure, axis = plt.subplots(figsize=(6.4, 0.9 + 0.25 * (first + half)), layout="constrained")
    for i, (method, rank) in enumerate(ranking.ranks.items()):
        left = i < half
        y = first + (i if left else k - 1 - i)
        edge, side = (0.9, "right") if left else (k + 0.1, "left")
        axis.plot([rank, rank, edge], [0, y, y], color="0.4", lw=0.9)
        space = " " if side == "left" else ""
        text = f"{space}{names[method]} ({rank:.2f}){'' if space else ' '}"
        axis.text(edge, y, text, ha=side, va="center", fontsize=8)
    for i, (low, high) in enumerate(bars):
        y = 0.5 + 0.5 * i
        axis.plot([low - 0.03, high + 0.03], [y, y], color="black", lw=3, solid_capstyle="butt")
    longest = min(ranking.critical_difference, k - 1)
    axis.errorbar([1 + longest / 2], [-1.6], xerr=[longest / 2], color="black", capsize=3, lw=1)
    cut = "" if longest < k - 1 else ", more than all ranks"
    critical = f"CD = {ranking.critical_difference:.2f}{cut}"
    axis.text(1 + longest / 2, -1.8, critical, ha="center", va="bottom", fontsize=8)
    axis.set(
        xlim=(0.9, k + 0.1), ylim=(first + half - 0.5, -2.6), xticks=range(1, k + 1), yticks=[]
    )
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_position(("data", 0))
    axis.tick_params(axis="x", direction="in", pad=-16)
    p = "" if ranking.friedman_p is None else f", Friedman {said_p(ranking.friedman_p)}"
    title(
        figure,
        f"Average ranks by {comparison.question.metric}; bars: not told apart by Nemenyi's test{p}",
        ranking.streams,
    )
    return figure


def alike(ranks: Sequence[float], critical: float) -> list[tuple[float, float]]:
    """The longest stretches of ranks, in order, within less than the critical difference."""
    ends = [max(other for other in ranks if other - rank < critical) for rank in ranks]
    return [
        (rank, end)
        for i, (rank, end) in enumerate(zip(ranks, ends, strict=True))
        if end > rank and (i == 0 or ends[i - 1] < end)
    ]
