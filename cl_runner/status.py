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
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cl_runner.errors import UserError, check
from cl_runner.reading import LONG, json_values

STATUS, JOBS, LOCK = "status.json", "jobs.json", ".lock"
STATES = ("complete", "running", "interrupted", "failed", "killed", "missing")


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
    """Leave the reason of a failure in a job's folder, beside where the job stands."""
    there = read(out)
    position = {key: there[key] for key in ("task", "tasks", "step") if key in there}
    reason = {"reason": str(error), "exception": type(error).__name__}
    write(out, "failed", **(reason | position | about))


def read(out: Path) -> dict[str, Any]:
    """What status.json says; empty if there is none, or none of ours."""
    return _json(out / STATUS)


def jobs(folder: Path) -> dict[str, list[str]]:
    """The jobs that a sweep was asked for: sub-folder -> overrides; empty if that is not known."""
    return _json(folder / JOBS)


def ask_for(folder: Path, asked: Mapping[str, Sequence[str]]) -> None:
    """Add to the jobs that a sweep is asked for."""
    from cl_runner.results import write_text  # numpy, not needed for help and mistakes

    write_text(folder / JOBS, json.dumps(jobs(folder) | dict(asked), indent=1) + "\n")


def _json(path: Path) -> dict[str, Any]:
    with suppress(UserError):
        content = json_values(path, LONG)
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


def held(out: Path) -> bool:
    """Whether a process is at work in a folder: its lock dies with it."""
    if not (out / LOCK).exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(out / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # a folder that cannot be written: nobody can tell
        return False


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
            at = f"{about['task']} of {about['tasks']}" if "tasks" in about else ""
            reason = about.get("reason", "") if now == "failed" else ""
            rows.append((now, at, str(out), " ".join(reason.split())))
    table = [("state", "task", "folder", "reason"), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    counted = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    text = "\n".join(line.rstrip() for line in lines)
    return f"{text}\n{counts.total()} jobs: {counted}", set(counts) == {"complete"}


def main(args: Sequence[str]) -> int:
    """`cl-run status PATH...`: 0 if all jobs are complete, else 1. Raises UserError."""
    usage = "cl-run status PATH...: the folders of runs or sweeps"
    if list(args) in (["-h"], ["--help"]):
        print(usage)
        return 0
    check(bool(args) and not any(arg.startswith("-") for arg in args), usage)
    text, complete = overview([Path(arg) for arg in args])
    print(text)
    return 0 if complete else 1
