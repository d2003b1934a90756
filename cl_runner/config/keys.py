"""Keys of a configuration, with dots: all there are, and those that are like another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig

# What keys of older versions are called now.
RENAMED = {"init_from": "model.weights", "init_only": "model.weights_for"}


def renamed(key: str) -> str:
    """The line for somebody who has written an old key; "" of any other."""
    return f"{key} is now {RENAMED[key]}: write that in its place" if key in RENAMED else ""


def nearest(key: str, keys: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The keys whose last names are nearest to that of a key, the nearest first.

    Of those of one name that of the key's own section is meant, else that of `training`; where
    neither has it, all are named.
    """
    found = []
    for name in get_close_matches(last(key).lower(), {last(k) for k in keys}, cutoff=cutoff):
        alike = [k for k in keys if last(k) == name]
        own, training = (
            [k for k in alike if k == f"{section}.{name}"]
            for section in (key.rpartition(".")[0], "training")
        )
        found += own or training or alike
    return found


def last(key: str) -> str:
    """The name of a key without what stands before its last dot."""
    return key.rpartition(".")[2]


def dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a configuration, with dots."""
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield f"{prefix}{key}"
            yield from dotted(node._get_node(key), f"{prefix}{key}.")
