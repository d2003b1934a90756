"""The pages of the site that are made of the code: a strategy, a benchmark, a module each.

What they say is read from docstrings, from conf/ with its comments, from results/*.csv and from
docs/limits.md, so it is what `cl-run explain NAME` says, and more. Nothing is trained, and torch is
not needed. scripts/docs_site.py puts them into the site.
"""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import docs_picture
from docs_text import from_docstring, keys, linked, prose, table
from yaml import safe_load

from cl_runner.cli import catalogue
from cl_runner.cli.choices import body, chosen, head, options, summary, text
from cl_runner.comparing.names import NAMES
from cl_runner.config import outline
from cl_runner.config.schema import SCENARIOS

ROOT = Path(__file__).parents[1]
STREAMS = {
    "split_digits": "Split digits",
    "permuted_digits": "Permuted digits",
    "rotated_digits": "Rotated digits",
    "split_mnist": "Split MNIST",
    "permuted_mnist": "Permuted MNIST",
}
BOUNDS = ("joint", "cumulative", "from_scratch", "separate", "soft_sharing")
BEST = 5  # of a table of the best
PUBLIC = ("running", "runs", "sweeping", "comparison", "models")
MODULES = {  # page -> title, modules, and what they are for
    "python": (
        "Its functions and classes",
        tuple(f"cl_runner.api.{name}" for name in PUBLIC),
        "They are reached as `cl.run`, `cl.sweep` and so on after `import cl_runner as cl`.",
    ),
    "core": (
        "Data of a run",
        ("cl_runner.core",),
        "What passes through a run: batches, states, tasks and streams, and where seeds come from.",
    ),
    "strategy": (
        "Writing a strategy",
        ("cl_runner.strategies.base", "cl_runner.training.env", "cl_runner.testing"),
        "The interface of a strategy, what it may use, and the tests that every one must pass.",
    ),
    "functional": (
        "Mathematics",
        tuple(
            f"cl_runner.functional.{file.stem}"
            for file in sorted((ROOT / "cl_runner" / "functional").glob("[!_]*.py"))
        ),
        "Functions from tensors to tensors: losses, buffers, importances, projections, metrics.",
    ),
}


