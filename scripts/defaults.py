"""What every strategy does with no option at all, on small streams and on MNIST.

    python scripts/defaults.py                    all (five hours on two cores, half of it mer)
    python scripts/defaults.py --only er,mir      some strategies; the others' rows stay
    python scripts/defaults.py --on split_digits  some streams; the others' rows stay
    python scripts/defaults.py --folder DIR       keep the runs, repeat none that is complete
    python scripts/defaults.py --seeds 1          a third of the time; naive has three seeds always,
                                                  and what is complete in the folder counts
    python scripts/defaults.py --costs            the table of costs alone, of all or --only some
                                                  (some minutes on one core)

Each run is `cl-run strategy=X benchmark=Y scenario=Z seed=N threads=1` in a process of its own, so
that its peak memory is its own: three seeds on the digits, one on MNIST. Writes
results/defaults.csv and docs/defaults.md. With --costs, what training takes is measured in this
process, each strategy between trainings of naive, and written to results/costs.csv and the page.
Exits with 1 if a run did not end, is not finite, or is below naive fine-tuning by more than seeds
explain (see `worse`) though its paper claims to forget less.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pandas as pd
import throughput
from reproduce import ROOT

from cl_runner import strategies
from cl_runner.config.schema import SCENARIOS
from cl_runner.results import status
from cl_runner.running.footprint import at_most, total
from cl_runner.running.tasks import initial_state, train_task

SEEDS = {
    "split_digits": (0, 1, 2),
    "permuted_digits": (0, 1, 2),
    "rotated_digits": (0, 1, 2),
    "split_mnist": (0,),
    "permuted_mnist": (0,),
}
SAMPLE_BY_SAMPLE = ("mer",)  # takes minutes where others take seconds: one seed
# Ten tasks of 60,000 samples: in the first of these that a strategy has; naive, the bound, in all.
ONE_SCENARIO = {"permuted_mnist": ("domain", "class", "task")}
CSV = ROOT / "results" / "defaults.csv"
COSTS = ROOT / "results" / "costs.csv"
PAGE = ROOT / "docs" / "defaults.md"
# What claims nothing against fine-tuning: itself, with a growing output layer or frozen features.
NO_CLAIM = ("naive", "expandable_head", "frozen_features")
# What is below fine-tuning on a stream unlike its paper's, and why; the page says it, too. GDumb's
# authors' code (drimpossible/GDumb) cuts data sets into tasks with classes of their own
# (src/dataloader.py).
EXPLAINED = {
    ("gdumb", "permuted_mnist"): (
        "learns from its 500 samples alone, 5 of each digit of a permutation, where naive sees "
        "60,000 once. The paper's streams bring new classes, which naive forgets at once"
    ),
    ("ncm", "permuted_mnist"): (
        "has one mean for each digit over all ten permutations, and is linear. On tasks with "
        "classes of their own each class has a mean of its own"
    ),
    ("supsup", "permuted_mnist"): (
        "learns masks of random weights, for which an epoch of the default optimizer is short: "
        "with `optimizer=adam`, and nothing else, ACC is 0.946 (seed 0)"
    ),
    ("piggyback", "permuted_mnist"): (
        "learns masks by real numbers of some 0.01, for which an epoch of the default optimizer is "
        "short: with `optimizer=adam`, and nothing else, ACC is 0.922 (seed 0)"
    ),
}
MEASURED = ("status", "ACC", "forgetting", "train_seconds", "steps", "peak_memory_bytes")
SLACK = 0.02  # of ACC, besides the spread between seeds
INTRODUCTION = """\
# Every strategy with no option

This page says what every strategy does with no option at all, measured on five streams.

