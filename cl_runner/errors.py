"""The ways in which a run ends early, each told in one line; and want of memory."""

from __future__ import annotations

import errno


class Bug(Exception):
    """An exception that nobody foresaw; the message says where its traceback is."""


# What torch says of a lack of memory, and the loader of shared libraries.
EXHAUSTED = ("out of memory", "allocate", "size calculation overflowed", "multiplication overflow")
NOT_MAPPED = "failed to map segment"


class UserError(Exception):
    """A mistake in what the user asked for or provided; `cl-run` exits with code 2.

    The message is one line: what is wrong, which key, and what is allowed.
    """


class Diverged(Exception):
    """The loss or the parameters are not finite any more: status `failed`, exit code 1."""


def check(condition: bool, message: str) -> None:
    """Raise UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError unless value is among the allowed ones."""
    check(value in allowed, f"{key} must be one of {', '.join(allowed)}, got {value!r}")


def exhausted(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted, or would be many times over."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in EXHAUSTED)
    if isinstance(error, ImportError):
        return NOT_MAPPED in str(error)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
