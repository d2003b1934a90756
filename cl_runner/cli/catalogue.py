"""What there is to choose, and what it means: `cl-run list` and `cl-run explain`.

All of it is read from the YAML files and from the strategies' docstrings; torch is not needed.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from cl_runner.cli import renamed
from cl_runner.cli.choices import (
    GROUPS,
    SECTIONS,
    bases,
    body,
    chosen,
    described,
    head,
    keys,
    lines_of,
    options,
    question,
    section,
    summary,
    text,
)
from cl_runner.config import outline
from cl_runner.config.schema import SCENARIOS
from cl_runner.config.without_torch import source
from cl_runner.errors import UserError, check
from cl_runner.machine.console import say, show

# What benchmarks' names end in; of two that fit, the longer one is first.
DATA = ("fashion_mnist", "mnist", "cifar100", "cifar10", "digits", "letter", "npz", "folder")
FAMILIES = {
    "bounds and baselines": (
        *("naive", "expandable_head", "joint", "soft_sharing", "cumulative"),
        *("from_scratch", "separate", "frozen_features"),
    ),
    "regularisation": ("l2", "ewc", "si", "mas", "rwalk", "lwf", "imm", "vcl", "fromp"),
    "replay": (
        *("er", "er_ace", "er_aml", "scr", "mir", "der", "derpp", "cls_er", "mer", "la_maml"),
        *("latent_replay", "icarl", "wa", "bic", "lucir"),
        *("gdumb", "er_ewc", "generative_replay", "bir"),
    ),
    "closed form": ("ncm", "slda", "ridge"),
    "gradient constraint": ("agem", "gem", "ogd", "gpm", "adam_nscl", "owm"),
    "architecture": ("pnn", "packnet", "hat", "xdg", "den", "supsup", "piggyback"),
}
SHORT = ("adapter", "optimizer", "logger")  # groups that share a line of --help
SWITCHED = ("ssl", "detector")  # sections of which a run without their switch has nothing
LIST = f"""\
cl-run list [{"|".join(GROUPS)}]

One line for each option, from its YAML file; without a name, of all groups but the experiments.
Your own YAML files (--config-dir) are not listed."""
EXPLAIN = """\
cl-run explain NAME

NAME    what is shown
ewc     a strategy, benchmark, model, adapter, optimizer or experiment: what it does, each key
        with its default and what it means, scenarios, paper, and the presets that use it with the
        published result that they are held against
config  every key that stands in no group: seed, scenario, data.*, budget.*, guard.*, eval.*, ...
strategy.buffer_size
        a key: its default and meaning, wherever there is one"""


def main(command: str, arguments: Sequence[str]) -> int:
    """`cl-run list ...` and `cl-run explain ...`. Raises UserError."""
    if {"-h", "--help"} & set(arguments):
        show(LIST if command == "list" else EXPLAIN)
    elif command == "list":
        check(len(arguments) <= 1, "cl-run list takes one name, such as strategies")
        show(listed(arguments[0]) if arguments else overview())
    else:
        check(len(arguments) == 1, "cl-run explain takes one name, such as ewc; see cl-run list")
        name = renamed.current(arguments[0])
        if name != arguments[0]:
            say(renamed.note(list(arguments)), sys.stderr)
        show(explained(name))
    return 0


def completions(line: str) -> list[str] | None:
    """What a shell may complete; None: what Hydra knows.

    Hydra does not look into the folders of the experiments, and offers the protocols, which only
    experiments refer to.
    """
    last = line.rpartition(" ")[2]
    sign = "+" if last.startswith("+") else ""
    match line.split()[1:]:
        case ["list", *_]:
            return list(GROUPS)
        case ["explain", *_]:
            return ["config", *(name for group in GROUPS.values() for name in options(group))]
        case words if any(word.startswith("--config-") for word in words):
            return None  # the user's own files
        case _ if last.startswith(f"{sign}experiment="):
            found = [f"{sign}experiment={name}" for name in options("experiment")]
        case _ if re.fullmatch(r"\+?\w*", last):
            found = [f"{sign}{word}" for word in first_words()]
        case _:
            return None
    return [word for word in found if word.startswith(last)]


def first_words() -> list[str]:
    """What a run's argument may begin with: groups and keys, sections with the dot after them."""
    groups = [f"{group}{end}" for group in (*GROUPS.values(), "training") for end in "=."]
    tops = [key for key in described()[""] if "." not in key]
    ends = [f"{key}." if key in SECTIONS else f"{key}=" for key in tops]
    return [*(word for word in groups if word != "experiment."), *ends, "hydra.", "hydra/"]


