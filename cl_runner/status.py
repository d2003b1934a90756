"""What became of a job: `status.json` in its folder, the one place that tells, and `cl-run status`.

A sweep's folder, or that of `seeds=[...]`, also has `jobs.json`: the folder of every job that was
asked for, with its overrides. So a job that has not begun is known as missing.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

from cl_runner.config import Config
from cl_runner.console import show
from cl_runner.errors import UserError, check
from cl_runner.locks import held
from cl_runner.reading import json_values

STATUS, JOBS, OVERRIDES = "status.json", "jobs.json", "overrides.yaml"
LARGEST = {STATUS: 2**16, JOBS: 2**26}  # bytes: what is larger is no file of ours
STATES = ("complete", "running", "interrupted", "failed", "killed", "missing")
TYPES = {  # of what status.json may say
    **dict.fromkeys(("state", "reason", "exception", "traceback", "host", "time"), str),
    **dict.fromkeys(("task", "tasks", "step", "pid", "ppid"), int),
}

HELP = """\
cl-run status PATH...

PATH is the folder of a run, of a sweep, or of anything around them: multirun/2026-01-31, say.
A line for each run, with the task it stands at and the reason of a failure:

  complete      all is measured
  running       a process is at work
  interrupted   stopped by Ctrl-C or a batch system; resume=true goes on
  failed        an error, no memory, or divergence; resume=true repeats it
  killed        it runs by its own word, but no process does
  missing       asked for, not begun

Exit code: 0 if all runs are complete, 1 if not, 2 for a mistake."""


def write(out: Path, state: str, **about: Any) -> None:
    """Replace a folder's status.json, with the process and the time. Raises UserError.

    about: reason and exception of a failure; task (counted from 1) of tasks, and step, where it is.
    """
    from cl_runner.results import write_text  # numpy, not needed for help and mistakes

    with suppress(OSError):  # the folder may have been removed meanwhile
        out.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    host = {"pid": os.getpid(), "ppid": os.getppid(), "host": socket.gethostname(), "time": now}
    write_text(out / STATUS, json.dumps({"state": state, **about, **host}, indent=1) + "\n")


def fail(out: Path, error: Exception, **about: Any) -> None:
    """Leave the reason of a failure in a job's folder, beside where the job stands.

    A run that is complete stays complete.
    """
    there = read(out)
    if there.get("state") == "complete":  # the failure is of another attempt in its folder
        return
    position = {key: there[key] for key in ("task", "tasks", "step") if key in there}
    reason = {"reason": str(error), "exception": type(error).__name__}
    write(out, "failed", **(reason | position | about))


def read(out: Path) -> dict[str, Any]:
    """What status.json says; empty if there is none, or none of ours."""
    said = _json(out / STATUS)
    if said.get("state") not in STATES:
        return {}
    return {key: value for key, value in said.items() if type(value) is TYPES.get(key)}


def jobs(folder: Path) -> dict[str, list[str]]:
    """The jobs that a sweep was asked for: sub-folder -> overrides; empty if that is not known.

    What leads out of the sweep's folder is none of its jobs.
    """
    asked = {name: of for name, of in _json(folder / JOBS).items() if inside(name)}
    return {name: list(map(str, of)) for name, of in asked.items() if isinstance(of, list)}


def ask_for(folder: Path, asked: Mapping[str, Sequence[str]]) -> None:
    """Add to the jobs that a sweep is asked for."""
    from cl_runner.results import write_text  # numpy, not needed for help and mistakes

    write_text(folder / JOBS, json.dumps(jobs(folder) | dict(asked), indent=1) + "\n")


def inside(name: str) -> bool:
    """Whether a relative path leads to a folder below."""
    path = PurePath(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def one_line(text: str) -> str:
    """A text of a file as one line, without what would command the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _json(path: Path) -> dict[str, Any]:
    """What a file of ours holds; empty if it is none: a pipe, too large, nested without end."""
    with suppress(UserError):
        content = json_values(path, LARGEST[path.name])
        if isinstance(content, dict):
            return content
    return {}


def finished(out: Path) -> float | None:
    """What `runner.run` returned for the complete run in a folder; None if there is none.

    That is ACC on the validation data where there are any. Raises UserError for a damaged summary.
    """
    from cl_runner.results import DAMAGED, read_rows  # numpy, not needed for help and mistakes

    if read(out).get("state") != "complete" or not (out / "summary.csv").exists():
        return None
    rows = read_rows(out / "summary.csv")  # of a job with seeds=[...] it has several
    if len(rows) != 1:
        return None
    try:
        return float(rows[0].get("validation_ACC") or rows[0]["ACC"])
    except (KeyError, ValueError):
        message = f"{out / 'summary.csv'} is complete but has no ACC; {DAMAGED}"
        raise UserError(message) from None


def going_on(config: Config, out: Path) -> Config:
    """The configuration of a job that resumes what lies in its folder."""
    return replace(config, resume=config.resume or (out / OVERRIDES).exists())


def state(out: Path) -> str:
    """One of STATES. A job is killed that runs by its own words, and that no process holds."""
    if held(out):
        return "running"
    said = str(read(out).get("state", "missing"))
    return "killed" if said == "running" else said


def found(folder: Path) -> list[Path]:
    """The folders of the jobs in and below a folder; for seeds=[...] those of its seeds."""
    sweeps = {path.parent for path in folder.rglob(JOBS)}
    asked = {sweep / name for sweep in sweeps for name in jobs(sweep)}
    begun = {path.parent for path in folder.rglob(STATUS)}
    return sorted((asked | begun) - sweeps)


def overview(folders: Sequence[Path]) -> tuple[str, bool]:
    """A table of all jobs in and below folders, and whether all are complete. Raises UserError."""
    rows, counts = [], Counter[str]()
    for folder in folders:
        check(folder.is_dir(), f"there is no folder {folder}")
        here = found(folder)
        check(bool(here), f"no runs in {folder}: there is no {STATUS} and no {JOBS}")
        for out in here:
            about, now = read(out), state(out)
            counts[now] += 1
            at = f"{about['task']} of {about['tasks']}" if {"task", "tasks"} <= about.keys() else ""
            reason = about.get("reason", "") if now == "failed" else ""
            rows.append((now, at, one_line(str(out)), one_line(reason)))
    table = [("state", "task", "folder", "reason"), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    counted = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    text = "\n".join(line.rstrip() for line in lines)
    return f"{text}\n{counts.total()} jobs: {counted}", set(counts) == {"complete"}


def main(args: Sequence[str]) -> int:
    """`cl-run status PATH...`: 0 if all jobs are complete, else 1. Raises UserError."""
    if {"-h", "--help"} & set(args):
        show(HELP)
        return 0
    usage = "cl-run status PATH...: the folders of runs or sweeps; see cl-run status --help"
    check(bool(args) and not any(arg.startswith("-") for arg in args), usage)
    text, complete = overview([Path(arg) for arg in args])
    show(text)
    return 0 if complete else 1
