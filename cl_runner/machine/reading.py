"""Reading what somebody else may have written: regular files, no longer than allowed, plain values.

A pipe or a device would be read for ever, and a few hundred bytes of YAML whose aliases refer to
one another stand for gigabytes; both are refused before they are read. Nothing that is read
executes.
"""

from __future__ import annotations

import json
import os
import stat
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_runner.errors import UserError, check

SHORT = 1 << 20  # bytes of a run's own YAML and JSON files: a thousand times what they take
LONG = 1 << 30  # of a table, or of the list of a sweep's jobs
DEPTH = 20  # of values within values; a configuration has three
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former, of C, is ten times as fast


def regular(path: Path) -> BinaryIO:
    """An open file that is one: no folder, pipe or device. Raises UserError, or OSError."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(path, flags)
    except PermissionError:  # on Windows of a folder, too
        check(not path.is_dir(), f"{path} is no regular file")
        raise
    file = os.fdopen(number, "rb")
    if not stat.S_ISREG(os.fstat(number).st_mode):
        file.close()
        raise UserError(f"{path} is no regular file")
    return file


def read_text(path: Path, most: int = SHORT) -> str:
    """A file's text, without the mark that Windows puts before it. Raises UserError."""
    try:
        with regular(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    check(len(content) <= most, f"{path} is longer than {most} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: {error}") from None


def yaml_values(path: Path) -> Any:
    """The dictionary or list of a YAML file, in plain values. Raises UserError."""
    content = read_text(path)
    try:
        check_flat(path, content)
        return OmegaConf.to_container(OmegaConf.load(StringIO(content)))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def check_flat(path: Path, content: str) -> None:
    """Raise UserError for YAML that refers to itself or is nested deeper than any of ours."""
    depth = 0
    for event in yaml.parse(content, Loader=Loader):
        check(
            getattr(event, "anchor", None) is None,
            f"{path} holds anchors or aliases (& and *), which cl-run does not write",
        )
        starts = isinstance(event, yaml.events.CollectionStartEvent)
        depth += starts - isinstance(event, yaml.events.CollectionEndEvent)
        check(depth <= DEPTH, f"{path} holds values nested deeper than {DEPTH}")


def json_values(path: Path, most: int = SHORT) -> Any:
    """The values of a JSON file. Raises UserError."""
    try:
        return json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
