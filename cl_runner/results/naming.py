"""Names of output folders: OmegaConf resolvers that conf/config.yaml refers to.

They are registered when the package is imported, because the workers of a parallel launcher import
it anew. Raw overrides make no folder names: a slash nests, and 300 characters are too many.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_runner.config.identity import (
    ABOUT_THE_COMMAND,
    IMMATERIAL,
    canonical,
    config_hash,
    of_run,
)
from cl_runner.config.versions import register_resolver

LONGEST = 110  # characters; file systems take 255 bytes, eyes less
SILENT = IMMATERIAL | (ABOUT_THE_COMMAND - {"seeds"})
_planned: dict[str, str] = {}  # digest -> folder of a job of the sweep that is running


def slug(overrides: Sequence[str], *, _root_: DictConfig) -> str:
    """The overrides, in one order, in characters that are safe in a folder's name.

    Groups and keys without a dot come first, the seed last. What is too long is left out, but the
    seed; of one that is too long for a name by itself, the beginning stands.
    """
    texts = sorted(safe(normal(override, _root_)) for override in telling(overrides))
    seed = [text for text in texts if text.startswith("seed=")]
    rest = [text for text in texts if not text.startswith("seed=")]
    room = LONGEST - len("_".join(["", *seed]))
    kept: list[str] = []
    for text in sorted(rest, key=lambda text: "." in text.partition("=")[0]):
        short = text[:LONGEST]
        if len("_".join([*kept, short])) <= room or (not kept and len(text) > LONGEST):
            kept.append(short[:room])
    return "_".join([*kept, *seed]).strip("_") or "default"


def safe(text: str) -> str:
    """A text in characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text)


def normal(override: str, root: DictConfig) -> str:
    """An override with its number as it is resolved: `lambda=1.0` and `lambda=1` are one."""
    key, _, value = override.partition("=")
    try:
        found = OmegaConf.select(root, key.lstrip("+"))
    except OmegaConfBaseException:  # the run tells
        return override
    number = isinstance(found, int | float) and not isinstance(found, bool)
    return f"{key}={canonical(found) if number else value}"


def content(root: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain values, without Hydra's part."""
    node = OmegaConf.masked_copy(root, [str(key) for key in root if key != "hydra"])
    try:
        found: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:  # the run tells
        found = OmegaConf.to_container(node)
    return cast("dict[str, Any]", canonical(found))


def digest(*, _root_: DictConfig) -> str:
    """The first eight digits of the run's `config_hash`: the same run has the same ones.

    `seeds=[...]` are several runs in one folder, to which more may be added.
    """
    found = content(_root_)
    seeds = found.get("seeds")
    found = of_run(found)
    return config_hash(found if seeds is None else found | {"seed": None, "seeds": []})[:8]


def plan(config: DictConfig, overrides: Sequence[str]) -> None:
    """Name the folder of a sweep's job by some of its overrides, where it has none yet."""
    own = digest(_root_=config)
    _planned[own] = f"{slug(OmegaConf.create(list(overrides)), _root_=config)}-{own}"


def job(overrides: Sequence[str], sweep: str, *, _root_: DictConfig) -> str:
    """The folder of a sweep's job: what is there with its digest, or listed, or planned; else new.

    A worker of a parallel launcher finds the plan in the list, jobs.json.
    """
    from cl_runner.results import status  # which every import of the package would pay for

    own = digest(_root_=_root_)
    there = sorted(path.name for path in Path(sweep).glob(f"*-{own}"))
    listed = [name for name in status.jobs(Path(sweep)) if name.endswith(f"-{own}")]
    for name in (*there, *listed):
        return name
    return _planned.get(own) or f"{slug(overrides, _root_=_root_)}-{own}"


def written(text: str) -> str:
    """A value as Hydra reads it from the command line: in quotes, unless it is a plain path."""
    if re.fullmatch(r"([A-Za-z]:)?[A-Za-z0-9_./-]+", text):
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def plain(overrides: Sequence[str]) -> list[str]:
    """Hydra's list of overrides as written: ${...} in it is not meant to be resolved here."""
    return cast("list[str]", OmegaConf.to_container(overrides, resolve=False))


def telling(overrides: Sequence[str]) -> list[str]:
    """The overrides that identify the run; the rest do not change its folder."""
    keys = {o: o.partition("=")[0].lstrip("+") for o in plain(overrides)}
    return [o for o, key in keys.items() if not {key, key.partition(".")[0]} & SILENT]


def unique() -> str:
    """Eight random hex digits: two runs that start in the same second get two folders."""
    return secrets.token_hex(4)


def register() -> None:
    """Make the resolvers known to OmegaConf; a second call changes nothing."""
    register_resolver("cl_run.slug", slug)
    register_resolver("cl_run.job", job)
    # Cached, so that all who ask during one command get the same folder.
    register_resolver("cl_run.unique", unique, use_cache=True)
