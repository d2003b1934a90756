"""The mathematics takes tensors, at most as a batch: what takes a run's state lives elsewhere."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import pytest

from cl_runner import core, functional

MODULES = [m.name for m in pkgutil.iter_modules(functional.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_knows_of_no_state_task_or_stream(name: str) -> None:
    values = vars(import_module(f"cl_runner.functional.{name}")).values()
    ours = {v for v in values if inspect.isclass(v) and v.__module__ == core.__name__}
    assert ours <= {core.Batch}
