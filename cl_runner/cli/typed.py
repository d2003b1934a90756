"""What is typed after `cl-run`, before Hydra composes it, and what to say of a name it has not.

Hydra takes some of what nobody can mean, and refuses some of what is clear. Here the one is told in
a line, and the other written out.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from cl_runner.cli import choices, renamed
from cl_runner.config import schema
from cl_runner.config.keys import dotted, nearest
from cl_runner.config.keys import renamed as renamed_key
from cl_runner.config.outline import schemas
from cl_runner.config.plugins import HINT
from cl_runner.errors import UserError, check
from cl_runner.machine.console import say

LAUNCHERS = ("joblib", "submitit", "ray")  # packages, and our extras
# A first word that is a command elsewhere, and what stands for it here.
WORDS = {
    "run": "cl-run needs no such word: cl-run strategy=ewc",
    "train": "cl-run needs no such word: cl-run strategy=ewc",
    "sweep": "write cl-run -m strategy=naive,ewc",
    "multirun": "write cl-run -m strategy=naive,ewc",
    "resume": "write cl-run resume=FOLDER",
    "help": "write cl-run --help",
    "version": "write cl-run --version",
    "compare": "write cl-compare PATH",
    "verify": "write cl-compare verify PATH",
}
MANY = 80  # options: more are not listed in an error's line
COMMANDS = ("list", "explain", "status", "advise", "export")


def understood(args: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them. Raises UserError for what cannot be meant."""
    options = flags(args)
    typed = [arg for arg in options.overrides if not arg.startswith("resume=")]  # FOLDER: any text
    if not (options.cfg or options.run or options.multirun or runs(options)):
        return list(args)
    check_words(typed)
    # A configuration of the user's own may have such a group.
    rewritten = experiments(typed) if options.config_name is None else {}
    parsed = OverridesParser.create().parse_overrides([rewritten.get(arg, arg) for arg in typed])
    overrides = dict(zip(typed, parsed, strict=True))
    check_groups(list(overrides.values()))
    if not (options.config_name or options.config_dir):
        check_protocol(list(overrides.values()))
    if options.multirun or "hydra.mode=MULTIRUN" in typed:
        if sweeper := [arg for arg in typed if arg.startswith("hydra/sweeper=")]:
            check_sweeper(sweeper[0], overrides)
        rewritten |= deferred(overrides)
    elif not (options.cfg or options.config_name or options.config_dir):  # they may say hydra.mode
        check_single(overrides)
    return own_models([rewritten.get(arg, arg) for arg in args])


def own_models(args: Sequence[str]) -> list[str]:
    """The arguments; keys that every model has may be set where the YAML of one's own lacks them.

    `++` tells Hydra so.
    """
    if not any(arg.lstrip("+").startswith("plugins=") for arg in args):
        return list(args)
    common = tuple(f"model.{f.name}=" for f in fields(schema.Model) if f.name != "name")
    return [f"++{arg}" if arg.startswith(common) else arg for arg in args]


def experiments(typed: Sequence[str]) -> dict[str, str]:
    """What the choices of experiments are replaced by; tells which of the names are old."""
    replaced, old = {}, []
    for arg in typed:
        key, _, value = arg.partition("=")
        if key.lstrip("+") == "experiment":
            names = re.findall(r"[\w/-]+", value)  # also of a list, and within choice()
            old += [name for name in names if renamed.current(name) != name]
            new = re.sub(r"[\w/-]+", lambda name: renamed.current(name[0]), value)
            replaced[arg] = f"{key if key.startswith('+') else f'+{key}'}={new}"
    if old:
        say(renamed.note(old), sys.stderr)
    return replaced


def runs(options: Namespace) -> bool:
    """Whether a command without -m and --cfg trains."""
    return not (options.help or options.hydra_help or options.shell_completion or options.info)