# Lists


def overview() -> str:
    """All groups; the experiments, which are many, as a number."""
    parts = [listed(group) for group in GROUPS if group != "experiments"]
    number = len(options("experiment"))
    return "\n\n".join([*parts, f"experiments: {number} presets, see cl-run list experiments"])


def listed(name: str) -> str:
    """The options of a group, a line each."""
    group = next((g for plural, g in GROUPS.items() if name in (plural, g)), None)
    if group is None:
        raise UserError(
            f"unknown name {name}{question(name, GROUPS)}; known are {', '.join(GROUPS)}"
        )
    sections = {
        "strategy": strategies,
        "experiment": experiments,
    }.get(group, lambda: {f"{group}=...": {n: summary(group, n) for n in options(group)}})()
    width = max(len(option) for section in sections.values() for option in section)
    blocks = (
        block(title, (line(f"  {n:{width}}  ", about) for n, about in section.items()))
        for title, section in sections.items()
    )
    return "\n\n".join(filter(None, blocks))


def strategies() -> dict[str, dict[str, str]]:
    """The strategies by family, with the scenarios of those that have not all."""
    left = set(options("strategy")).difference(*FAMILIES.values())
    sections = {}
    for title, members in (FAMILIES | {"others": tuple(sorted(left))}).items():
        there = [name for name in members if name in options("strategy")]
        sections[f"strategy=... {title}"] = {n: f"{summary('strategy', n)}{only(n)}" for n in there}
    return sections


def only(strategy: str) -> str:
    """Where a strategy is not defined in all scenarios, those in which it is."""
    scenarios = outline.outline(strategy).scenarios
    return "" if set(scenarios) == set(SCENARIOS) else f" Only scenario={', '.join(scenarios)}."


def experiments() -> dict[str, dict[str, str]]:
    """The experiments by folder: a paper, or a protocol of the project's own presets."""
    sections: dict[str, dict[str, str]] = {}
    for name in sorted(options("experiment"), key=lambda name: (name.startswith("preset/"), name)):
        folder, _, last = name.rpartition("/")
        title = f"experiment={folder}/..."
        sections.setdefault(title, {})[last] = summary("experiment", name)
    return sections


def line(start: str, text: str) -> str:
    """One line; on a terminal folded below its own beginning."""
    if not sys.stdout.isatty():
        return f"{start}{text}"
    width = shutil.get_terminal_size().columns
    return textwrap.fill(
        text,
        width,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
    )


def groups_shown() -> str:
    """The groups with their options, and the keys of every run, as `cl-run --help` shows them."""
    shown = {group: ", ".join(options(group)) for group in GROUPS.values()}
    shown["benchmark"] = by_data(options("benchmark"))
    shown["experiment"] = f"{len(options('experiment'))} presets: cl-run list experiments"
    short = [(group, shown.pop(group)) for group in SHORT]
    shown["others"] = ", ".join(f"{group}={{{text}}}" for group, text in short)
    keys_ = [key for where in ("", "training") for key in described()[where]]
    alone = [key for key in keys_ if key not in SECTIONS and key.split(".")[0] not in SWITCHED]
    shown["keys"] = f"{braced(alone, '.')}; {'.*, '.join(SWITCHED)}.*"
    return "\n".join(filled(f"  {group:10} ", text) for group, text in shown.items())


def by_data(benchmarks: Iterable[str]) -> str:
    """Benchmarks, those of several kinds of the same data sets as one: {a, b}_{digits, mnist}."""
    data: dict[str, list[str]] = {}
    for name in benchmarks:
        own = next((d for d in DATA if name.endswith(f"_{d}")), "")
        data.setdefault(name.removesuffix(f"_{own}") if own else name, []).append(own)
    kinds: dict[tuple[str, ...], list[str]] = {}
    for kind, own_data in data.items():
        kinds.setdefault(tuple(own_data), []).append(kind)
    alone = kinds.pop(("",), [])
    return ", ".join(alone + [f"{either(own)}_{either(sets)}" for sets, own in kinds.items()])


