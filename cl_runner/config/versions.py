"""What OmegaConf 2.4 and Hydra 1.4, which go together, call otherwise than 2.3 and 1.3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import omegaconf
from omegaconf import OmegaConf

NEW = tuple(map(int, omegaconf.__version__.split(".")[:2])) >= (2, 4)
# What a configuration may name as `_target_`, or in its logging, of Hydra's own part. Before 1.4
# Hydra takes any name, but for some that are known to be dangerous.
TARGETS = (
    *("cl_runner.*", "hydra_plugins.*", "hydra._internal.core_plugins.*", "optuna.samplers.*"),
    *("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"),
)
# For `hydra.initialize_config_module` and the like; without it Hydra 1.3 behaves as 1.1 does.
BASE: dict[str, Any] = {} if NEW else {"version_base": "1.3"}
# For `ConfigStore.store`, of what may be stored already.
AGAIN: dict[str, Any] = {"replace": True} if NEW else {}
# For `hydra.main`.
MAIN: dict[str, Any] = {"execution_whitelist": TARGETS} if NEW else BASE


@contextmanager
def trusted() -> Iterator[None]:
    """What Hydra does meanwhile may call TARGETS only, as in a function of `hydra.main`."""
    if not NEW:
        yield
        return
    utils: Any = import_module("hydra.utils")
    with utils.execution_whitelist(TARGETS):
        yield


def register_resolver(name: str, function: Callable[..., Any], *, use_cache: bool = False) -> None:
    """Make a resolver known to OmegaConf, in the place of an older one."""
    register: Any = OmegaConf.register_resolver if NEW else OmegaConf.register_new_resolver
    off = {"annotation_validation": "off"} if NEW else {}  # of the types of arguments
    register(name, function, replace=True, use_cache=use_cache, **off)