def flags(args: Sequence[str]) -> Namespace:
    """The flags and overrides. Refuses unknown flags in a line: argparse would print its usage."""
    for arg in args:
        shown = arg.encode(errors="surrogateescape").decode(errors="backslashreplace")
        check(not re.search("[\\ud800-\\udfff]", arg), f"cannot read {shown}: it is not UTF-8")
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        unknown = re.search(r"--?([A-Za-z][\w-]*)(=\S+)?", message.partition(": ")[2])
        if unknown and message.startswith("unrecognized"):
            name, value = unknown[1].replace("-", "_"), unknown[2] or "=..."
            near = nearest(name, choices.keys(), cutoff=0.8)
            if near:
                raise UserError(f"there is no flag {unknown[0]}; write {near[0]}{value}")
        raise UserError(f"{message}; flags go before the key=value pairs, see cl-run --help")

    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_args(list(args))
    safe = options.experimental_rerun is None
    check(safe, "--experimental-rerun executes what its file says, and cl-run has no use for it")
    return options


def check_words(typed: Sequence[str]) -> None:
    """Refuse words that are no key=value, with what they may stand for."""
    words = [arg for arg in typed if "=" not in arg and not arg.startswith("~")]
    if not words:
        return
    first = words[0].lower()
    check(first not in WORDS, f"cannot read {words[0]}: {WORDS.get(first)}")
    groups = (*choices.GROUPS.values(), "training")
    options = {name: f"{group}={name}" for group in groups for name in choices.options(group)}
    meant = [renamed.current(word.lower()) for word in words]
    near = [get_close_matches(word, options, n=1, cutoff=0.75) for word in meant]
    if all(near):
        written = " ".join(options[name] for (name,) in near)
        raise UserError(f"cannot read {' '.join(words)}: did you mean {written}?")
    command = get_close_matches(first, COMMANDS, n=1, cutoff=0.75)
    check(not command, f"cannot read {words[0]}: did you mean cl-run {' '.join(command)}?")


def check_groups(overrides: Sequence[Any]) -> None:
    """Refuse a group that is given twice: Hydra takes the last one, and both were meant."""
    groups = {*choices.GROUPS.values(), "training"}
    given = [o.key_or_group for o in overrides]
    twice = [key for key, n in Counter(given).items() if n > 1 and (key in groups or "/" in key)]
    for key in twice:
        values = " and ".join(o.input_line for o in overrides if o.key_or_group == key)
        raise UserError(f"{key} is given twice: {values}; keep one, or sweep with -m {key}=A,B")


def check_protocol(overrides: Sequence[Any]) -> None:
    """Refuse a choice of protocol: it sets no strategy, and what it pins is for its experiments."""
    for override in overrides:
        chosen = override.key_or_group.partition("/")[0] == "protocol"
        line = f"{override.input_line}: a protocol comes with an experiment, see"
        check(not chosen, f"{line} cl-run list experiments")


def check_single(overrides: dict[str, Any]) -> None:
    """Refuse what is for sweeps in a command without -m."""
    for arg, override in overrides.items():
        key = override.key_or_group
        sweeps = key in ("hydra/sweeper", "hydra/launcher") or key.startswith("hydra.sweeper.")
        check(not sweeps, f"{arg} is for sweeps: it needs -m (--multirun)")
        if override.is_sweep_override():
            value = arg.partition("=")[2]
            hint = f"; as one list, write '{key}=[{value}]'" if is_list(key) else ""
            hint = f"; to train them together, 'seeds=[{value}]'" if key == "seed" else hint
            raise UserError(f"{arg} is several values: a sweep, which needs -m (--multirun){hint}")


def is_list(key: str) -> bool:
    """Whether a key takes a list."""
    section, _, name = key.rpartition(".")
    if section == "strategy":
        lines = (told.get(key, "") for told in choices.described().values())
        return any(re.match(r"\w+: *\[", line) for line in lines)
    types = {str(f.type) for schema in schemas(section) for f in fields(schema) if f.name == name}
    return any(type_.startswith("list[") for type_ in types)


