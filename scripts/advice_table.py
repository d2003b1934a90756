"""The table on which `cl-run advise` rests: strategies without options on streams of many kinds.

    python scripts/advice_table.py --until 10:55     run what is missing, until a time (UTC)
    python scripts/advice_table.py --only er,naive   some strategies
    python scripts/advice_table.py --on split_digits streams whose name begins so
    python scripts/advice_table.py --again           forget what is there of these first

Each run is what `cl-run strategy=X scenario=Z seed=N threads=1` and the stream's own settings give:
the default network and optimizer, each strategy's own defaults, none of them tuned. Two seeds,
trained as one state where they can be. ACC is on test data after the last task (eval.tasks=seen
leaves out what needs no reading). The runs are made in this process, in the order of
`STREAMS`; what the table has is not repeated, so the command can be stopped and given again. Writes
cl_runner/advising/results.csv (a row per stream, scenario and strategy) and streams.csv (what is
known of each stream before it is trained on). Needs MNIST, CIFAR-10 and CIFAR-100 in
CL_RUNNER_DATA; the other streams come with the package. What results/real_streams.csv and
results/defaults.csv have of the same commands is taken from there.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Set as AbstractSet
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from hydra import compose, initialize_config_module
from reproduce import ROOT

from cl_runner import strategies
from cl_runner.advising.features import of_stream
from cl_runner.advising.tables import RESULT_COLUMNS, RESULTS, STREAM_COLUMNS, read
from cl_runner.advising.tables import STREAMS as KNOWN
from cl_runner.cli.several import job_of
from cl_runner.config.outline import checked
from cl_runner.errors import UserError
from cl_runner.results.columns import kept_bytes
from cl_runner.results.files import read_rows, write_rows
from cl_runner.results.names import SUMMARY
from cl_runner.running.prepare import prepare, strategy_of
from cl_runner.sweeping.dispatch import run_left
from cl_runner.sweeping.stacks import groups, train_stacked

SEEDS = (0, 1)
STRATEGIES = (  # the bounds first: the others' positions lie between them
    *("naive", "joint", "er", "er_ace", "ncm", "slda", "ridge", "agem", "lwf", "si", "derpp"),
    *("ewc", "icarl", "gpm", "packnet", "separate"),
    # On some streams only: for want of time, not for what they reached.
    *("wa", "hat", "xdg", "owm", "mas", "gdumb", "bir", "cumulative"),
)
FEW = "benchmark.train_samples"


class Named(NamedTuple):
    """A stream of the table: its name, its settings, the scenarios in which it is run."""

    name: str
    overrides: str
    scenarios: str


# By what each adds to the table, and costs: first a stream of every kind, then other sizes.
STREAMS = (
    Named("split_digits", "benchmark=split_digits", "class task domain"),
    Named("permuted_digits", "benchmark=permuted_digits", "domain"),
    Named("flights", "benchmark=flights", "domain"),
    Named("split_mnist_10k", f"benchmark=split_mnist {FEW}=10000", "class task"),
    Named("split_digits_tail", "benchmark=split_digits benchmark.imbalance=10", "class"),
    Named("split_cifar10_5k", f"benchmark=split_cifar10 {FEW}=5000", "class"),
    Named("weather", "benchmark=weather", "domain"),
    Named("split_digits_10", "benchmark=split_digits benchmark.num_tasks=10", "class"),
    Named("label_permuted_digits_500", f"benchmark=label_permuted_digits {FEW}=500", "domain task"),
    Named("split_letter", "benchmark=split_letter", "class"),
    Named("conditions_digits_500", f"benchmark=conditions_digits {FEW}=500", "domain"),
    Named("split_letter_5k", f"benchmark=split_letter {FEW}=5000", "task"),
    Named(
        "rotated_mnist_1k", f"benchmark=rotated_mnist benchmark.num_tasks=5 {FEW}=1000", "domain"
    ),
    Named("split_cifar10_1k", f"benchmark=split_cifar10 {FEW}=1000", "task"),
    Named("split_digits_2", "benchmark=split_digits benchmark.num_tasks=2", "class task"),
    Named("split_mnist_1k", f"benchmark=split_mnist {FEW}=1000", "class"),
    Named(
        "label_permuted_mnist_1k",
        f"benchmark=label_permuted_mnist benchmark.num_tasks=5 {FEW}=1000",
        "domain task",
    ),
    Named("split_letter_2", f"benchmark=split_letter benchmark.num_tasks=2 {FEW}=5000", "class"),
    Named("conditions_mnist_1k", f"benchmark=conditions_mnist {FEW}=1000", "domain"),
    Named("split_fuzzy", f"benchmark=split_mnist {FEW}=5000 benchmark.boundaries=fuzzy", "class"),
    Named(
        "permuted_fuzzy",
        f"benchmark=permuted_digits {FEW}=500 benchmark.boundaries=fuzzy",
        "domain",
    ),
    Named("conditions_cifar10_1k", f"benchmark=conditions_cifar10 {FEW}=1000", "domain"),
    Named("split_cifar100_2k", f"benchmark=split_cifar100 {FEW}=2000", "class task"),
    Named("split_cifar10_1k", f"benchmark=split_cifar10 {FEW}=1000", "domain"),
    Named("split_mnist_tail", "benchmark=split_mnist benchmark.imbalance=50", "class"),
    Named(
        "permuted_digits_20",
        f"benchmark=permuted_digits benchmark.num_tasks=20 {FEW}=300",
        "domain",
    ),
)
# Of these results/real_streams.csv or results/defaults.csv have runs of the same command, at least
# of some strategies; they count neither bytes nor FLOPs.
REUSED = (
    Named("weather", "benchmark=weather", "domain"),
    Named("split_letter", "benchmark=split_letter", "class"),
    Named("rotated_digits", "benchmark=rotated_digits", "domain task class"),
    Named("permuted_digits", "benchmark=permuted_digits", "task class"),
    Named("split_mnist", "benchmark=split_mnist", "class task domain"),
    Named("permuted_mnist", "benchmark=permuted_mnist", "domain"),
)
QUIET = ("threads=1", "verbose=false", "checkpoint.every=null", "eval.tasks=seen")


def composed(*overrides: str) -> Any:
    """A run's configuration, as cl-run composes it."""
    with initialize_config_module("cl_runner.conf", version_base="1.3"):
        return compose("config", [*overrides, *QUIET])


