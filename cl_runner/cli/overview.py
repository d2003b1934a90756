"""`cl-run status`: a line for each job in and below some folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cl_runner.errors import check
from cl_runner.machine.console import show
from cl_runner.results.names import JOBS, STATES, STATUS
from cl_runner.results.status import found, one_line, read, state

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
            at += f" ({one_line(about['task_name'])[:40]})" if "task_name" in about else ""
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
