"""What became of a job: `status.json` in its folder, the one place that tells.

A sweep's folder, or that of `seeds=[...]`, also has `jobs.json`: the folder of every job that was
asked for, with its overrides. So a job that has not begun is known as missing.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

from cl_runner.config.schema import Config, Eval
from cl_runner.errors import UserError
from cl_runner.machine.locks import held
from cl_runner.machine.reading import json_values
from cl_runner.results.files import DAMAGED, below, read_rows, write_text
from cl_runner.results.names import JOBS, OVERRIDES, STATES, STATUS, SUMMARY

LARGEST = {STATUS: 2**16, JOBS: 2**26}  # bytes: what is larger is no file of ours
TYPES = {  # of what status.json may say
    **dict.fromkeys(
        ("state", "reason", "exception", "traceback", "host", "time", "task_name"), str
    ),
    **dict.fromkeys(("task", "tasks", "step", "pid", "ppid"), int),
}


def write(out: Path, state: str, **about: Any) -> None:
    """Replace a folder's status.json, with the process and the time. Raises UserError.

    about: reason and exception of a failure; task (counted from 1) of tasks, and step, where it is.
    """
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
    position = {key: there[key] for key in ("task", "tasks", "task_name", "step") if key in there}
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
    """What `run.loop.run` returned for the complete run in a folder; None if there is none.

    That is ACC on the validation data where there are any; NaN where eval.tasks leaves it
    unmeasured. Raises UserError for a damaged summary.
    """
    if read(out).get("state") != "complete" or not (out / SUMMARY).exists():
        return None
    rows = read_rows(out / SUMMARY)  # of a job with seeds=[...] it has several
    if len(rows) != 1:
        return None
    try:
        cell = rows[0].get("validation_ACC") or rows[0]["ACC"]
        return math.nan if not cell and not measures_acc(rows[0]) else float(cell)
    except (KeyError, ValueError):
        message = f"{out / 'summary.csv'} is complete but has no ACC; {DAMAGED}"
        raise UserError(message) from None


def measures_acc(row: Mapping[str, str]) -> bool:
    """Whether the complete run of a row of summary.csv has its ACC. Raises UserError."""
    T = row.get("benchmark.num_tasks", "")
    tasks = int(T) if T.isascii() and T.isdecimal() else None
    return Eval(tasks=row.get("eval.tasks") or "all").whole(tasks)


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
    sweeps = {path.parent for path in below(folder, JOBS)}
    asked = {sweep / name for sweep in sweeps for name in jobs(sweep)}
    begun = {path.parent for path in below(folder, STATUS)}
    return sorted((asked | begun) - sweeps)
