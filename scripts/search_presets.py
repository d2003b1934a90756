"""Search hyper-parameters on validation data and write the presets of conf/experiment/preset/.

    python scripts/search_presets.py --folder DIR                       all presets
    python scripts/search_presets.py --folder DIR split_mnist_class/er  some
    python scripts/search_presets.py --only-table                       none: the table anew

A preset is a protocol, PROTOCOL.yaml of conf/protocol/, with one strategy. Its grid is one sweep of
cl-run with a tenth of the training samples kept for validation, on the first five of Permuted
MNIST's ten tasks; of the point of the highest validation ACC, what differs from the protocol is
written, with the command and the grid, to conf/experiment/preset/PROTOCOL/STRATEGY.yaml. Finished
sweeps in DIR are not run again. The table in docs/presets.md is of what all these files say.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from reproduce import ROOT, into_page

from cl_runner import strategies
from cl_runner.cli import choices
from cl_runner.cli.catalogue import FAMILIES
from cl_runner.config.versions import BASE

PRESETS = ROOT / "conf" / "experiment" / "preset"
PAGE = ROOT / "docs" / "presets.md"
TABLE = ("<!-- presets: made by scripts/search_presets.py -->", "<!-- end of presets -->")
# Of all data at once, or with a network for each task: no learner of one task after another.
BOUNDS = {"joint", "soft_sharing", "cumulative", "from_scratch", "separate"}
MNIST = {  # protocol -> what the preset's first line says of it
    "split_mnist_task": "Split MNIST",
    "split_mnist_class": "Split MNIST",
    "permuted_mnist": "Permuted MNIST, ten tasks",
}
EMBEDDED = {
    "split_digits": "8x8 digits, five tasks of two",
    "split_letter": "Letters, 13 tasks of two",
    "weather": "Weather, 50 years",
    "flights": "Flights, 12 months",
}
TITLES = MNIST | EMBEDDED
SEARCHED = {"permuted_mnist": {"num_tasks": 5}}  # instead of the protocol's ten
GROUPS = ("benchmark", "model", "optimizer", "training")  # of the strategy all keys are written
RATE = "optimizer.lr=0.0003,0.001,0.003"
PLAIN = "optimizer=sgd optimizer.lr=0.03,0.1"  # methods that constrain a gradient want SGD
BUFFER = "strategy.buffer_size=500"
LOSS = "strategy.penalty=loss"  # as the papers have it; with Adam it needs no bound
# What is slow, or was searched last, is searched on a fifth of Permuted MNIST's training data.
FIFTH = "benchmark.train_fraction=0.2"
ON_A_FIFTH = {
    *("adam_nscl", "agem", "bir", "den", "diffusion", "fromp", "gpm", "la_maml", "latent_replay"),
    *("mer", "ogd", "packnet", "pnn", "ridge", "scr", "slda", "soft_sharing", "xdg"),
}
# A preset of a strategy in another of its forms has a name of its own: strategy, and what makes it.
VARIANTS = {
    "ewc_kron": ("ewc", "strategy.curvature=kron"),
    "diffusion": ("generative_replay", "strategy.generator=diffusion"),
}
POLICIES = "strategy.policy=reservoir,class_balanced,ring,herding"
# The authors of MER train on 1,000 samples of each task, one after another.
MER = f"{PLAIN} {BUFFER} training.batch_size=10 training.iterations=100 strategy.beta=0.1,0.3"
GRIDS: dict[str, str | dict[str, str]] = {
    "naive": RATE,
    "joint": RATE,
    "cumulative": RATE,
    "from_scratch": RATE,
    "separate": RATE,
    "frozen_features": RATE,
    "l2": "strategy.lambda=0.001,0.01,0.1,1,10",
    "ewc": f"{LOSS} strategy.lambda=1,10,100,1000,10000",
    "ewc_kron": f"{LOSS} strategy.lambda=1,10,100,1000,10000",
    "si": f"{LOSS} strategy.lambda=0.1,1,10,100 strategy.damping=0.001,0.1",
    "mas": f"{LOSS} strategy.lambda=0.01,0.1,1,10,100",
    "rwalk": f"{LOSS} strategy.lambda=0.1,0.3,1,3,10",
    "lwf": {
        "split_mnist_task": "strategy.lambda=0.3,1,3 strategy.weight=fixed,growing",
        "split_mnist_class": (
            "strategy.over=seen strategy.lambda=0.3,1,3 strategy.weight=fixed,growing"
        ),
        "permuted_mnist": "strategy.lambda=0.3,1,3 strategy.weight=fixed,growing",
    },
    "er": f"{BUFFER} {POLICIES} strategy.weighting=concatenation,task_share",
    "er_ace": f"{BUFFER} {POLICIES}",
    "der": f"{BUFFER} strategy.alpha=0.1,0.3,1,3",
    "derpp": f"{BUFFER} strategy.alpha=0.1,0.3,1 strategy.beta=0.5,1",
    "mir": f"{BUFFER} strategy.replay_batch_size=128 strategy.candidates=250,500",
    "mer": MER,
    "er_ewc": f"{BUFFER} {LOSS} strategy.lambda=1,10,100",
    "cls_er": f"{BUFFER} strategy.lambda=0.1,0.5,2 strategy.replay_batch_size=32,128",
    "expandable_head": "strategy.new_units=initial,zero,mean,imprinted",
    "latent_replay": {
        "split_mnist_task": f"{BUFFER} strategy.layer=1,2 strategy.lower_lr_factor=0,0.01",
        "split_mnist_class": f"{BUFFER} strategy.layer=1,2 strategy.lower_lr_factor=0,0.01",
        "permuted_mnist": f"{BUFFER} strategy.layer=1 strategy.lower_lr_factor=0.01,0.1,0.3",
    },
    "icarl": f"{BUFFER} {RATE}",
    "ncm": "strategy.features=0,2048",
    "slda": "strategy.features=0,2048 strategy.shrinkage=0.0001,0.01",
    "ridge": "strategy.lambda=0.01,0.1,1,10",
    "wa": f"{BUFFER} strategy.policy=herding,reservoir strategy.lambda=0.3,1,3",
    "bic": f"{BUFFER} strategy.lambda=0.3,1,3 strategy.validation=0.1,0.2",
    "lucir": f"{BUFFER} strategy.lambda=1,5 strategy.margin=0.1,0.5",
    "er_aml": f"{BUFFER} strategy.gamma=0.3,1 strategy.temperature=0.1,0.2",
    "scr": f"{BUFFER} strategy.temperature=0.07,0.2 optimizer.lr=0.001,0.003",
    "bir": {
        "split_mnist_task": "strategy.gated=0,0.1,0.5",
        "split_mnist_class": "strategy.gated=0.1,0.5",
        "permuted_mnist": "strategy.gated=0,0.1,0.5",
    },
    "fromp": f"{BUFFER} strategy.lambda=0.1,1,10,100,1000,10000",
    "adam_nscl": "strategy.share=0.005,0.02,0.05,0.1,0.2,0.5",
    "owm": f"{PLAIN} strategy.alpha=0.01,0.1,1",
    "supsup": {
        "split_mnist_task": f"strategy.density=0.3,0.5 {RATE}",
        "permuted_mnist": RATE,
    },
    "piggyback": RATE,
    "vcl": "strategy.lambda=0.0001,0.001,0.01,0.1 optimizer.lr=0.0003,0.001",
    "la_maml": f"{BUFFER} {PLAIN} strategy.alpha_init=0.003,0.01,0.03,0.1",
    "gdumb": f"{BUFFER} strategy.epochs=32,128 optimizer.lr=0.0003,0.001",
    "generative_replay": {
        "split_mnist_task": "strategy.labels=hard,distillation strategy.generator_lr=0.001,0.002",
        "split_mnist_class": "strategy.labels=hard,distillation strategy.generator_lr=0.001,0.002",
        "permuted_mnist": "strategy.labels=hard,distillation strategy.generator_lr=0.001",
    },
    "diffusion": "strategy.labels=hard,distillation strategy.generator_lr=0.001,0.002",
    "agem": f"{BUFFER} {PLAIN} strategy.policy=reservoir,ring",
    "gem": f"{BUFFER} {PLAIN} strategy.margin=0,0.5",
    "den": {
        "split_mnist_task": "strategy.mu=0.001 strategy.gamma=0.1,1 strategy.lambda=0.05,0.5",
        "permuted_mnist": ("strategy.mu=0.001 strategy.gamma=0.1 strategy.lambda=0.005,0.05"),
    },
    "ogd": f"{PLAIN} strategy.directions=100",
    "gpm": f"{PLAIN} strategy.threshold=[0.9],[0.95],[0.99]",
    "imm": f"strategy.merge=mean,mode {RATE}",
    "packnet": "strategy.prune=0.5,0.75,0.9",
    "hat": "strategy.lambda=0.1,0.75 strategy.s_max=50,400",
    "xdg": (
        f"optimizer.reset=true {LOSS} strategy.initial=network"
        " strategy.gated=0.5,0.8 strategy.lambda=0,0.035,1"
    ),
    "pnn": {
        "split_mnist_task": "strategy.alpha_init=1,0.1",
        "permuted_mnist": "strategy.adapter_size=32 strategy.alpha_init=1,0.1",
    },
    "soft_sharing": {
        "split_mnist_task": "strategy.lambda=0.0001,0.001",
        "permuted_mnist": "strategy.lambda=0.0001,0.001,0.01",
    },
}

# On the streams that come with the package: the second shelf, and what it is held against. With few
# steps a task the rate matters as much as a method's own keys.
RATES = "optimizer.lr=0.1,0.3"
FEATURES = "strategy.features=0,2048"
MASKS = "optimizer=adam optimizer.lr=0.001,0.003,0.01"  # their gradients are small
INSTEAD = {  # flights wants smaller rates; weather has 50 tasks, each with a system to solve
    "flights": (RATES, "optimizer.lr=0.03,0.1"),
    "weather": (FEATURES, "strategy.features=0,512"),
}
ON_EMBEDDED: dict[str, str | dict[str, str]] = {
    "naive": "optimizer.lr=0.03,0.1,0.3",
    "joint": f"{RATES},1",
    "ewc": f"strategy.lambda=1,10,100 {RATES}",
    "ewc_kron": {
        "split_digits": f"strategy.lambda=3,30,300 {RATES}",
        "split_letter": f"strategy.lambda=30,300,3000,30000 {RATES}",
        "weather": f"strategy.lambda=3,30,300 {RATES}",
        "flights": f"strategy.lambda=3,30,300 {RATES}",
    },
    "lwf": {"split_digits": f"strategy.over=seen strategy.lambda=1,3 {RATES}"},
    "agem": {"split_digits": f"{BUFFER} {RATES}"},
    "er": f"{BUFFER} strategy.policy=reservoir,herding {RATES}",
    "derpp": f"{BUFFER} strategy.alpha=0.1,1 {RATES}",
    "ncm": FEATURES,
    "slda": f"{FEATURES} strategy.shrinkage=0.0001,0.01",
    "ridge": f"{FEATURES} strategy.lambda=0.1,1,10",
    "wa": f"{BUFFER} strategy.lambda=1,3 {RATES}",
    "bic": f"{BUFFER} strategy.lambda=1,3 {RATES}",
    "lucir": f"{BUFFER} strategy.lambda=1,5 {RATES}",
    "er_aml": f"{BUFFER} strategy.gamma=0.3,1 {RATES}",
    "scr": f"{BUFFER} strategy.temperature=0.07,0.2 {RATES}",
    "la_maml": f"{BUFFER} strategy.alpha_init=0.001,0.003,0.01,0.03",
    "generative_replay": {"split_digits": f"strategy.labels=hard,distillation {RATES}"},
    "diffusion": {"split_digits": f"strategy.labels=hard,distillation {RATES}"},
    "bir": {"split_digits": f"strategy.gated=0.1,0.5 {RATES}"},
    "vcl": f"strategy.lambda=0.00003,0.001 {RATES}",
    "fromp": f"{BUFFER} strategy.lambda=0.1,1 {RATES}",
    "adam_nscl": f"strategy.share=0.02,0.05,0.2 {RATES}",
    "owm": "strategy.alpha=0.01,0.1,1,10",
    "supsup": {"weather": MASKS, "flights": MASKS},
    "piggyback": {"weather": MASKS, "flights": MASKS},
}


def presets() -> dict[str, tuple[str, str, str]]:
    """PROTOCOL/STRATEGY, the name of a preset -> (protocol, strategy, grid)."""
    found = {}
    searches = [(p, *of) for of in GRIDS.items() for p in MNIST]
    searches += [(p, *of) for of in ON_EMBEDDED.items() for p in EMBEDDED]
    for protocol, name, grids in searches:
        strategy, form = VARIANTS.get(name, (name, ""))
        grid = grids if isinstance(grids, str) else grids.get(protocol)
        scenario = scenario_of(protocol, strategy)
        if grid is not None and scenario is not None:
            if protocol in INSTEAD:
                grid = grid.replace(*INSTEAD[protocol])
            fewer = FIFTH if protocol == "permuted_mnist" and name in ON_A_FIFTH else ""
            whole = " ".join(filter(None, (f"scenario={scenario}", fewer, form, grid)))
            found[f"{protocol}/{name}"] = (protocol, strategy, whole)
    return found


@cache
def composed(*overrides: str) -> dict[str, Any]:
    """The configuration that these overrides make, in plain values."""
    with initialize_config_module("cl_runner.conf", **BASE):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


def scenario_of(protocol: str, strategy: str) -> str | None:
    """The scenario of a strategy's preset; None where it is not defined there.

    Where the protocol is domain-incremental, strategies that need the task are task-incremental.
    """
    own = composed(f"+protocol={protocol}")["scenario"]
    wanted = ("domain", "task") if own == "domain" else (own,)
    supported = strategies.find(strategy).scenarios
    return next((scenario for scenario in wanted if scenario in supported), None)


def setting(protocol: str) -> list[str]:
    """What a protocol makes other than cl-run's defaults do, but its scenario, as arguments."""
    chosen = choices.chosen(f"protocol/{protocol}")
    default = composed(*(f"{group}={option}" for group, option in chosen.items()))
    own, plain = composed(f"+protocol={protocol}"), composed()
    groups = [g for g in GROUPS if own[g].get("name") != plain[g].get("name")]
    keys = [(g, k) for g in GROUPS for k in own[g] if own[g][k] != default[g][k]]
    return [
        *(f"{group}={chosen[group]}" for group in groups),
        *(f"{group}.{key}={own[group][key]}" for group, key in keys),
    ]