`cl-run strategy=X benchmark=Y scenario=Z`, one CPU thread, and nothing else: the default network
(MLP 256-256), the default optimizer (SGD 0.1) and each strategy's own defaults, none of them tuned
for the stream. Mean ACC (and forgetting) over up to three seeds on the digits, one seed on MNIST.
The peak memory of the process is that of the first row that the strategy has. Empty: the strategy
is not defined there, or, on `permuted_mnist`, was run in domain-IL, which is that stream's usual
scenario. `mer`, which takes one sample after another, has one seed. For tuned settings see the
presets. Made by `python scripts/defaults.py`; the numbers, their spread and how many seeds they
have are in `results/defaults.csv`.
"""
COSTS_INTRODUCTION = """\
## What they cost

Training on the second task of `split_digits` (289 samples, batches of 128, 20 epochs), with all
that a strategy does before, between and after its steps, in units of naive's: the processor's
seconds of one thread, measured in one process between trainings of naive, and FLOPs. How exact the
times are says naive's own row. In steps so small much of the time is not arithmetic: at another
size it is the FLOPs that tell. A strategy without steps has its pass and solution counted; of what
trains on all tasks at once, a fifth is. Bytes are those that a run keeps at most between its tasks
(buffered samples at the data set's own precision, and the rest of a strategy's memory), besides the
network that naive trains: less than none where there is no such network. Made by `python
scripts/defaults.py --costs`; the numbers are in `results/costs.csv`.
"""


class Cell(NamedTuple):
    """One row of the table: a strategy on a stream."""

    strategy: str
    benchmark: str
    scenario: str

    def seeds(self, most: int = 3) -> tuple[int, ...]:
        """Those that are run; of naive, the bound, whatever `most` says."""
        if self.strategy in SAMPLE_BY_SAMPLE:
            return (0,)
        return SEEDS[self.benchmark][: None if self.strategy == "naive" else most]


def cells(only: list[str]) -> list[Cell]:
    """Every strategy in each scenario that it has, on each benchmark on which it is run."""
    return [
        Cell(strategy, benchmark, scenario)
        for benchmark in SEEDS
        for scenario in SCENARIOS
        for strategy in only
        if scenario in scenarios_of(strategy, benchmark)
    ]


def scenarios_of(strategy: str, benchmark: str) -> Sequence[str]:
    """Those in which a strategy is run on a benchmark."""
    own = strategies.find(strategy).scenarios
    if benchmark not in ONE_SCENARIO or strategy == "naive":
        return own
    return [s for s in ONE_SCENARIO[benchmark] if s in own][:1]


def place(cell: Cell, seed: int, folder: Path) -> Path:
    """Where a run is kept."""
    return folder / "-".join((*cell, str(seed)))


def is_complete(cell: Cell, seed: int, folder: Path) -> bool:
    """Whether a run is there already."""
    return status.read(place(cell, seed, folder)).get("state") == "complete"


def run(cell: Cell, seed: int, folder: Path) -> dict[str, Any]:
    """The summary of one run; of one that failed, what there is of it and its status."""
    out = place(cell, seed, folder)
    command = [
        str(Path(sys.executable).with_name("cl-run")),
        *(f"strategy={cell.strategy}", f"benchmark={cell.benchmark}"),
        *(f"scenario={cell.scenario}", f"seed={seed}", "threads=1", "verbose=false"),
        *(f"hydra.run.dir={out}", "resume=true"),
    ]
    if not is_complete(cell, seed, folder):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        print(*cell, seed, done.stderr.strip() or "ended", flush=True)
    summary = out / "summary.csv"
    row = pd.read_csv(summary).loc[0].to_dict() if summary.exists() else {"status": "failed"}
    return {**cell._asdict(), **{name: row.get(name, math.nan) for name in MEASURED}}


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per cell: means over the seeds, the spread of ACC, the fastest, the largest memory."""
    rows = []
    for cell, own in runs.groupby(list(Cell._fields), sort=False):
        complete = (own.status == "complete").all()
        rows.append(
            {
                **dict(zip(Cell._fields, cell, strict=True)),
                "n": len(own),
                "status": "complete" if complete else "failed",
                "ACC": own.ACC.mean().round(4),
                "ACC_sd": own.ACC.std().round(4),
                "forgetting": own.forgetting.mean().round(4),
                "train_seconds": own.train_seconds.mean().round(1),
                "peak_memory_MB": (own.peak_memory_bytes.max() / 1e6).round(),
            }
        )
    return pd.DataFrame(rows)


