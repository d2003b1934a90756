"""Strategies: one file and one YAML each, found by name; and those of the user's own packages."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from cl_runner.config.parse import parse
from cl_runner.errors import UserError, check, one_of
from cl_runner.strategies.base import Strategy


@cache
def available() -> tuple[str, ...]:
    """The names of all strategies: the modules of this package, without `base` and `parts`."""
    found = (m for m in pkgutil.iter_modules(__path__) if not m.ispkg)
    return tuple(sorted(m.name for m in found if m.name != "base"))


def find(name: str, plugins: Sequence[str] = ()) -> type[Strategy]:
    """The strategy class that the module `name` defines, here or in one of the user's packages.

    Raises UserError for an unknown name, and for packages that cannot be used.
    """
    theirs: dict[str, type[Strategy]] = {}
    for own, cls in (pair for package in dict.fromkeys(plugins) for pair in plugged(package)):
        check(own not in theirs, f"plugins: two of the packages have a strategy {own}")
        theirs[own] = cls
    one_of("strategy.name", name, (*available(), *theirs))
    return theirs.get(name) or defined(importlib.import_module(f"{__name__}.{name}"))[0]


def plugged(package: str) -> Iterator[tuple[str, type[Strategy]]]:
    """The strategies of a user's package, or of a single module, by the names of their files.

    Imports all of its modules. Raises UserError.
    """
    module = imported(package)
    inner = pkgutil.iter_modules(getattr(module, "__path__", ()))
    modules = [module, *(imported(f"{package}.{m.name}") for m in inner)]
    found = {m.__name__.rpartition(".")[2]: m for m in modules if defined(m)}
    check(bool(found), f"plugins: {package} defines no strategy, a subclass of Strategy")
    for name, module in found.items():
        own, *more = defined(module)
        check(not more, f"plugins: {module.__name__} defines several strategies; a file holds one")
        check(
            name not in available(),
            f"plugins: {module.__name__} has the name of a strategy of cl_runner; rename the file",
        )
        yield name, own


def imported(name: str) -> ModuleType:
    """A module of the user's. Raises UserError where it is missing or fails."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{name}.".startswith(f"{absent}."):  # or what it lies in
            hint = "install it, or put the folder that holds it on PYTHONPATH"
            raise UserError(f"plugins: there is no package {name}; {hint}") from None
        reason = " ".join(str(error).split())
        kind = type(error).__name__
        raise UserError(f"plugins: {name} cannot be imported ({kind}: {reason})") from error


def defined(module: ModuleType) -> list[type[Strategy]]:
    """The strategies that a module defines, not those that it imports."""
    return [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Strategy) and c.__module__ == module.__name__
    ]


def build(node: Mapping[str, Any], plugins: Sequence[str] = ()) -> Strategy:
    """The strategy that the configuration's `strategy` section describes. Raises UserError."""
    if "name" not in node:
        raise UserError(f"strategy.name must be one of {', '.join(available())}")
    cls = find(str(node["name"]), plugins)
    try:
        return parse(cls, node, "strategy")
    except OmegaConfBaseException as error:  # of a user's own class: ours are tested
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the fields of {cls.__name__} cannot be read from YAML: {reason}"
        ) from None
