"""Strategies: one file and one YAML each, found by name; and those of the user's own packages."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from cl_runner.config.parse import parse
from cl_runner.config.plugins import BENCHMARK, MODEL, Kind, check_files, defined, theirs
from cl_runner.errors import UserError
from cl_runner.strategies.base import Strategy


@cache
def available() -> tuple[str, ...]:
    """The names of all strategies: the modules of this package, without `base` and `parts`."""
    found = (m for m in pkgutil.iter_modules(__path__) if not m.ispkg)
    return tuple(sorted(m.name for m in found if m.name != "base"))


STRATEGY = Kind(
    *("strategy", "strategy.name", Strategy, "", ""), ours=lambda: dict.fromkeys(available())
)


def find(name: str, plugins: Sequence[str] = ()) -> type[Strategy]:
    """The strategy class that the module `name` defines, here or in one of the user's packages.

    Raises UserError for an unknown name, and for packages that cannot be used, whatever it is that
    they are named for.
    """
    check_files((STRATEGY, BENCHMARK, MODEL), plugins)
    if entry := theirs(STRATEGY, name, plugins):
        return entry[0]
    module = importlib.import_module(f"{__name__}.{name}")
    own: type[Strategy] = defined(module, Strategy)[0]
    return own


def build(node: Mapping[str, Any], plugins: Sequence[str] = ()) -> Strategy:
    """The strategy that the configuration's `strategy` section describes. Raises UserError."""
    if "name" not in node:
        raise UserError(f"strategy.name must be one of {', '.join(available())}")
    return parse(find(str(node["name"]), plugins), node, "strategy")