def measure(stream: Named, scenario: str, strategy: str) -> tuple[dict[str, Any], list[float]]:
    """The row of a strategy on a stream, without what is relative to naive, and FLOPs by seed."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for seed in SEEDS:
            own = (*stream.overrides.split(), f"scenario={scenario}", f"strategy={strategy}")
            config = checked(composed(*own, f"seed={seed}"))
            jobs.append(job_of(config, Path(folder) / str(seed), own))
        for group in groups(jobs):
            if len(group) > 1:
                train_stacked(group)
        run_left(jobs)
        failed = [job.outcome for job in jobs if isinstance(job.outcome, Exception)]
        files = [job.out / SUMMARY for job in jobs if not isinstance(job.outcome, Exception)]
        runs = [read_rows(file)[0] for file in files]
    refused = bool(failed) and all(isinstance(error, UserError) for error in failed)
    status = "refused" if refused else "diverged" if failed else "complete"
    if failed:
        print("   ", str(failed[0])[:150], flush=True)

    def values(name: str) -> list[float]:
        return [float(run[name]) for run in runs if run[name] != ""]

    acc = values("ACC")
    spread = round(stdev(acc), 4) if len(acc) > 1 else None
    kept = [sum(float(run[name] or 0) for name in kept_bytes()) for run in runs]
    return {
        "stream": stream.name,
        "scenario": scenario,
        "strategy": strategy,
        "status": status,
        "n": len(acc),
        "ACC": average(acc),
        "ACC_sd": spread,
        "forgetting": average(values("forgetting")),
        "kept_bytes": round(mean(kept)) if kept else None,
        "flops": round(mean(values("flops"))) if runs else None,
        "source": "run",
    }, acc


def reused(there: AbstractSet[tuple[str, ...]]) -> list[dict[str, Any]]:
    """The rows that other tables of results/ have, and that were not run for this one."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for source in ("real_streams", "defaults"):  # the first has five seeds
        for row in read_rows(ROOT / "results" / f"{source}.csv"):
            key = row["benchmark"], row["scenario"], row["strategy"]
            ours = any(s.name == key[0] and key[1] in s.scenarios.split() for s in REUSED)
            if not ours or key[2] not in STRATEGIES or key in there or key in found:
                continue
            columns = ("ACC", "ACC_sd", "forgetting")
            numbers = {c: round(float(row[c]), 4) if row.get(c) else None for c in columns}
            whole = row.get("status", "complete") == "complete" and row.get("diverged", "0") == "0"
            found[key] = {
                **dict(zip(("stream", "scenario", "strategy"), key, strict=True)),
                **numbers,
                "status": "complete" if whole else "diverged",
                "n": int(row["n"]),
                "kept_bytes": None,
                "flops": None,
                "source": source,
            }
    return list(found.values())


