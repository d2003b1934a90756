"""A plugin of pytest for `mutation.py`: the quickest tests first, and configurations kept.

mutmut starts pytest anew for each mutant, in a process forked from one that has run all tests. Once
a test fails the rest is not run, so quick ones come first; and what Hydra composes, which no mutant
changes, is kept from that process.
"""

from __future__ import annotations

from types import ModuleType

import pytest
from mutmut.state import state

CACHED = ("composed", "part")  # functions of the tests' conftest.py
kept: dict[str, object] = {}


def pytest_plugin_registered(plugin: object) -> None:
    """Give the tests' conftest.py the caches of the first one."""
    for name in CACHED:
        if isinstance(plugin, ModuleType) and hasattr(plugin, name):
            setattr(plugin, name, kept.setdefault(name, getattr(plugin, name)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by the time that each test took."""
    items.sort(key=lambda item: state().duration_by_test.get(item.nodeid, 0.0))