def arguments_of(protocol: str, strategy: str, grid: str) -> list[str]:
    """The search as arguments of cl-run."""
    overrides = [
        *("-m", f"strategy={strategy}", *setting(protocol), "benchmark.validation_fraction=0.1"),
        *(f"benchmark.{key}={value}" for key, value in SEARCHED.get(protocol, {}).items()),
        *grid.split(),
    ]
    keys = [o.partition("=")[0] for o in overrides]
    return [o for i, o in enumerate(overrides) if keys[i] not in keys[i + 1 :]]  # the last one wins


def search(name: str, folder: Path, threads: int) -> Path:
    """Run a preset's sweep, unless it is there; the folder of the sweep."""
    out = folder / name.replace("/", "-")
    if not (out / "summary.csv").exists():
        command = [
            *(sys.executable, "-c", "from cl_runner.cli.app import main; main()"),
            *arguments_of(*presets()[name]),
            *(f"threads={threads}", "verbose=false", f"hydra.sweep.dir={out}"),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        print(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}", flush=True)
    return out


def best(out: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """The resolved configuration of the best run of a sweep, and all complete runs."""
    runs = []
    for path in sorted(out.glob("*/summary.csv")):
        row = pd.read_csv(path)
        if row.loc[0, "status"] == "complete":
            runs.append(row.assign(folder=path.parent))
    table = pd.concat(runs, ignore_index=True).sort_values("validation_ACC", ascending=False)
    config = OmegaConf.to_container(OmegaConf.load(table.iloc[0].folder / "config.yaml"))
    return config, table


def write(name: str, out: Path) -> None:
    """conf/experiment/preset/NAME.yaml from a finished sweep."""
    protocol, strategy, grid = presets()[name]
    config, table = best(out)
    scores = table.validation_ACC
    how = [
        *searched_by(protocol, strategy, grid),
        f"# Best of {len(table)}: {points(config, grid)}; validation ACC {scores.iloc[0]:.4f}"
        + (f", the worst {scores.iloc[-1]:.4f}." if len(table) > 1 else "."),
    ]
    path = PRESETS / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(preset_text(name, config, how), encoding="utf-8")
    print(how[-1], name, flush=True)


def searched_by(protocol: str, strategy: str, grid: str) -> list[str]:
    """The comment lines with a search's command."""
    command = " ".join(["cl-run", *map(shlex.quote, arguments_of(protocol, strategy, grid))])
    return ["# By a search on validation data, seed 0:", *wrapped(command)]


def points(config: dict[str, Any], grid: str) -> str:
    """The values of a configuration that its grid sweeps over."""
    swept = [o.partition("=")[0] for o in grid.split() if "," in o.replace("],[", ",")]
    return ", ".join(f"{key}={value(config, key)}" for key in swept)


def preset_text(name: str, config: dict[str, Any], how: Sequence[str]) -> str:
    """A preset's file: what differs in a run's configuration from its protocol.

    how: the comment lines that tell where the values are from.
    """
    protocol, _, own_name = name.partition("/")
    strategy, optimizer = config["strategy"]["name"], config["optimizer"]["name"]
    title = " with ".join(VARIANTS.get(own_name, (strategy,)))
    own = composed(f"+protocol={protocol}")
    base = composed(f"+protocol={protocol}", f"optimizer={optimizer}")
    defaults = [f"/protocol/{protocol}", f"override /strategy: {strategy}"]
    if optimizer != own["optimizer"]["name"]:
        defaults.append(f"override /optimizer: {optimizer}")
    body = {group: differences(config[group], base[group]) for group in GROUPS}
    fewer = {"seed", "train_fraction", "validation_fraction", *SEARCHED.get(protocol, ())}
    body["benchmark"] = {k: v for k, v in body["benchmark"].items() if k not in fewer}
    body["strategy"] = {k: v for k, v in config["strategy"].items() if k != "name"}
    body = differences({"scenario": config["scenario"]}, own) | body
    body = {key: value for key, value in body.items() if value}
    lines = [
        "# @package _global_",
        f"# {TITLES[protocol]}, {config['scenario']}-incremental: {title}.",
        *how,
        *("defaults:", *(f"  - {default}" for default in defaults)),
    ]
    text = yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=90) if body else ""
    return "\n".join([*lines, text])


def differences(config: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What a configuration has other than another one."""
    return {key: value for key, value in config.items() if value != base[key]}


def value(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; the name of a group."""
    found = OmegaConf.select(OmegaConf.create(config), key)
    return found["name"] if OmegaConf.is_dict(found) else found


def wrapped(command: str) -> list[str]:
    """A command as comment lines."""
    lines, line = [], "#  "
    for word in command.split(" "):
        if len(line) + len(word) > 96:
            lines.append(line + " \\")
            line = "#    "
        line += f" {word}"
    return [*lines, line]


def table() -> str:
    """The validation ACC that each preset's file tells, a row per strategy, a column per protocol.

    Bold are the three best of a column, but for bounds; a star, never bold, is of task-incremental
    learning where the protocol is not.
    """
    scores: dict[str, dict[str, float]] = {}  # strategy -> protocol -> validation ACC
    told = set()  # (strategy, protocol): of those that are told the task, where others are not
    for path in PRESETS.rglob("*.yaml"):
        text, protocol, name = path.read_text("utf-8"), path.parent.name, path.stem
        scores.setdefault(name, {})[protocol] = float(text.split("validation ACC ")[1][:6])
        if "\nscenario: task\n" in text:
            told.add((name, protocol))
    best = {
        protocol: sorted(
            of[protocol]
            for name, of in scores.items()
            if protocol in of and name not in BOUNDS and (name, protocol) not in told
        )[-3:]
        for protocol in TITLES
    }

    def cell(name: str, protocol: str) -> str:
        score = scores[name].get(protocol)
        if score is None:
            return ""
        if (name, protocol) in told:
            return f"{score:.3f}*"
        return (
            f"**{score:.3f}**" if score in best[protocol] and name not in BOUNDS else f"{score:.3f}"
        )

    family = [strategy for members in FAMILIES.values() for strategy in members]
    order = sorted(scores, key=lambda name: (family.index(VARIANTS.get(name, (name,))[0]), name))
    lines = [f"| strategy | {' | '.join(TITLES)} |", "|---|" + "---|" * len(TITLES)]
    lines += [f"| `{name}` | {' | '.join(cell(name, p) for p in TITLES)} |" for name in order]
    return "\n".join(lines)


def main() -> None:
    """Search and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", help="default: all")
    parser.add_argument("--folder", type=Path, help="of the sweeps")
    parser.add_argument("--jobs", type=int, default=1, help="sweeps at the same time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--only-search", action="store_true", help="write no preset")
    parser.add_argument("--only-table", action="store_true", help="search nothing")
    arguments = parser.parse_args()
    known = presets()
    unknown = set(arguments.presets) - set(known)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    if arguments.only_table:
        into_page(TABLE, table(), PAGE)
        return
    if arguments.folder is None:
        parser.error("--folder is needed: the sweeps are kept in it")
    names = arguments.presets or list(known)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        folders = pool.map(lambda n: search(n, arguments.folder, arguments.threads), names)
        for name, out in zip(names, folders, strict=True):
            if not arguments.only_search:
                write(name, out)
    if not arguments.only_search:
        into_page(TABLE, table(), PAGE)


if __name__ == "__main__":
    main()