@cache
def records(name: str) -> list[dict[str, str]]:
    """The rows of results/NAME.csv."""
    with (ROOT / "results" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def people(strategy: str) -> str:
    """What the field calls a strategy."""
    return NAMES.get(strategy, strategy)


def joined(parts: Iterable[str]) -> str:
    """A page of its parts, those that say nothing left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def under(title: str, *parts: str) -> str:
    """A section; "" without content."""
    content = "\n\n".join(part for part in parts if part)
    return f"## {title}\n\n{content}" if content else ""


def command(*lines: str) -> str:
    """Commands as a block."""
    return "\n".join(["```sh", *lines, "```"])


def settings(lines: Iterable[str], prefix: str) -> str:
    """The table of a YAML file's keys."""
    rows = [
        (f"`{prefix}{key}`", f"`{default}`", prose(about))
        for key, default, about in keys(lines)
        if key != "name"
    ]
    return table(("key", "default", "meaning"), rows)


# Strategies


def family(strategy: str) -> str:
    """The family that the catalogue puts a strategy in."""
    return next((f for f, members in catalogue.FAMILIES.items() if strategy in members), "others")


def strategy_page(name: str) -> str:
    """All that is known of a strategy."""
    own = outline.outline(name)
    scenarios = ", ".join(f"{s}-incremental" for s in SCENARIOS if s in own.scenarios)
    anchor = family(name).replace(" ", "-")
    facts = (
        f"- Asked for by `strategy={name}`; family: "
        f"[{family(name)}](../strategies.md#{anchor})\n"
        f"- Defined for: {scenarios}\n"
        f"{builds_on(name)}"
        f"- Held against: {held_against(name)}\n"
        f"- Source: [{name}.py](../../cl_runner/strategies/{name}.py)"
    )
    return joined(
        (
            f"# {people(name)}",
            linked(" ".join(head(text("strategy", name)))),
            facts,
            run_it(name, own.scenarios),
            under("What it does", from_docstring(inspect.cleandoc(catalogue.docstring(name)))),
            under(
                "Its keys",
                settings(body(text("strategy", name)), "strategy."),
            ),
            without_option(name),
            costs(name),
            presets(name),
            reproduced(name),
            limits(name),
        )
    )


def builds_on(name: str) -> str:
    """The strategy that it is a variant of, as a line of its facts; "" if it is none."""
    module = outline.outline(name).__mro__[1].__module__.rpartition(".")[2]
    return (
        f"- Builds on: [{people(module)}]({module}.md)\n" if module in options("strategy") else ""
    )


def held_against(name: str) -> str:
    """The last cell of its row in docs/strategies.md."""
    for line in (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| `{name}` |"):
            return line.rstrip("| ").rpartition(" | ")[2].strip(" |-") or "-"
    return "-"


def run_it(name: str, scenarios: Sequence[str]) -> str:
    """The command that tries it on data that need no download, and the one that compares it."""
    scenario = next(s for s in ("class", "domain", "task") if s in scenarios)
    kind = "permuted_digits" if scenario == "domain" else "split_digits"
    stream = f"benchmark={kind} scenario={scenario}"
    others = f"naive,joint,{name}" if name not in ("naive", "joint") else "naive,joint"
    return command(
        f"cl-run strategy={name} {stream}",
        f"cl-run -m strategy={others} {stream} seed=0,1,2 hydra.sweep.dir=beside",
        "cl-compare beside",
        f"cl-run explain {name}",
    )


@cache
def accuracy() -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of results/defaults.csv by (strategy, benchmark, scenario)."""
    return {(r["strategy"], r["benchmark"], r["scenario"]): r for r in records("defaults")}


def number(row: dict[str, str] | None, column: str = "ACC") -> float | None:
    """A number of a row; None where there is none."""
    return float(row[column]) if row is not None and row[column] else None


def cells(name: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(benchmark, scenario, row) of what a strategy did without options."""
    for benchmark in STREAMS:
        for scenario in SCENARIOS:
            row = accuracy().get((name, benchmark, scenario))
            if row is not None and row["ACC"]:
                yield benchmark, scenario, row


def without_option(name: str) -> str:
    """What it reaches without an option, as a picture and a table."""
    rows, drawn = [], []
    for benchmark, scenario, row in cells(name):
        beside = [number(accuracy().get((s, benchmark, scenario))) for s in ("naive", "joint")]
        label = f"{STREAMS[benchmark]}, {scenario}"
        drawn.append(docs_picture.Row(label, *beside, float(row["ACC"])))
        told = ["" if value is None else f"{value:.3f}" for value in beside]
        rows.append(
            (
                *(f"`{benchmark}`", f"{scenario}-IL", row["n"], f"**{float(row['ACC']):.3f}**"),
                *(f"{float(row['forgetting']):.3f}", *told),
            )
        )
    if not rows:
        return ""
    about = (
        "`cl-run` with no other option: the default network and optimizer, and these defaults, "
        "none of them tuned for the stream ([every strategy](../defaults.md), "
        "[CSV](../../results/defaults.csv)). Accuracy over all tasks after the last one; n seeds."
    )
    titles = ("benchmark", "scenario", "n", "ACC", "forgetting", "naive", "joint")
    return under(
        "What it reaches with no option",
        about,
        f"<figure>\n{docs_picture.accuracies(people(name), drawn)}\n</figure>",
        table(titles, rows),
    )


def costs(name: str) -> str:
    """What it costs beside naive fine-tuning."""
    row = next((r for r in records("costs") if r["strategy"] == name), None)
    if row is None:
        return ""
    kept = int(row["bytes_beside_the_network"])
    return under(
        "What it costs",
        f"Training on one task of `split_digits` ({row['scenario']}-incremental) takes "
        f"{float(row['times_naive_flops']):.1f} times naive fine-tuning's FLOPs and "
        f"{float(row['times_naive_seconds']):.1f} times its seconds on one thread; between tasks "
        f"{kept:,} bytes are kept besides the network "
        "([how that is measured](../defaults.md#what-they-cost)).",
    )


def validation(preset: str) -> str:
    """The validation ACC of a preset's search, from its comment."""
    found = re.search(r"validation\s+(?:#\s+)?ACC (\d\.\d+)", text("experiment", preset))
    return found[1] if found else ""


def presets(name: str) -> str:
    """The experiments that use it."""
    rows = [
        (f"`{preset}`", linked(summary("experiment", preset)), validation(preset))
        for preset in catalogue.presets_of(name)
    ]
    about = (
        "Pinned protocols, as `cl-run experiment=NAME`. Settings of `preset/` were searched on "
        "validation data ([presets](../presets.md)), the others are published ones."
    )
    shown = table(("`experiment=`", "what it is", "validation ACC"), rows)
    return under("Experiments", about, shown) if shown else ""


def reproduced(name: str) -> str:
    """Its published numbers beside ours."""
    return under(
        "Published numbers",
        published(row for row in records("reproduction") if strategy_of(row["experiment"]) == name),
    )


def strategy_of(experiment: str) -> str:
    """The strategy that an experiment chooses."""
    return chosen(f"experiment/{experiment}").get("strategy", "")


def published(rows: Iterable[dict[str, str]]) -> str:
    """A table of published numbers beside ours."""
    shown = [
        (
            *(f"`{row['experiment']}`", f"{row['stream']}, {row['scenario']}"),
            spread(row["mean"], row["sd"], row["n"]),
            spread(row["our_mean"], row["our_sd"], row["our_n"]),
            f"{row['low']} to {row['high']}",
            "yes" if row["inside"] == "True" else "no",
        )
        for row in rows
    ]
    head_ = ("`experiment=`", "stream", "published", "ours", "interval", "inside")
    return table(head_, shown)


def spread(mean: str, sd: str, n: str) -> str:
    """Mean ± SD (n = ...)."""
    told = f"{float(mean):.4f}"
    told += f" ± {float(sd):.4f}" if sd else ""
    return f"{told} (n = {n})" if n else told


def limits(name: str) -> str:
    """What docs/limits.md says of it."""
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    of_name = re.compile(rf"`{name}`|\b{re.escape(people(name))}\b(?!-)")
    own, title = [], ""
    for item in re.split(r"^(?=- |#|$)", page, flags=re.MULTILINE):
        title = item.strip("# \n") if item.startswith("#") else title
        if item.startswith("- ") and of_name.search(item):
            about = "" if title == "Strategies" else f"*{title}*: "
            own.append(f"- {about}{item[2:].strip()}")
    moved = (re.sub(r"\]\((?!https:|#)", "](../", item) for item in own)
    return under("Limits", "\n".join(re.sub(r"\]\(#", "](../limits.md#", i) for i in moved))


# Benchmarks


def benchmark_page(name: str) -> str:
    """All that is known of a benchmark."""
    set_ = safe_load("\n".join(body(text("benchmark", name))))
    tasks = set_.get("num_tasks") or "as many as the data have"
    path = ' data.path="$DATA"' if own_data(name) else ""
    facts = (
        f"- Asked for by `benchmark={name}`; kind: `{set_['kind']}` "
        f"([all benchmarks](../benchmarks.md))\n"
        f"- Data set: `{set_['dataset']}`\n"
        f"- Tasks: {tasks}\n"
        f"- Scenario, unless told otherwise: {set_['default_scenario']}-incremental\n"
        f"- Passes over each task's data: {set_['default_epochs']}"
    )
    own = "Your own data go there by `data.path=...`: [own data](../own_data.md)." if path else ""
    return joined(
        (
            f"# {name}",
            prose("\n".join(head(text("benchmark", name)))),
            facts,
            own,
            command(
                f"cl-run benchmark={name} strategy=er{path}",
                f"cl-run -m benchmark={name} strategy=naive,joint,er seed=0,1,2{path}",
            ),
            *(best_without_option(name, scenario) for scenario in SCENARIOS),
            best_real(name),
            best_presets(name),
            under(
                "Published numbers",
                published(r for r in records("reproduction") if stream_of(r["experiment"]) == name),
            ),
            experiments_on(name),
            under("Its keys", settings(body(text("benchmark", name)), "benchmark.")),
        )
    )


def own_data(name: str) -> bool:
    """Whether a benchmark is made of the user's own files."""
    return name in ("table", "files", "folders") or name.endswith(("_npz", "_folder"))


def stream_of(experiment: str) -> str:
    """The benchmark that an experiment chooses."""
    return chosen(f"experiment/{experiment}").get("benchmark", "")


def best_without_option(name: str, scenario: str) -> str:
    """Which strategies do best without options in a scenario."""
    rows = [r for (_, b, s), r in accuracy().items() if (b, s) == (name, scenario) and r["ACC"]]
    if len(rows) < BEST:
        return ""
    return under(
        f"Best with no option, {scenario}-incremental",
        "Bounds and naive fine-tuning for comparison; the others are in [the whole "
        "table](../defaults.md).",
        ranking((row["strategy"], row["ACC"], row["forgetting"], row["n"]) for row in rows),
    )


def ranking(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """The best strategies, and naive and joint: (strategy, ACC, forgetting, n)."""
    ordered = sorted(rows, key=lambda row: -float(row[1]))
    best = [row for row in ordered if row[0] not in (*BOUNDS, "naive")][:BEST]
    shown = [row for row in ordered if row in best or row[0] in ("naive", "joint")]
    return table(
        ("strategy", "ACC", "forgetting", "n"),
        [
            (f"`{s}`", f"{float(acc):.3f}", f"{float(lost):.3f}" if lost else "", n)
            for s, acc, lost, n in shown
        ],
    )


def best_real(name: str) -> str:
    """Of the streams of results/real_streams.csv: the settings found on validation data."""
    rows = [row for row in records("real_streams") if row["benchmark"] == name and row["ACC"]]
    shown = [
        (f"`{r['strategy']}`", spread(r["ACC"], r["ACC_sd"], r["n"]), r["diverged"])
        for r in sorted(rows, key=lambda row: -float(row["ACC"]))
    ]
    about = "Eight strategies with settings found on validation data: [real streams](../{})."
    return under(
        "Strategies in comparison",
        about.format("real_streams.md") if shown else "",
        table(("strategy", "ACC", "runs that diverged"), shown),
    )


def best_presets(name: str) -> str:
    """The presets of a stream with their validation ACC, the best first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for preset in options("experiment"):
        if preset.startswith("preset/") and stream_of(preset) == name and validation(preset):
            found.setdefault(preset.rpartition("/")[0], []).append((validation(preset), preset))
    parts = []
    for folder, rows in sorted(found.items()):
        best = sorted(rows, reverse=True)
        shown = [(f"`{preset}`", acc) for acc, preset in best[: 2 * BEST]]
        parts += [f"`{folder}`:", table(("`experiment=`", "validation ACC"), shown)]
    about = "Settings found on validation data, one seed: [presets](../presets.md)."
    return under("Best presets", about, *parts) if parts else ""


def experiments_on(name: str) -> str:
    """The experiments of papers on a stream."""
    rows = [
        (f"`{e}`", linked(summary("experiment", e)))
        for e in options("experiment")
        if not e.startswith("preset/") and stream_of(e) == name
    ]
    return under("Experiments", table(("`experiment=`", "what it is"), rows))


# Modules


def module_page(name: str) -> str:
    """The reference of some modules, which mkdocstrings writes."""
    title, modules, about = MODULES[name]
    # Fields are told by comments, which only the source shows.
    options_ = "\n    options: {show_source: true}" if name == "core" else ""
    return joined(
        (
            f"# {title}",
            f"This page is made of docstrings. {about}",
            *(f"## `{module}`\n\n::: {module}{options_}" for module in modules),
        )
    )


def keys_page() -> str:
    """Every key that stands in no group, as config.yaml and training/default.yaml have it."""
    parts = ["# Keys", "This page lists the keys of every run, with what they are by default."]
    for title, lines in (
        ("Without a group", text("", "config")),
        ("Training", text("training", "default")),
    ):
        parts += [f"## {title}", f"```yaml\n{lines.strip()}\n```"]
    return joined(parts)
