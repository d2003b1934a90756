r"""Draw docs/permuted_mnist.png: accuracy on each task while ten are learnt, as EWC's fig. 2A.

    cl-run -m experiment=kirkpatrick2017/naive_permuted,kirkpatrick2017/ewc_permuted \
        hydra.sweep.dir=DIR
    python scripts/draw_readme_picture.py DIR

One panel per task (Kirkpatrick et al. 2017, arXiv 1612.00796, figure 2A has three); each curve
starts after the task was trained. Needs matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"naive": "#D55E00", "ewc": "#0072B2"}  # Okabe & Ito: safe for colour-blind readers
NAMES = {"naive": "naive fine-tuning", "ewc": "EWC"}
SHOWN = (1, 2, 4, 6, 8)  # tasks, one panel each


def main() -> None:
    """Read the sweep, average over its seeds, draw."""
    folder = Path(sys.argv[1])
    target = Path(__file__).parents[1] / "docs" / "permuted_mnist.png"
    runs = []
    for summary in folder.glob("*/summary.csv"):
        strategy = pd.read_csv(summary).loc[0, "strategy"]
        tidy = pd.read_csv(summary.parent / "accuracies.csv")
        runs.append(tidy.assign(strategy=strategy, run=summary.parent.name))
    table = pd.concat(runs)
    figure, axes = plt.subplots(len(SHOWN), 1, figsize=(7, 5.6), sharex=True, sharey=True)
    last = int(table.after_task.max())
    for axis, task in zip(axes, SHOWN, strict=True):
        rows = table[(table.eval_task == task) & (table.after_task >= task)]
        for strategy, group in rows.groupby("strategy"):
            curve = group.groupby("after_task").accuracy
            mean, spread = curve.mean(), curve.std()
            axis.plot(mean.index, mean, "o-", ms=3, color=COLOURS[strategy], label=NAMES[strategy])
            axis.fill_between(
                mean.index, mean - spread, mean + spread, color=COLOURS[strategy], alpha=0.2, lw=0
            )
        axis.axvspan(0.5, task - 0.5, color="0.93", lw=0)
        axis.text(0.7, 0.28, f"task {task}", fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(xlim=(0.5, last + 0.5), ylim=(0.2, 1.0), yticks=(0.2, 0.6, 1.0))
    axes[-1].set(xlabel="tasks trained so far (grey: not yet trained)", xticks=range(1, last + 1))
    figure.supylabel("test accuracy", fontsize=10)
    seeds = table.groupby("strategy").run.nunique().min()
    title = f"Permuted MNIST, {last} tasks: mean and SD of {seeds} seeds"
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, loc="upper right", fontsize=9, frameon=False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    print(target)


if __name__ == "__main__":
    main()