def either(names: Sequence[str]) -> str:
    """One name, or several in braces."""
    return names[0] if len(names) == 1 else f"{{{', '.join(names)}}}"


def braced(names: Iterable[str], separator: str) -> str:
    """Names, those that begin alike written as one: a.{b,c}."""
    ends: dict[str, list[str]] = {}
    for name in names:
        start, found, end = name.partition(separator)
        ends.setdefault(f"{start}{found}", []).append(end)
    return ", ".join(
        f"{start}{{{', '.join(own)}}}" if len(own) > 1 else f"{start}{own[0]}"
        for start, own in ends.items()
    )


def filled(start: str, text: str) -> str:
    """Many names, folded at 80 columns below their own beginning."""
    return textwrap.fill(
        text, 80, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    )


# Explanations


def explained(name: str) -> str:
    """All that there is to know of an option, of a group or of a key. Raises UserError."""
    if name in (*GROUPS, *GROUPS.values()):
        return listed(name)
    if name in ("config", *SECTIONS):
        return section(name)
    group = next(
        (group for group in (*GROUPS.values(), "training") if name in options(group)), None
    )
    if group is not None:
        return option(group, name)
    keyed = dict(meanings(name))
    if not keyed:
        known = [*(n for g in GROUPS.values() for n in options(g)), *SECTIONS, *keys()]
        raise UserError(f"unknown name {name}{question(name, known)}; see cl-run list")
    return "\n".join(f"{where}\n{textwrap.indent(text, '  ')}" for where, text in keyed.items())


def option(group: str, name: str) -> str:
    """What an option is, with the YAML that it stands for."""
    parts = [f"{group}={name}", " ".join(head(text(group, name)))]
    if group == "strategy":
        own = outline.outline(name)
        parts += [inspect.cleandoc(docstring(name)), f"Scenarios: {', '.join(own.scenarios)}"]
        _, *keys_ = body(text(group, name))  # the first is the name
        parts.append(block("Keys, as strategy.KEY=VALUE", (f"  {key}" for key in keys_)))
        presets = presets_of(name)
        width = max((len(preset) for preset in presets), default=0)
        rows = (line(f"  {p:{width}}  ", summary("experiment", p)) for p in presets)
        parts.append(block("Presets, as experiment=NAME", rows))
    else:
        parts.append(lines_of(group, name))
    if group == "experiment":
        below = [(path, *path.split("/", 1)) for path in bases(f"experiment/{name}")]
        parts += [f"{path}: {summary(*own)}\n{lines_of(*own)}" for path, *own in below]
    return "\n\n".join(part for part in parts if part)


def block(title: str, lines: Iterable[str]) -> str:
    """Lines below a title; "" if there are none."""
    there = list(lines)
    return "\n".join([title, *there]) if there else ""


def docstring(strategy: str) -> str:
    """The docstring of a strategy's class, from its source."""
    own = outline.outline(strategy).__name__
    file = source(f"cl_runner.strategies.{strategy}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == own)
    return ast.get_docstring(node) or ""


def presets_of(strategy: str) -> list[str]:
    """The experiments that choose a strategy."""
    names = options("experiment")
    return [n for n in names if chosen(f"experiment/{n}").get("strategy") == strategy]


def meanings(name: str) -> Iterator[tuple[str, str]]:
    """Where a key is set, and the lines that tell what it is; options that agree, together."""
    found: dict[tuple[str, str], list[str]] = {}
    for where, lines in described().items():
        for key, told in lines.items():
            if name in (key, key.rpartition(".")[2]):
                found.setdefault((key, told), []).append(where)
    for (key, told), wheres in found.items():
        group = key.partition(".")[0]
        names = [where.partition("=")[2] for where in wheres]
        every = not any(names) or set(names) == set(options(group))
        yield (key if every else f"{key} of {group}={', '.join(names)}"), told
