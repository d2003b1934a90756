"""Do synthetic benchmarks predict real drift? Ranks of eight strategies, and Kendall's tau.

    python scripts/real_streams.py                     run them (an hour)
    python scripts/real_streams.py --from multirun/... read finished sweeps instead

Eight strategies with the options that they have by default, five seeds each, on Permuted MNIST,
Split MNIST and three embedded real streams (weather, flights, letter).
Tau (the b form, which allows for ties) compares two benchmarks' orders of the strategies by mean
ACC: 1 the same order, 0 no relation, -1 the opposite one. With eight strategies a two-sided exact
test needs |tau| of at least 0.643 for p < 0.05. Beside it stands how far the best strategy of the
one is from the best of the other, there: what who trusts the synthetic benchmark loses.

Writes results/real_streams.csv, results/real_streams_tau.csv, docs/real_streams.png, and the tables
in docs/real_streams.md between its markers. Needs matplotlib, and MNIST below data.root.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path

import pandas as pd
from reproduce import ROOT, into_page

PAGE = ROOT / "docs" / "real_streams.md"
RANKS = ("<!-- ranks: made by scripts/real_streams.py -->", "<!-- end of ranks -->")
TAUS = ("<!-- taus: made by scripts/real_streams.py -->", "<!-- end of taus -->")
SYNTHETIC = ("permuted_mnist", "split_mnist")
REAL = ("weather", "flights", "split_letter")
BENCHMARKS = (*SYNTHETIC, *REAL)
STRATEGIES = ("naive", "ewc", "si", "lwf", "agem", "er", "derpp", "gdumb")
SEEDS = "0,1,2,3,4"


def run(folder: Path, jobs: int) -> None:
    """One sweep for each benchmark."""
    for benchmark in BENCHMARKS:
        command = [
            str(Path(sys.executable).with_name("cl-run")),
            *("-m", f"benchmark={benchmark}", f"strategy={','.join(STRATEGIES)}", f"seed={SEEDS}"),
            *("verbose=false", f"hydra.sweep.dir={folder / benchmark}"),
        ]
        parallel = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}", "threads=1"]
        subprocess.run(command + (parallel if jobs > 1 else []), check=True)


def read(folders: list[Path]) -> pd.DataFrame:
    """A row per benchmark and strategy: mean and standard deviation of ACC over the seeds, rank.

    next_task_accuracy is the mean accuracy on the task that comes, where tasks share their classes.
    """
    files = [path for folder in folders for path in sorted(folder.rglob("summary.csv"))]
    runs = pd.concat(
        [pd.read_csv(path) for path in files if path.with_name("config.yaml").exists()]
    )
    runs = runs[runs.benchmark.isin(BENCHMARKS)].drop_duplicates(["benchmark", "strategy", "seed"])
    diverged = runs[runs.status == "failed"].groupby(["benchmark", "strategy"]).size()
    groups = runs[runs.status == "complete"].groupby(["benchmark", "strategy"])
    rows = groups.agg(
        scenario=("scenario", "first"),
        n=("seed", "nunique"),
        ACC=("ACC", "mean"),
        ACC_sd=("ACC", "std"),
        next_task_accuracy=("next_task_accuracy", "mean"),
    ).reset_index()
    rows.loc[rows.scenario != "domain", "next_task_accuracy"] = float("nan")
    keys = zip(rows.benchmark, rows.strategy, strict=True)
    rows["diverged"] = [int(diverged.get(key, 0)) for key in keys]
    rows["rank"] = rows.groupby("benchmark").ACC.rank(ascending=False)
    return rows


def taus(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per pair of benchmarks: tau, its p, and what trusting the one loses on the other."""
    from scipy.stats import kendalltau

    acc = rows.pivot_table(index="strategy", columns="benchmark", values="ACC")
    found = []
    for one, other in combinations([b for b in BENCHMARKS if b in acc], 2):
        result = kendalltau(acc[one], acc[other])
        lost = acc[other].max() - acc.loc[acc[one].idxmax(), other]
        found.append(
            {
                "benchmark": one,
                "other": other,
                "tau": result.statistic,
                "p": result.pvalue,
                "best": acc[one].idxmax(),
                "best_of_other": acc[other].idxmax(),
                "ACC_lost": lost,
            }
        )
    return pd.DataFrame(found)