@cache
def needs(strategy: str, scenario: str) -> dict[str, int]:
    """Whether a strategy must be told where tasks begin, and whether detected ones will not do."""
    own = strategy_of(checked(composed(f"strategy={strategy}", f"scenario={scenario}")))
    return {
        "needs_borders": int(bool(own.needs_borders(scenario))),
        "needs_tasks": int(bool(own.needs_tasks(scenario))),
    }


def average(values: list[float]) -> float | None:
    """The mean of those that are numbers; None without any."""
    numbers = [v for v in values if math.isfinite(v)]
    return round(mean(numbers), 4) if numbers else None


def features(stream: Named, scenario: str) -> dict[str, Any]:
    """The row of a stream: what is known before it is trained on."""
    overrides = (*stream.overrides.split(), f"scenario={scenario}", "strategy=naive")
    config = checked(composed(*overrides))
    env = prepare(config, strategy_of(config))
    known = of_stream(config, env.stream)
    return {"stream": stream.name, "settings": stream.overrides, **known}


def main() -> None:
    """Run what is missing and write the tables after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--until", help="HH:MM of UTC, after which nothing is begun")
    parser.add_argument("--only", default=",".join(STRATEGIES), help="strategies")
    parser.add_argument("--on", default="", help="streams whose name begins so")
    parser.add_argument("--again", action="store_true", help="repeat these")
    chosen = parser.parse_args()
    only = chosen.only.split(",")
    streams, rows = read(KNOWN), [row for row in read(RESULTS) if row["source"] == "run"]
    rows += reused({(r["stream"], r["scenario"], r["strategy"]) for r in rows})
    for stream in REUSED:
        for scenario in stream.scenarios.split():
            if not any(is_of(s, (stream.name, scenario)) for s in streams):
                streams.append(features(stream, scenario))
    asked = [s for s in STREAMS if s.name.startswith(chosen.on)]
    for stream, scenario in ((s, z) for s in asked for z in s.scenarios.split()):
        key = (stream.name, scenario)
        if chosen.again:
            streams = [s for s in streams if (s["stream"], s["scenario"]) != key]
            rows = [r for r in rows if not (is_of(r, key) and r["strategy"] in only)]
        if not any(is_of(s, key) for s in streams):
            streams.append(features(stream, scenario))
            write_rows(KNOWN, [{c: s[c] for c in STREAM_COLUMNS} for s in streams])
        for strategy in missing(key, only, rows):
            if chosen.until and datetime.now(timezone.utc).strftime("%H:%M") >= chosen.until:
                return
            began = time.perf_counter()
            row, acc = measure(stream, scenario, strategy)
            took = time.perf_counter() - began
            print(*key, strategy, row["status"], acc, f"{took:.1f} s", flush=True)
            rows.append(row)
            whole = [r | needs(r["strategy"], r["scenario"]) for r in rows]
            write_rows(RESULTS, [{c: r[c] for c in RESULT_COLUMNS} for r in whole])


def is_of(row: dict[str, Any], key: tuple[str, str]) -> bool:
    """Whether a row is of a stream in a scenario."""
    return (row["stream"], row["scenario"]) == key


def missing(key: tuple[str, str], only: list[str], rows: list[dict[str, Any]]) -> list[str]:
    """The strategies that are defined in the scenario and not yet in the table."""
    there = {row["strategy"] for row in rows if is_of(row, key)}
    return [s for s in only if s not in there and key[1] in strategies.find(s).scenarios]


if __name__ == "__main__":
    main()
