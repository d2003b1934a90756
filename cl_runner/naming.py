"""Names of output folders: OmegaConf resolvers that conf/config.yaml refers to.

They are registered when the package is imported, because the workers of a parallel launcher import
it anew. Raw overrides make no folder names: a slash nests, and 300 characters are too many.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import cast

from omegaconf import OmegaConf

LONGEST = 80  # characters; file systems take 255 bytes, eyes less
SILENT = re.compile(r"\+*(resume|verbose|plots|checkpoint\.\w+)=")  # what makes no other run


def slug(overrides: Sequence[str]) -> str:
    """The overrides in characters that are safe in a folder's name, cut to a readable length."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", ",".join(telling(overrides)))[:LONGEST] or "default"


def digest(overrides: Sequence[str]) -> str:
    """Eight hex digits that tell apart overrides with the same slug."""
    text = "\0".join(telling(overrides))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def plain(overrides: Sequence[str]) -> list[str]:
    """Hydra's list of overrides as written: ${...} in it is not meant to be resolved here."""
    return cast("list[str]", OmegaConf.to_container(overrides, resolve=False))


def telling(overrides: Sequence[str]) -> list[str]:
    """The overrides that say which run it is: with the others it keeps its folder."""
    return [override for override in plain(overrides) if not SILENT.match(override)]


def unique() -> str:
    """Eight random hex digits: two runs that start in the same second get two folders."""
    return secrets.token_hex(4)


def register() -> None:
    """Make the resolvers known to OmegaConf; a second call changes nothing."""
    OmegaConf.register_new_resolver("cl_run.slug", slug, replace=True)
    OmegaConf.register_new_resolver("cl_run.digest", digest, replace=True)
    # Cached, so that all who ask during one command get the same folder.
    OmegaConf.register_new_resolver("cl_run.unique", unique, replace=True, use_cache=True)
