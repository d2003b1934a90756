"""`cl.run`: one run, in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cl_runner.api.overrides import Value, given, overrides_of, quoted
from cl_runner.errors import UserError, check

if TYPE_CHECKING:
    from cl_runner.api.runs import Run


def run(
    *overrides: str,
    out: str | Path | None = None,
    resume: bool | str | Path = False,
    **keys: Value,
) -> Run:
    """Train on a stream of tasks, and give back what was measured.

    `cl.run("strategy=ewc", "benchmark=split_digits", seed=0, training__epochs=2)` is
    `cl-run strategy=ewc benchmark=split_digits seed=0 training.epochs=2`, in this process.

    Args:
        overrides: settings as they are typed after `cl-run`.
        out: the folder of the results; None: a new one below `outputs/`, as the command makes it.
        resume: True goes on with the run in `out`, or gives it back if it is complete; a folder:
            goes on with the run there, which needs no settings.
        keys: settings; `__` stands for the dot of a nested key, `training__epochs=2`.

    The trained network is kept (`checkpoint.keep=true`) unless the settings say otherwise, so that
    `Run.model` is there. Ctrl-C saves the run and raises KeyboardInterrupt; `resume=True` goes on.

    Raises:
        UserError: a mistake in the settings, in one line, before anything is trained.
        Diverged: the loss or the parameters are not finite any more; what was measured before is
            in the folder.
    """
    from cl_runner.cli.in_process import begun, run_here

    args = command_of(overrides_of(overrides, keys), out, resume)
    try:
        folder = run_here(args)
    except UserError as error:
        raise UserError(in_python(str(error))) from None
    except KeyboardInterrupt:
        if (left := begun()) is not None:
            print(f"interrupted; to go on: cl.run(resume={str(left)!r})", file=sys.stderr)
        raise
    from cl_runner.api.runs import run_in

    return run_in(folder)


def command_of(settings: list[str], out: str | Path | None, resume: bool | str | Path) -> list[str]:
    """The arguments of `cl-run`. Raises UserError for what one run cannot be."""
    seeds = "seeds=[...] are several runs: write cl.sweep(..., seed=[0,1,2])"
    check(not given(settings, "seeds"), seeds)
    folders = [one for one in settings if one.startswith("hydra.run.dir=")]
    check(out is None or not folders, f"out={out} and {' '.join(folders)}: keep one")
    args = list(settings)
    if not isinstance(resume, bool):
        check(out is None, f"resume={resume} goes on in that folder: leave out=... away")
        return [*args, f"resume={resume}"]
    if resume:
        check(out is not None or bool(folders), "resume=True needs out=FOLDER; or resume=FOLDER")
        args.append("resume=true")
    if not given(settings, "checkpoint.keep"):
        args.append("checkpoint.keep=true")
    return args if out is None else [*args, f"hydra.run.dir={folder_of(out)}"]


def folder_of(out: str | Path) -> str:
    """A folder for Hydra's grammar. Raises UserError for a name that Hydra would refer with."""
    check("${" not in str(out), f"out={out}: Hydra takes ${{ in the name of a folder for its own")
    return quoted(str(Path(out).expanduser()))


def in_python(line: str) -> str:
    """A mistake's line as the command prints it, with the function for what it says of sweeps."""
    return f"{line} (in Python: cl.sweep)" if "-m " in line else line
