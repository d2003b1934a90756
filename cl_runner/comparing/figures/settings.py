"""Figures over a swept setting, and over a network's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cl_runner.comparing.figures.canvas import (
    COLOURS,
    MARKERS,
    SHOWN,
    head,
    label,
    legend_right,
    look,
    mean_and_half,
    scale,
    wrapped,
)
from cl_runner.comparing.table import Group, StreamGroup
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows

CURVE = 3  # values of a swept setting from which on they make a curve
Line = tuple[str, list[tuple[float, Group]]]  # its name, and the groups by their values


def swept(stream: StreamGroup) -> dict[str, list[Line]]:
    """The settings with enough numbers to make a curve: a line per strategy and other settings."""
    found: dict[str, dict[str, list[tuple[float, Group]]]] = {}
    for one in (g for g in stream.groups if g.runs):
        for key, text in one.settings.items():
            value = finite(text)
            if value is not None:
                rest = {k: v for k, v in one.settings.items() if k != key}
                name = replace(one, settings=rest).name
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


def sweep_curve(stream: StreamGroup, key: str, lines: Sequence[Line], plt: Any) -> Any:
    """ACC and forgetting over the values of a setting, with the bounds that have one value."""
    from matplotlib.ticker import NullLocator

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
        axes[0].xaxis.set_minor_locator(NullLocator())
    axes[1].set_xlabel(key)
    legend_right(figure, axes[0])
    part = f", {SHOWN} of {len(lines)} curves" if len(lines) > SHOWN else ""
    text = f"ACC and forgetting by {key}: mean, 95 % interval{part}"
    figure.suptitle(f"{text}\n{stream.title}", fontsize=10, x=0.01, y=1.0, ha="left", va="bottom")
    return figure


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


def overlap_curves(
    stream: StreamGroup, overlaps: Sequence[tuple[Group, Overlaps]], plt: Any
) -> Any:
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
