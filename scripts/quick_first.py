"""A plugin of pytest for `mutation.py`: the quickest tests first, and configurations kept.

mutmut starts pytest anew for each mutant, in a process forked from one that has run all tests. Once
a test fails the rest is not run, so quick ones come first; and what Hydra composes, which no mutant
changes, is kept from that process.
"""

from __future__ import annotations

from types import ModuleType

import pytest
from mutmut.state import state

kept: dict[str, object] = {}


def pytest_plugin_registered(plugin: object) -> None:
    """Give the tests' conftest.py the cache of the first one."""
    if isinstance(plugin, ModuleType) and hasattr(plugin, "composed"):
        plugin.composed = kept.setdefault("composed", plugin.composed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by the time that each test took."""
    items.sort(key=lambda item: state().duration_by_test.get(item.nodeid, 0.0))
