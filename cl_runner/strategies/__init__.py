"""Strategies: one file and one YAML each, found by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from cl_runner.config import parse
from cl_runner.errors import UserError, one_of
from cl_runner.strategies.base import Strategy


def available() -> tuple[str, ...]:
    """The names of all strategies: the modules of this package."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"))


def find(name: str) -> type[Strategy]:
    """The strategy class that the module `name` defines. Raises UserError for an unknown name."""
    one_of("strategy.name", name, available())
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Strategy) and c.__module__ == module.__name__
    )
    return found


def build(node: Mapping[str, Any]) -> Strategy:
    """The strategy that the configuration's `strategy` section describes. Raises UserError."""
    if "name" not in node:
        raise UserError(f"strategy.name must be one of {', '.join(available())}")
    return parse(find(str(node["name"])), node, "strategy")
