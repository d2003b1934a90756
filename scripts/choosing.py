"""The tables of docs/choosing.md, from results/*.csv, the presets' searches and the code.

python scripts/choosing.py    writes them between their markers; nothing is run
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from docs_pages import records, validation
from docs_text import table
from reproduce import ROOT, into_page

from cl_runner import strategies
from cl_runner.cli.catalogue import FAMILIES
from cl_runner.cli.choices import options

PAGE = ROOT / "docs" / "choosing.md"
ALL_DATA = ("joint", "cumulative", "from_scratch", "soft_sharing")
GENERATED = ("generative_replay", "diffusion", "bir")
STREAMS = {
    "split_mnist_class": "Split MNIST, class-IL",
    "split_digits": "Split digits, class-IL",
    "split_letter": "Letters, class-IL",
    "permuted_mnist": "Permuted MNIST, domain-IL",
    "weather": "Weather, domain-IL",
    "flights": "Flights, domain-IL",
    "split_mnist_task": "Split MNIST, task-IL",
}
NO_OPTION = ("split_digits", "permuted_digits", "rotated_digits", "split_mnist")
KINDS = (
    *("regularisation", "gradient constraint", "closed form", "generated replay", "500 samples"),
    "architecture",
)
STORED = ("none", "samples")
MANY = 8  # strategies in a row of the best


def own(preset: str) -> str:
    """The strategy of a preset's name: ewc_kron is ewc, diffusion is generative_replay."""
    return {"ewc_kron": "ewc", "diffusion": "generative_replay"}.get(preset, preset)


def keeps(preset: str) -> str:
    """What of the data a strategy keeps from task to task."""
    name = own(preset)
    names = {field.name for field in fields(strategies.find(name))}
    if name in ALL_DATA:
        return "all data"
    if name == "latent_replay":
        return "activations"
    return "samples" if "buffer_size" in names else "none"


def family(preset: str) -> str:
    """The family of a preset's strategy; generators apart from other replay."""
    if preset in GENERATED:
        return "generated replay"
    return next(f for f, members in FAMILIES.items() if own(preset) in members)


def shelf() -> list[dict[str, str]]:
    """Rows of results/shelf.csv, the best first."""
    return sorted(records("shelf"), key=lambda row: -float(row["ACC"]))


def naive(column: str) -> float:
    """What naive fine-tuning has in a column of it."""
    return float(next(row for row in shelf() if row["preset"] == "naive")[column])


def cells(row: dict[str, str]) -> tuple[str, ...]:
    """Name, accuracy, what is kept besides naive's network, FLOPs in units of naive's."""
    kept = (float(row["kept_bytes"]) - naive("kept_bytes")) / 1e6
    return (
        *(f"`{row['preset']}`", f"{float(row['ACC']):.3f}", f"{kept:.1f}"),
        f"{float(row['flops']) / naive('flops'):.2f}",
    )


def stored() -> str:
    """The best by what may be kept of the data."""
    told = {
        "none": "nothing",
        "samples": "500 samples",
        "all data": "all data",
    }
    rows: list[Sequence[str]] = []
    for kind, title in told.items():
        best = [row for row in shelf() if keeps(row["preset"]) == kind][:6]
        if kind == "none":
            best += [row for row in shelf() if row["preset"] in ("lwf", "ewc", "naive")]
        unlike = [row for i, row in enumerate(best) if row not in best[:i]]
        rows += [(title, *cells(row)) for row in unlike]
    return table(("kept of the data", "strategy", "ACC", "MB beside the network", "FLOPs"), rows)


def within(limits: Iterable[float], value: Callable[[dict[str, str]], float], unit: str) -> str:
    """The best that stay within limits, without and with stored samples."""
    rows = []
    for limit in limits:
        inside = [r for r in shelf() if value(r) <= limit and keeps(r["preset"]) != "all data"]
        best = [[r for r in inside if keeps(r["preset"]) == kind][:2] for kind in STORED]
        named = [", ".join(f"`{r['preset']}` {float(r['ACC']):.3f}" for r in some) for some in best]
        rows.append((f"{limit:g} {unit}" if limit < float("inf") else "no limit", *named))
    return table(("at most", "without a sample", "with 500 samples"), rows)