def worse(rows: pd.DataFrame) -> list[str]:
    """What is below naive by more than seeds explain, or did not end; but see EXPLAINED.

    By more than three standard deviations of the difference of two means, and SLACK. One seed has
    no spread of its own: it takes that of naive on the digits in the same scenario.
    """
    found = []
    naive = rows[rows.strategy == "naive"].set_index(["benchmark", "scenario"])
    for row in rows.itertuples():
        name = f"{row.strategy} on {row.benchmark}, {row.scenario}-IL"
        if row.status != "complete" or pd.isna(row.ACC):
            found.append(f"{name}: {row.status}")
            continue
        bound = naive.loc[(row.benchmark, row.scenario)]
        digits = naive.loc[(row.benchmark.replace("mnist", "digits"), row.scenario)]
        spread = bound.ACC_sd if bound.n > 1 else digits.ACC_sd
        own = row.ACC_sd if row.n > 1 else spread
        margin = SLACK + 3 * (spread**2 / bound.n + own**2 / row.n) ** 0.5
        lost = bound.ACC - row.ACC
        explained = (row.strategy, row.benchmark) in EXPLAINED
        if row.strategy not in NO_CLAIM and (lost > margin) != explained:
            why = "EXPLAINED, but not below naive: " if explained else ""
            found.append(f"{name}: {why}ACC {row.ACC}, naive {bound.ACC}, margin {margin:.3f}")
    return found


def costs(only: list[str], data: Path) -> pd.DataFrame:
    """What training takes and what is kept, by strategy, on split_digits, in this process.

    The second of the five tasks, with all that a strategy does before, between and after its steps:
    the processor's seconds of one thread between two times three trainings of naive in the same
    scenario, and FLOPs. The bytes are those besides the network that naive trains.
    """
    rows = []
    for name in only:
        scenario = next(s for s in reversed(SCENARIOS) if s in strategies.find(name).scenarios)
        short = ("training.iterations=2",) if name in SAMPLE_BY_SAMPLE else ()
        chosen = ("benchmark=split_digits", f"scenario={scenario}", *short)
        naive, own = (second_task(data, f"strategy={s}", *chosen) for s in ("naive", name))
        before = [naive() for _ in range(3)]
        seconds, flops, size = own()
        plain = [*before, *(naive() for _ in range(3))]
        rows.append(
            {
                "strategy": name,
                "scenario": scenario,
                "seconds": round(seconds, 3),
                "times_naive_seconds": round(seconds / median(p[0] for p in plain), 2),
                "flops": flops,
                "times_naive_flops": round(flops / plain[0][1], 2),
                "bytes_beside_the_network": size - plain[0][2],
            }
        )
        print(*rows[-1].values(), flush=True)
    return pd.DataFrame(rows)


def second_task(data: Path, *overrides: str) -> Callable[[], tuple[float, int, int]]:
    """Trainings on the second task, after the first: seconds, FLOPs, and the bytes kept at most.

    Of what trains on all tasks at once in the first, a share of that.
    """
    strategy, env = throughput.member(data, 1, *overrides)
    s, tasks = initial_state(strategy, env), env.num_tasks if strategy.whole_sequence else 1
    if tasks == 1:
        s = train_task(strategy, s, env.stream[0], env)
    task = env.stream[0 if tasks > 1 else 1]

    def turn() -> tuple[float, int, int]:
        flops, begun = env.meter.flops, time.process_time()
        train_task(strategy, s, task, env)
        seconds = time.process_time() - begun
        return seconds / tasks, (env.meter.flops - flops) // tasks, total(at_most(strategy, env))

    return turn


