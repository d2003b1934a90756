"""The line for an error, and its exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from cl_runner.cli import choices
from cl_runner.cli.typed import LAUNCHERS, unknown_key, unknown_option
from cl_runner.errors import Bug, Diverged, UserError
from cl_runner.machine import console
from cl_runner.machine.signals import Interrupted
from cl_runner.sweeping import folders

SHOW_TRACEBACK = "CL_RUNNER_TRACEBACK"  # set to 1: show the traceback of every error


def print_error(error: BaseException) -> int:
    """Print an error's line, below its traceback if that is wanted; return the exit code."""
    code, message = explain(error)
    if code is None or os.environ.get(SHOW_TRACEBACK) == "1":
        console.say("".join(traceback.format_exception(error)), sys.stderr, end="")
    console.say(f"cl-run: {message}", sys.stderr)
    return 1 if code is None else code


def explain(error: BaseException, args: Sequence[str] | None = None) -> tuple[int | None, str]:
    """The exit code and the line for an error; no code means that it is unforeseen.

    args: what was typed; None: the process's own arguments.
    """
    args = sys.argv[1:] if args is None else args
    match error:
        case KeyboardInterrupt():
            code = error.exit_code if isinstance(error, Interrupted) else 130
            return code, f"interrupted{folders.how_to_go_on()}"
        case Diverged() | Bug():
            return 1, one_line(str(error))
        case OverrideParseException():
            hint = "write key=value, and quote a value with special characters: 'key=\"a=b\"'"
            return 2, one_line(f"cannot read {error.override}: {hint}")
        case MissingConfigException(missing_cfg_file=str(path), options=list(options)):
            return 2, one_line(unknown_option(*whole(path, options), args))
        case HydraException(__cause__=ConfigKeyError() | ConfigAttributeError() as cause) if (
            OmegaConf.is_dict(cause.parent_node)
        ):
            return 2, one_line(unknown_key(str(cause.full_key), cause.parent_node))
        case HydraException(__cause__=OmegaConfBaseException() as cause):
            return 2, one_line(f"{error} {cause}")
        case UserError() | HydraException() | OmegaConfBaseException() | YAMLError() | OSError():
            return 2, one_line(reason(error))
        case ValueError():  # Hydra's own checks, which do not always name the override
            return 2, one_line(f"{error} (given: {' '.join(args)})")
        case _ if type(error).__module__.partition(".")[0] in LAUNCHERS:
            return (
                1,
                f"the launcher lost a job: {one_line(str(error))[:200]}{folders.how_to_go_on()}",
            )
        case _:
            return None, f"a bug in cl_runner or Hydra: {one_line(repr(error))}; see above"


def whole(path: str, options: list[str]) -> tuple[str, str, list[str]]:
    """The group, the name and the options of a file that is not there, of which Hydra tells.

    The options are those that lie beside it; of experiments those in folders count, too.
    """
    if path.startswith("experiment/"):
        known = sorted({*options, *choices.options("experiment")})
        return "experiment", path.removeprefix("experiment/"), known
    return *path.rpartition("/")[::2], options


def reason(error: Exception) -> str:
    """The message of an error; of the system's, which file and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def one_line(text: str) -> str:
    """The lines of a message in one, without what only developers of OmegaConf need."""
    noise = ("object_type=", "reference_type=")
    return " ".join(
        s for line in text.splitlines() if (s := line.strip()) and not s.startswith(noise)
    )
