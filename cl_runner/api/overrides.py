"""Keyword arguments as Hydra reads them from a command line: `training__epochs=2`, lists, None."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cl_runner.errors import UserError, check

# A setting: None, a truth value, a number, a text, a path, or a list of those. Numbers of NumPy and
# ranges count as well.
Value: TypeAlias = Any
WORD = re.compile(r"[A-Za-z_][\w/-]*", re.ASCII)  # what Hydra reads as the same text
NO_TEXT = {"null", "true", "false", "inf", "nan"}  # but for these, however they are written


def overrides_of(typed: Sequence[str], keys: Mapping[str, Value]) -> list[str]:
    """The overrides of one run: those as typed, then those of the keywords. Raises UserError."""
    return [*checked(typed), *(f"{dotted(key)}={written(v, key)}" for key, v in keys.items())]


def sweep_of(typed: Sequence[str], keys: Mapping[str, Value]) -> list[str]:
    """Those of a sweep: a list of a keyword is its values, one for each job. Raises UserError."""
    found = checked(typed)
    for key, value in keys.items():
        plain = plainly(value)
        check(plain != [], f"{dotted(key)}=[] has no value to sweep over")
        values = plain if isinstance(plain, list) else [plain]
        found.append(f"{dotted(key)}={','.join(written(one, key) for one in values)}")
    return found


def checked(typed: Sequence[str]) -> list[str]:
    """What was typed, if it is text. Raises UserError for anything else, and for flags."""
    for one in typed:
        check(isinstance(one, str), f"write settings as text or as keywords, not {one!r}")
        check(not one.startswith("-"), f"{one} is a flag of the command: write it in a terminal")
    return list(typed)


def dotted(key: str) -> str:
    """A keyword as the configuration has it. Raises UserError for one that is there already."""
    spelled = key.replace(".", "__")
    check("." not in key, f"write {spelled}=..., or the text '{key}=...', not the keyword {key}")
    return key.replace("__", ".")


def given(overrides: Iterable[str], key: str) -> bool:
    """Whether a key is among overrides."""
    return any(one.lstrip("+~").partition("=")[0] == key for one in overrides)


def plainly(value: Value) -> Any:
    """A value of NumPy, a range or a tuple as Python's own number or list."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, range | tuple) else value


def written(value: Value, key: str) -> str:
    """A value in Hydra's grammar, text in quotes where it would be read as something else.

    Raises UserError for what no setting can be.
    """
    match plainly(value):
        case None:
            return "null"
        case bool() as truth:
            return str(truth).lower()
        case int() | float() as number:
            return repr(number)
        case str() | Path() as text:
            return quoted(str(text))
        case list() as values:
            return f"[{','.join(written(one, key) for one in values)}]"
    kind = type(value).__name__
    raise UserError(f"{dotted(key)} must be None, bool, a number, text or a list, got a {kind}")


def quoted(text: str) -> str:
    """A text that Hydra reads as this text; `${` in it refers to nothing."""
    if WORD.fullmatch(text) and text.lower() not in NO_TEXT:
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    escaped = re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + "\\${", text)
    return QuotedString(escaped, Quote.single).with_quotes()