def ranks_table(rows: pd.DataFrame) -> str:
    """ACC and rank by strategy and benchmark."""
    there = [b for b in BENCHMARKS if b in set(rows.benchmark)]
    cells = rows.set_index(["strategy", "benchmark"])
    order = rows.groupby("strategy")["rank"].mean().sort_values().index
    lines = [f"| strategy | {' | '.join(there)} |", "|---|" + "---|" * len(there)]
    for strategy in order:
        values = [cells.loc[(strategy, b)] for b in there]
        texts = [f"{v['rank']:g}. {v.ACC:.3f} ± {v.ACC_sd:.3f}{lost(v.diverged)}" for v in values]
        lines.append(f"| {strategy} | {' | '.join(texts)} |")
    lines += [
        "",
        "Rank, mean ACC and its standard deviation over five seeds.",
    ]
    following = rows.dropna(subset=["next_task_accuracy"])
    following = following[following.benchmark.isin(REAL)]
    if len(following):
        named = [b for b in REAL if b in set(following.benchmark)]
        lines += ["", f"| accuracy on the next task | {' | '.join(named)} |"]
        lines += ["|---|" + "---|" * len(named)]
        for strategy in order:
            values = [cells.loc[(strategy, b)].next_task_accuracy for b in named]
            lines.append(f"| {strategy} | {' | '.join(f'{v:.3f}' for v in values)} |")
    return "\n".join(lines)


def lost(diverged: float) -> str:
    """How many runs diverged, which are in no mean."""
    return f" ({diverged:g} diverged)" if diverged > 0 else ""


def taus_table(table: pd.DataFrame) -> str:
    """Tau and what is lost, by pair."""
    lines = [
        "| order on | against that on | tau | p | best here, there | ACC lost there |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        best = f"{row.best}, {row.best_of_other}"
        lines.append(
            f"| {row.benchmark} | {row.other} | {row.tau:+.2f} | {row.p:.3f} | {best} "
            f"| {row.ACC_lost:.3f} |"
        )
    return "\n".join(lines)


def draw(rows: pd.DataFrame, target: Path) -> None:
    """Each strategy's rank over the benchmarks, a line each."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    there = [b for b in BENCHMARKS if b in set(rows.benchmark)]
    ranks = rows.pivot_table(index="strategy", columns="benchmark", values="rank")[there]
    figure, axis = plt.subplots(figsize=(7, 3.6))
    colours = [
        "#000000",
        "#E69F00",
        "#56B4E9",
        "#009E73",
        "#F0E442",
        "#0072B2",
        "#D55E00",
        "#CC79A7",
    ]
    for colour, (strategy, values) in zip(colours, ranks.iterrows(), strict=True):
        axis.plot(range(len(there)), values, "o-", color=colour, lw=2, ms=6)
        axis.annotate(
            strategy,
            (len(there) - 1, values.iloc[-1]),
            (8, 0),
            textcoords="offset points",
            va="center",
        )
        axis.annotate(
            strategy,
            (0, values.iloc[0]),
            (-8, 0),
            textcoords="offset points",
            va="center",
            ha="right",
        )
    axis.axvspan(-0.5, len(SYNTHETIC) - 0.5, color="0.94", lw=0)
    axis.set(xticks=range(len(there)), xlim=(-0.7, len(there) - 0.3), ylabel="rank by ACC")
    axis.set_xticklabels([b.replace("_", " ") for b in there])
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("synthetic (grey) and real streams", fontsize=9, loc="left")
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def main() -> None:
    """Run or read, rank, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folders", nargs="+", type=Path, help="finished sweeps")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (joblib's launcher)")
    arguments = parser.parse_args()
    if arguments.folders:
        rows = read(arguments.folders)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), arguments.jobs)
            rows = read([Path(folder)])
    table = taus(rows)
    rows.to_csv(ROOT / "results" / "real_streams.csv", index=False)
    table.to_csv(ROOT / "results" / "real_streams_tau.csv", index=False)
    into_page(RANKS, ranks_table(rows), PAGE)
    into_page(TAUS, taus_table(table), PAGE)
    draw(rows, ROOT / "docs" / "real_streams.png")
    print(ranks_table(rows), taus_table(table), sep="\n\n")


if __name__ == "__main__":
    main()