def costs_table(rows: pd.DataFrame) -> str:
    """The section of docs/defaults.md on costs."""
    lines = [COSTS_INTRODUCTION]
    for unit, of in (("time", rows.times_naive_seconds), ("FLOPs", rows.times_naive_flops)):
        dear = rows[of > 10].sort_values(of.name, ascending=False)
        told = ", ".join(f"`{r.strategy}` {getattr(r, of.name):.0f}" for r in dear.itertuples())
        lines.append(f"More than ten times naive's {unit}: {told or 'none'}.\n")
    lines.append("| strategy | scenario | time | FLOPs | bytes |\n|---|---|---|---|---|")
    lines += [
        f"| `{row.strategy}` | {row.scenario} | {row.times_naive_seconds:.1f} "
        f"| {row.times_naive_flops:.1f} | {row.bytes_beside_the_network:,} |"
        for row in rows.itertuples()
    ]
    return "\n".join(lines) + "\n"


def page(rows: pd.DataFrame) -> str:
    """docs/defaults.md."""
    parts = [INTRODUCTION, costs_table(pd.read_csv(COSTS))]
    for benchmark in SEEDS:
        here = rows[rows.benchmark == benchmark]
        found = [s for s in SCENARIOS if s in set(here.scenario)]
        heads = [*(f"{s}-IL" for s in found), "peak MB"]
        parts.append(f"## `{benchmark}`\n")
        parts.append(f"| strategy | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
        for strategy, own in here.groupby("strategy"):
            values = []
            for scenario in found:
                cell = own[own.scenario == scenario]
                if not len(cell):
                    values.append("")
                elif cell.iloc[0].status != "complete":
                    values.append("failed")
                else:
                    values.append(f"{cell.iloc[0].ACC:.3f} ({cell.iloc[0].forgetting:.3f})")
            first = own.iloc[0]
            parts.append(f"| `{strategy}` | {' | '.join(values)} | {first.peak_memory_MB:.0f} |")
        for (strategy, stream), why in EXPLAINED.items():
            if stream == benchmark:
                parts.append(f"\nBelow naive: `{strategy}` {why}.")
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Run, write, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(strategies.available()), help="strategies")
    parser.add_argument("--on", default=",".join(SEEDS), help="streams")
    parser.add_argument("--folder", type=Path, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="at most, on the digits")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--costs", action="store_true", help="measure the table of costs alone")
    arguments = parser.parse_args()
    only, on = arguments.only.split(","), arguments.on.split(",")
    unknown = ({*only} - {*strategies.available()}) | ({*on} - {*SEEDS})
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}; a stream is one of {', '.join(SEEDS)}")
    if arguments.costs:
        with tempfile.TemporaryDirectory() as data:
            found = costs(only, Path(data))
        if COSTS.exists():
            kept = pd.read_csv(COSTS)
            found = pd.concat([kept[~kept.strategy.isin(only)], found], ignore_index=True)
        found.sort_values("strategy").to_csv(COSTS, index=False)
        PAGE.write_text(page(pd.read_csv(CSV)), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        work = [
            (cell, seed, folder)
            for cell in cells(only)
            for seed in cell.seeds()
            if cell.benchmark in on
            and (seed in cell.seeds(arguments.seeds) or is_complete(cell, seed, folder))
        ]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            runs = pd.DataFrame(list(pool.map(lambda args: run(*args), work)))
    rows = table(runs)
    if CSV.exists():
        kept = pd.read_csv(CSV)
        again = kept.strategy.isin(only) & kept.benchmark.isin(on)
        rows = pd.concat([kept[~again], rows], ignore_index=True)
        order = {benchmark: i for i, benchmark in enumerate(SEEDS)}
        rows = rows.sort_values(
            ["benchmark", "scenario", "strategy"],
            key=lambda column: column.map(order) if column.name == "benchmark" else column,
        )
    rows.to_csv(CSV, index=False)
    PAGE.write_text(page(rows), encoding="utf-8")
    wrong = worse(rows)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