def compute() -> str:
    """The best within FLOPs."""
    limits = (0.5, 1.2, 2, 3, float("inf"))
    return within(limits, lambda row: float(row["flops"]) / naive("flops"), "times naive's")


def memory() -> str:
    """The best within bytes."""
    limits = (0.0, 0.5, 1.5, 5, float("inf"))

    def beside(row: dict[str, str]) -> float:
        return (float(row["kept_bytes"]) - naive("kept_bytes")) / 1e6

    return within(limits, beside, "MB")


def kind_of(preset: str) -> str:
    """The column of a strategy: its family, but for those that store samples, whatever else."""
    return "500 samples" if keeps(preset) in ("samples", "activations") else family(preset)


def streams() -> str:
    """The best of each kind on each stream, by the presets' validation ACC."""
    rows = []
    for folder, title in STREAMS.items():
        found = {
            preset.rpartition("/")[2]: float(validation(preset))
            for preset in options("experiment")
            if preset.startswith(f"preset/{folder}/") and validation(preset)
        }
        told = folder.endswith("_task")  # the task, which architectures have to know
        best = []
        for kind in KINDS:
            members = [n for n in found if kind_of(n) == kind and (told or kind != "architecture")]
            name = max(members, key=lambda n: found[n], default="")
            best.append(f"`{name}` {found[name]:.3f}" if name else "")
        rows.append((title, f"{found['naive']:.3f}", *best, f"{found['joint']:.3f}"))
    return table(("stream", "naive", *KINDS, "joint"), rows)


def no_option() -> str:
    """The best with no option at all, by scenario."""
    rows = []
    for scenario in ("class", "domain", "task"):
        found: dict[str, list[float]] = {}
        for row in records("defaults"):
            if row["scenario"] == scenario and row["benchmark"] in NO_OPTION and row["ACC"]:
                found.setdefault(row["strategy"], []).append(float(row["ACC"]))
        mean = {n: sum(v) / len(v) for n, v in found.items() if len(v) == len(NO_OPTION)}
        best = sorted((n for n in mean if keeps(n) != "all data"), key=lambda n: -mean[n])
        shown = [n for n in best if n not in ("naive", "separate")][:MANY]
        named = ", ".join(f"`{n}` {mean[n]:.3f}" for n in shown)
        rows.append((f"{scenario}-IL", f"{mean['naive']:.3f}", named, f"{mean['joint']:.3f}"))
    return table(("scenario", "naive", f"the best {MANY}", "joint"), rows)


def borders() -> str:
    """What a strategy has to be told, in class- and domain-incremental learning."""
    groups: dict[str, list[str]] = {"nothing": [], "detected borders will do": [], "borders": []}
    for name in strategies.available():
        strategy = strategies.build({"name": name})
        scenarios = [s for s in ("class", "domain") if s in strategy.scenarios]
        if not scenarios:
            continue
        if not any(strategy.needs_borders(s) for s in scenarios):
            groups["nothing"].append(name)
        elif not all(strategy.needs_tasks(s) for s in scenarios):
            only = [s for s in scenarios if not strategy.needs_tasks(s)]
            note = f" ({only[0]}-IL)" if len(only) < len(scenarios) else ""
            groups["detected borders will do"].append(f"{name}{note}")
        else:
            groups["borders"].append(name)
    rows = [
        (told, ", ".join(f"`{n.partition(' ')[0]}`{n[len(n.partition(' ')[0]) :]}" for n in names))
        for told, names in groups.items()
    ]
    return table(("must be told", "strategies"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "no_option": no_option,
    "stored": stored,
    "streams": streams,
    "memory": memory,
    "compute": compute,
    "borders": borders,
}


def markers(name: str) -> tuple[str, str]:
    """Between which lines of the page a table stands."""
    return f"<!-- {name}: made by scripts/choosing.py -->", f"<!-- end of {name} -->"


def main() -> None:
    """Write all tables."""
    for name, made in TABLES.items():
        into_page(markers(name), made(), PAGE)


if __name__ == "__main__":
    main()
