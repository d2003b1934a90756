"""The YAML of the user's own packages: `plugins=[my_lib]` puts my_lib/conf on Hydra's search path.

That has to be done before Hydra composes, and so with the arguments: beside `plugins` stands then
what a user could have written himself, `hydra.searchpath=[file://.../my_lib/conf]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from cl_runner.cli.typed import flags
from cl_runner.config.plugins import yaml_folders

SEARCH_PATH = "hydra.searchpath"
LOOK = Hydra.get_mode


def with_yaml_of_plugins(args: Sequence[str]) -> list[str]:
    """The arguments, with the folders of YAML of the packages that they name.

    A search path of the user's own comes first. Nothing is imported. Raises UserError for a package
    that is not there.
    """
    named = [arg for arg in args if key_of(arg) == "plugins"]
    folders = yaml_folders(name for arg in named for name in listed(arg))
    if not folders:
        return list(args)
    own = [arg for arg in args if key_of(arg) == SEARCH_PATH]
    places = [place for arg in own for place in listed(arg)]
    whole = f"{SEARCH_PATH}=[{','.join(quoted(p) for p in (*places, *map(url, folders)))}]"
    at = args.index(named[0])
    before, after = ([a for a in part if a not in own] for part in (args[:at], args[at:]))
    return [*before, whole, *after]


def compose_once(args: Sequence[str]) -> None:
    """Spare Hydra the composition by which it learns `hydra.mode`: in our YAML that never stands.

    It takes as long as the one for the run. Where YAML of the user's own is read, or the mode is
    among the arguments, Hydra looks.
    """
    options = flags(args)
    looks = bool(options.config_dir or options.config_path or options.config_name)
    looks |= any(key_of(arg) in ("hydra.mode", SEARCH_PATH) for arg in args)
    Hydra.get_mode = LOOK if looks else unset  # type: ignore[method-assign]


def share_the_store() -> None:
    """Let Hydra look at the configurations that Python code has registered where they are.

    It copies all of them whenever it composes and, for `--help`, for each group of files; what it
    takes of them it copies once more.
    """
    ConfigStore.__deepcopy__ = itself  # type: ignore[attr-defined]


def itself(store: ConfigStore, _: dict[int, Any]) -> ConfigStore:
    """The store, which is one for all anyway."""
    return store


def unset(*_: object, **__: object) -> None:
    """The mode that no configuration sets: the flags tell."""


def key_of(arg: str) -> str:
    """The key of an override; "" of a flag."""
    key, found, _ = arg.partition("=")
    return key.lstrip("+") if found and not key.startswith("-") else ""


def listed(arg: str) -> list[str]:
    """The words of an override that is a list, or of several that are swept; else none.

    What is no list of words is refused with the rest of the configuration.
    """
    override = OverridesParser.create().parse_override(arg)
    values: list[Any] = [override.value()]
    if override.is_sweep_override():
        values = list(override.sweep_iterator()) if override.is_discrete_sweep() else []
    return [word for value in values if isinstance(value, list) for word in map(plain, value)]


def plain(value: Any) -> str:
    """A word without the quotes that Hydra remembers."""
    return str(getattr(value, "text", value))


def url(folder: Path) -> str:
    """A folder as Hydra writes it."""
    return f"file://{folder.as_posix()}"


def quoted(text: str) -> str:
    """A text for Hydra's grammar, whatever is in it."""
    return QuotedString(text, Quote.single).with_quotes()
