"""The two ways in which a run ends early on purpose. Both are told to the user in one line."""


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
