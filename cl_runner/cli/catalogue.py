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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from yaml import safe_load

from cl_runner.cli import renamed
from cl_runner.config import outline
from cl_runner.config.schema import SCENARIOS
from cl_runner.errors import UserError, check
from cl_runner.machine.console import say, show

if TYPE_CHECKING:
    from importlib.abc import Traversable

GROUPS = {  # as `cl-run list` names them
    "strategies": "strategy",
    "benchmarks": "benchmark",
    "models": "model",
    "optimizers": "optimizer",
    "experiments": "experiment",
}
FAMILIES = {
    "bounds and baselines": (
        *("naive", "expandable_head", "joint", "soft_sharing", "cumulative", "separate"),
        "frozen_features",
    ),
    "regularisation": ("l2", "ewc", "si", "mas", "rwalk", "lwf", "imm"),
    "replay": (
        *("er", "er_ace", "mir", "der", "derpp", "cls_er", "mer", "latent_replay", "icarl"),
        *("gdumb", "er_ewc", "generative_replay"),
    ),
    "gradient constraint": ("agem", "gem", "ogd", "gpm"),
    "architecture": ("pnn", "packnet", "hat", "xdg", "den"),
}
LIST = f"""\
cl-run list [{"|".join(GROUPS)}]

One line for each option, from its YAML file; without a name, of all groups but the experiments.
Your own YAML files (--config-dir) are not listed."""
EXPLAIN = """\
cl-run explain NAME

NAME    what is shown
ewc     a strategy, benchmark, model, optimizer or experiment: what it does, each key with its
        default and what it means, scenarios, paper, and the presets that use it with the published
        result that they are held against
config  every key that stands in no group: seed, scenario, data.*, budget.*, eval.*, checkpoint.*
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
    shown["benchmark"] = braced(options("benchmark"), "_")
    shown["experiment"] = f"{len(options('experiment'))} presets: cl-run list experiments"
    keys_ = [key for where in ("", "training") for key in described()[where]]
    shown["keys"] = braced([key for key in keys_ if key not in SECTIONS], ".")
    return "\n".join(filled(f"  {group:10} ", text) for group, text in shown.items())


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
    file = outline.source(f"cl_runner.strategies.{strategy}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == own)
    return ast.get_docstring(node) or ""


def presets_of(strategy: str) -> list[str]:
    """The experiments that choose a strategy."""
    names = options("experiment")
    return [n for n in names if chosen(f"experiment/{n}").get("strategy") == strategy]


@cache
def chosen(path: str) -> dict[str, str]:
    """The options that an experiment or a protocol chooses: group -> option."""
    choices: dict[str, str] = {}
    for default in defaults(path):
        if isinstance(default, str):
            choices |= chosen(default.lstrip("/"))
        else:
            choices |= {key.rpartition("/")[2]: option for key, option in default.items()}
    return choices


def bases(path: str) -> Iterator[str]:
    """The files that an experiment or a protocol builds on, the nearest first."""
    for default in defaults(path):
        if isinstance(default, str):
            yield default.lstrip("/")
            yield from bases(default.lstrip("/"))


def defaults(path: str) -> list[str | dict[str, str]]:
    """The list of defaults on top of an experiment or a protocol; all names in it are whole."""
    found: list[str | dict[str, str]] = safe_load(text(*path.split("/", 1)))["defaults"]
    return found


def question(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Did you mean ...? Capital letters are no difference; "" if nothing is near.

    The last part of an option in a folder is near to it.
    """
    if ends := [other for other in known if other.endswith(f"/{name}")]:
        return f" (did you mean {' or '.join(ends)}?)"
    by_lower = {other.lower(): other for other in known}
    near = get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""


# The YAML files


@cache
def options(group: str) -> tuple[str, ...]:
    """The names of a group's files; of those in its folders FOLDER/NAME."""
    folder = files("cl_runner.conf") / group
    return tuple(sorted(names_below(folder))) if folder.is_dir() else ()


def names_below(folder: Traversable) -> Iterator[str]:
    """The names of the YAML files in a folder and in its folders."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from (f"{entry.name}/{name}" for name in names_below(entry))
        elif entry.name.endswith(".yaml"):
            yield entry.name.removesuffix(".yaml")


@cache
def text(group: str, name: str) -> str:
    """The text of an option's file; of config.yaml what a user sets, without Hydra's part."""
    file = files("cl_runner.conf") / group / f"{name}.yaml"
    whole = file.read_text(encoding="utf-8")
    if (group, name) != ("", "config"):
        return whole
    return whole.partition("\n\n")[2].partition("\nhydra:")[0]


def head(text: str) -> list[str]:
    """The comment on top of a file."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# "))
    return lines


def body(text: str) -> list[str]:
    """The lines of a file without the comment on top."""
    return [line for line in text.splitlines() if not line.startswith("#")]


def lines_of(group: str, name: str) -> str:
    """The same of an option's file, to be shown below its name."""
    return "\n".join(f"  {line}" for line in body(text(group, name)))


def summary(group: str, name: str) -> str:
    """The first sentence on top of an option's file."""
    return re.split(r"(?<=\)\.)\s|(?<=\.)\s(?=[A-Z])", " ".join(head(text(group, name))))[0]


SECTIONS = ("data", "budget", "eval", "checkpoint", "training")


def section(name: str) -> str:
    """A section of config.yaml, or all of it."""
    if name == "training":
        return f"training\n\n{textwrap.indent(text('training', 'default').rstrip(), '  ')}"
    whole = text("", "config").rstrip()
    if name == "config":
        return f"Keys outside the groups\n\n{textwrap.indent(whole, '  ')}"
    return dict(entries(whole))[name]


def entries(text: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The keys of a YAML text with dots, each with its lines: value, comment, and what is below."""
    for block in re.split(r"^(?=\w+:)", textwrap.dedent(text), flags=re.MULTILINE):
        if found := re.match(r"(\w+):(.*)", block):
            key = f"{prefix}{found[1]}"
            yield key, block.rstrip()
            below = block.partition("\n")[2]
            if re.search(r"^\s+\w+:", below, flags=re.MULTILINE):
                yield from entries(below, f"{key}.")


@cache
def described() -> dict[str, dict[str, str]]:
    """Of each file with keys (a strategy=ewc, say), the keys with dots and the lines that tell."""
    found = {"": dict(entries(text("", "config")))}
    for group in ("training", "benchmark", "model", "optimizer", "strategy"):
        for name in options(group):
            label = group if group == "training" else f"{group}={name}"
            found[label] = dict(entries(text(group, name), f"{group}."))
    return found


def keys() -> tuple[str, ...]:
    """All keys that a command may set."""
    return tuple(dict.fromkeys(key for described_ in described().values() for key in described_))


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
