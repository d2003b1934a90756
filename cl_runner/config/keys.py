"""Keys of a configuration, with dots: all there are, and those that are like another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig


def nearest(key: str, keys: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The keys whose last names are nearest to that of a key, the nearest first.

    Of those of one name that of `training` comes first, which is meant most often.
    """
    names = get_close_matches(last(key).lower(), {last(k) for k in keys}, cutoff=cutoff)
    found = sorted(keys, key=lambda k: not k.startswith("training."))
    return sorted((k for k in found if last(k) in names), key=lambda k: names.index(last(k)))


def last(key: str) -> str:
    """The name of a key without what stands before its last dot."""
    return key.rpartition(".")[2]


def dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a configuration, with dots."""
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield f"{prefix}{key}"
            yield from dotted(node._get_node(key), f"{prefix}{key}.")
