"""Accuracy against what is kept and against what is computed, for every strategy with a preset.

    python scripts/shelf.py --folder DIR            run what is not there, then write and draw
    python scripts/shelf.py --folder DIR er ewc     only some; the other rows stay
    python scripts/shelf.py                         draw results/shelf.csv again

Split MNIST, class-incremental: `cl-run experiment=preset/split_mnist_class/X`, seed 0, one thread.
Writes results/shelf.csv and docs/shelf.png. Needs MNIST (`data.root` or CL_RUNNER_DATA) and
matplotlib.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from search_presets import VARIANTS

from cl_runner.comparing.figures.canvas import Files, image, styled
from cl_runner.comparing.figures.tradeoffs import front
from cl_runner.comparing.names import display
from cl_runner.results import status
from cl_runner.results.columns import kept_bytes

ROOT = Path(__file__).resolve().parents[1]
PRESETS = "preset/split_mnist_class"
CSV, PICTURE = ROOT / "results" / "shelf.csv", ROOT / "docs" / "shelf.png"
COLUMNS = ("preset", "ACC", "forgetting", "flops", "buffer_samples", "generator_parameters")
REVISIT = ("joint", "cumulative", "from_scratch")  # train on all data again and again
KINDS = {  # what is kept of old tasks: colour (Okabe & Ito) and marker
    "all data": ("#000000", "*"),
    "samples": ("#0072B2", "o"),
    "a generator": ("#009E73", "D"),
    "neither": ("#D55E00", "s"),
}
# Of a label, in points from its mark: near ones first.
PLACES = [
    (x * far, y * far)
    for far in (1, 1.8, 2.8, 4, 5.5, 7.5, 10)
    for x, y in ((6, 0), (-6, 0), (5, 5), (5, -5), (-5, 5), (-5, -5), (0, 7), (0, -7))
]


def run(name: str, folder: Path) -> None:
    """One preset's run, unless it is there."""
    command = [
        str(Path(sys.executable).with_name("cl-run")),
        *(f"experiment={PRESETS}/{name}", "seed=0", "threads=1", "verbose=false"),
        *(f"hydra.run.dir={folder / name}", "resume=true"),
    ]
    if status.read(folder / name).get("state") != "complete":
        subprocess.run(command, check=True)
        print(name, flush=True)


def table_of(names: Sequence[str], folder: Path) -> pd.DataFrame:
    """A row for each run: what is shown of it."""
    runs = pd.concat(
        [pd.read_csv(folder / name / "summary.csv").assign(preset=name) for name in names]
    )
    return runs.reindex(columns=list(COLUMNS)).assign(kept_bytes=runs[kept_bytes()].sum(axis=1))


def kind(own: Any) -> str:
    """What a strategy keeps of old tasks, one of KINDS."""
    if own.preset in REVISIT:
        return "all data"
    if own.generator_parameters > 0:
        return "a generator"
    return "samples" if own.buffer_samples > 0 else "neither"


def label(preset: str) -> str:
    """The name that people know: of the strategy, or of that form of it."""
    strategy, form = VARIANTS.get(preset, (preset, ""))
    key, _, value = form.partition("=")
    return display(strategy, {key: value})


def draw(table: pd.DataFrame, plt: Any) -> Any:
    """Two panels with the same vertical axis, which stretches what is near 1."""
    from matplotlib.ticker import EngFormatter

    figure, axes = plt.subplots(1, 2, figsize=(11, 6.6), sharey=True, layout="constrained")
    costs = {
        "kept_bytes": "kept between tasks: network, buffer and the strategy's own memory (bytes)",
        "flops": "floating-point operations of training per run",
    }
    for axis, (column, told) in zip(axes, costs.items(), strict=True):
        for name, (colour, marker) in KINDS.items():
            own = table[[kind(r) == name for r in table.itertuples()]]
            style = {"color": colour, "marker": marker, "s": 26, "zorder": 3}
            axis.scatter(own[column], own.ACC, label=name, **style)
        learners = table[~table.preset.isin(REVISIT)]
        best = front(list(zip(learners[column], learners.ACC, strict=True)))
        axis.plot(*zip(*best, strict=True), color="0.6", ls="--", zorder=1, label="Pareto front")
        axis.set(xscale="log", yscale="logit", xlabel=told)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ACC (fraction)")
    axes[0].set_ylim(0.12, 0.988)
    ticks = (0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
    axes[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].set_yticks([], minor=True)
    handles, labels = axes[0].get_legend_handles_labels()
    title = "what it has of old tasks"
    figure.legend(handles, labels, loc="outside lower center", ncols=5, title=title)
    figure.suptitle(
        "Split MNIST, class-incremental: each strategy's preset, one seed (best: upper left)",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    for axis, column in zip(axes, costs, strict=True):
        axis.margins(x=0.12)
        write_names(figure, axis, table, column)
    return figure


def write_names(figure: Any, axis: Any, table: pd.DataFrame, column: str) -> None:
    """A name beside each mark: at the first place that covers neither a mark nor a name."""
    figure.canvas.draw()
    marks = axis.transData.transform(table[[column, "ACC"]].to_numpy())
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in marks]
    frame = axis.get_window_extent()
    for own in table.itertuples():
        place = getattr(own, column), own.ACC
        colour = KINDS[kind(own)][0]
        for dx, dy in PLACES:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axis.annotate(
                label(own.preset),
                place,
                (dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=7,
                color=colour,
            )
            box = text.get_window_extent()
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 < frame.y1
            if inside and not any(meets(box.extents, other) for other in taken):
                taken.append(tuple(box.extents))
                if max(abs(dx), abs(dy)) > 10:
                    line = {"arrowstyle": "-", "color": "0.7", "lw": 0.5, "shrinkA": 0}
                    offset = {"textcoords": "offset points", "arrowprops": line}
                    axis.annotate("", place, (dx, dy), **offset)
                break
            text.remove()
        else:
            print(f"no room for {own.preset}")


def meets(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes (left, lower, right, upper) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="presets (default: all)")
    parser.add_argument("--folder", type=Path, help="of the runs")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        there = sorted(path.stem for path in (ROOT / "conf/experiment" / PRESETS).glob("*.yaml"))
        names = arguments.names or there
        if unknown := sorted({*names} - {*there}):
            parser.error(f"no preset of {', '.join(unknown)}")
        for name in names:
            run(name, arguments.folder)
        table = table_of(names, arguments.folder)
        if CSV.exists():
            old = pd.read_csv(CSV)
            table = pd.concat([old[~old.preset.isin(names)], table], ignore_index=True)
        table.sort_values("preset").to_csv(CSV, index=False)
    if not CSV.exists():
        parser.error(f"there is no {CSV.relative_to(ROOT)} to draw yet: --folder makes it")
    with styled("scripts/shelf.py"):
        PICTURE.write_bytes(image(draw(pd.read_csv(CSV), Files), "png"))
    print(PICTURE)


if __name__ == "__main__":
    main()
