"""`cl.sweep`: many runs, by `cl-run -m` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from cl_runner.api.overrides import Value, given, sweep_of
from cl_runner.api.running import folder_of, in_python
from cl_runner.errors import Bug, UserError, check
from cl_runner.machine.systems import hand_on

if TYPE_CHECKING:
    from cl_runner.api.runs import Runs

TOLD = "cl-run: "  # before the line of what ended a command
KNOWN = (0, 1, 2)  # its codes where it has come to its end: 1 and 2 if jobs have failed


def sweep(
    *overrides: str, out: str | Path | None = None, resume: bool = False, **keys: Value
) -> Runs:
    """Run every combination of several values, and give back all runs, those that failed included.

    `cl.sweep("strategy=ewc,er", seed=[0, 1, 2])` is `cl-run -m strategy=ewc,er seed=0,1,2`: six
    runs, in a process of its own, whose lines are printed while it goes on.

    Args:
        overrides: settings as they are typed after `cl-run -m`; several values with commas between.
        out: the folder of the sweep; None: a new one below `multirun/`.
        resume: go on with the sweep in `out`; what is complete there is not repeated.
        keys: settings; a list is what is swept over: `seed=[0, 1, 2]`. A setting that is a list
            stands in a list: `model__hidden_sizes=[[256, 256]]`.

    A run that fails does not stop the others: see `Runs.failed`. Ctrl-C lets the jobs save what
    they have, and raises KeyboardInterrupt; the same call with `resume=True` goes on.

    Raises UserError for a mistake that the command tells before it begins its jobs, and Bug if its
    process is killed, or finds a mistake of ours.
    """
    from cl_runner.cli.messages import explain
    from cl_runner.cli.typed import understood

    settings = sweep_of(overrides, keys)
    check(not given(settings, "hydra.sweep.dir"), "write out=FOLDER instead of hydra.sweep.dir")
    check(not resume or out is not None, "resume=True needs out=FOLDER, the sweep to go on with")
    folder = new_folder() if out is None else Path(out).expanduser()
    where = [f"hydra.sweep.dir={folder_of(folder)}", *(["resume=true"] if resume else [])]
    keep = [] if given(settings, "checkpoint.keep") else ["checkpoint.keep=true"]
    args = ["-m", *settings, *keep, *where]
    try:
        understood(args)  # most mistakes need no process
    except Exception as error:
        code, line = explain(error, args)
        if code != 2:
            raise
        raise UserError(in_python(line)) from None
    last, code = lines_of([sys.executable, "-m", "cl_runner", *args])
    if last.startswith(TOLD):
        line = in_python(last.removeprefix(TOLD))
        raise UserError(line) if code == 2 else Bug(line)
    if code not in KNOWN:
        raise Bug(f"the sweep's process ended with code {code}; resume=True goes on in {folder}")
    from cl_runner.api.runs import load_runs

    return load_runs(folder)


def new_folder() -> Path:
    """A sweep's folder, named as the command would do it."""
    return Path("multirun", time.strftime("%Y-%m-%d"), time.strftime(f"%H-%M-%S-{token_hex(4)}"))


def lines_of(command: Sequence[str]) -> tuple[str, int]:
    """Run a command, print its lines as they come, and give back the last one and the exit code.

    It is a session of its own: Ctrl-C, of which a terminal and a notebook tell different processes,
    is handed on once, and what the command does then is waited for.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    last = ""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        start_new_session=os.name == "posix",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = line.rstrip("\n")
                print(last, flush=True)
        except BaseException as error:
            asked = isinstance(error, KeyboardInterrupt)
            hand_on(process, signal.SIGINT if asked else signal.SIGTERM)
            rest = process.stdout.read().rstrip("\n")
            print(rest, flush=True)
            raise
    return last, process.returncode
