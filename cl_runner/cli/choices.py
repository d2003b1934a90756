"""The YAML files of conf/: the options of each group, and the keys that they hold."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from yaml import safe_load

if TYPE_CHECKING:
    from importlib.abc import Traversable


GROUPS = {  # as `cl-run list` names them
    "strategies": "strategy",
    "benchmarks": "benchmark",
    "models": "model",
    "adapters": "adapter",
    "optimizers": "optimizer",
    "loggers": "logger",
    "experiments": "experiment",
}


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


@cache
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


SECTIONS = (
    *("data", "ssl", "detector", "budget", "guard"),
    *("eval", "energy", "checkpoint", "training"),
)


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
    for group in ("training", "benchmark", "model", "adapter", "optimizer", "logger", "strategy"):
        for name in options(group):
            label = group if group == "training" else f"{group}={name}"
            found[label] = dict(entries(text(group, name), f"{group}."))
    return found


def keys() -> tuple[str, ...]:
    """All keys that a command may set."""
    return tuple(dict.fromkeys(key for described_ in described().values() for key in described_))