def check_sweeper(sweeper: str, overrides: dict[str, Any]) -> None:
    """Refuse keys that some of the swept choices lack, where cl-run's own sweeper is not there.

    Another one makes its jobs one by one: a job without the key would end it in the middle.
    """
    if sweeper == "hydra/sweeper=cl_run":
        return
    skips = "missing_keys=skip" in overrides
    check(not skips, f"missing_keys=skip is for cl-run's own sweeper, not for {sweeper}")
    for group in overrides.values():
        if not group.is_discrete_sweep() or group.key_or_group not in choices.GROUPS.values():
            continue
        for option in group.sweep_string_iterator():
            known = choices.described().get(f"{group.key_or_group}={option}")
            for key in (o.key_or_group for o in overrides.values()):
                lacking = known and key.startswith(f"{group.key_or_group}.") and key not in known
                check(
                    not lacking, f"{key} is no key of {group.key_or_group}={option}; leave it out"
                )


def deferred(overrides: dict[str, Any]) -> dict[str, str]:
    """What a sweep's fixed overrides are replaced by, where they wait for a job's own choice.

    Hydra composes a sweep once before its jobs, with the defaults in the place of all swept groups,
    and holds what is fixed against that. What is swept it leaves to the jobs: so one value below a
    swept group is written as a sweep over one (null, which choice() does not take, over two that
    are one job). Below an added group, such as +experiment, is all.
    """
    swept = [o for o in overrides.values() if o.is_sweep_override() and "." not in o.key_or_group]
    sections = tuple(f"{o.key_or_group.replace('/', '.')}." for o in swept)
    everywhere = any(o.is_add() for o in swept)
    replaced = {}
    for arg, override in overrides.items():
        key, _, value = arg.partition("=")
        waits = key.lstrip("+").startswith(sections) or (everywhere and "." in key)
        plain = not (override.is_sweep_override() or override.is_delete())
        if waits and plain and not override.is_hydra_override():
            one = f"choice({value or chr(39) * 2})"
            replaced[arg] = f"{key}={'null,null' if override.value() is None else one}"
    return replaced


def unknown_option(group: str, name: str, options: list[str], args: Sequence[str] = ()) -> str:
    """What to say about a file that a group of the configuration has not. args: what was typed.

    An experiment of an old name is asked for in a file of the user's own: what is typed is read.
    """
    new = renamed.current(name) if group == "experiment" else name
    question = f" (it is now {new})" if new != name else choices.question(name, options)
    allowed = f"known are {', '.join(options)}" if options else "there is no such group"
    if len(options) > MANY:
        (plural,) = (p for p, of in choices.GROUPS.items() if of == group)
        allowed = f"cl-run list {plural} shows all {len(options)}"
    if group in ("strategy", "benchmark", "model"):
        allowed += f"; {place_of_yaml(group, name, args)}"
    plugin = group in ("hydra/launcher", "hydra/sweeper")
    if plugin and (extra := name.partition("_")[0]) in (*LAUNCHERS, "optuna"):
        allowed += f"; it needs pip install 'cl_runner[{extra}]'"
    return f"unknown option {group}={name}{question}; {allowed}"


def place_of_yaml(group: str, name: str, args: Sequence[str]) -> str:
    """Where the YAML of something that is none of ours may be: a question to the user."""
    named = any(arg.lstrip("+").startswith("plugins=") for arg in args)
    return f"in a package of yours it is conf/{group}/{name}.yaml" if named else HINT


def unknown_key(key: str, parent: DictConfig) -> str:
    """What to say about a key that the configuration has not: the nearest ones, and its neighbours.

    `parent` is the node of the composed configuration in which the key was looked for.
    """
    if line := renamed_key(key):
        return line
    root = parent._get_root()
    hydras = key.startswith("hydra")
    near = nearest(key, [k for k in dotted(root) if k.startswith("hydra") == hydras])
    question = f" (did you mean {' or '.join(near[:3])}?)" if near else ""
    where = "" if parent is root else f" in {key.rpartition('.')[0]}"
    known = ", ".join(str(k) for k in parent if where or hydras or k != "hydra")
    return f"unknown key {key}{question}" + (f"; known{where} are {known}" if known else "")
