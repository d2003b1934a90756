"""How many of a sweep's jobs are done, in the terminal's last line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cl_runner.machine.screen import clock, fitted, left_of, shown
from cl_runner.results import status

sweep = ExitStack()  # what is shown of the sweep that is running, until it ends
SLOWEST = 0.02  # share of the time that may pass in looking what has become of the jobs


class Jobs:
    """The jobs below a folder, counted by what they have left there, whoever runs them."""

    def __init__(self, folder: Path, word: str) -> None:
        self.folder, self.word, self.began = folder, word, time.perf_counter()
        self.states: dict[str, str] = {}  # of those that have ended
        self.before = {name: ended_as(folder / name) for name in status.jobs(folder)}
        self.done_before = sum(of.get("state") == "complete" for of in self.before.values())
        self.all = len(self.before)
        self.next = 0.0  # when to look again

    def look(self) -> None:
        """Count again, unless that was done a moment ago."""
        began = time.perf_counter()
        if began < self.next:
            return
        names = status.jobs(self.folder)
        self.all = len(names)
        for name in (name for name in names if name not in self.states):
            now = ended_as(self.folder / name)
            ended = now.get("state") in ("complete", "failed")
            # What an earlier attempt has failed at is begun again.
            if ended and (now["state"] == "complete" or now != self.before.get(name)):
                self.states[name] = str(now["state"])
        took = time.perf_counter() - began
        self.next = began + max(1.0, took / SLOWEST)

    def lines(self, width: int) -> list[str]:
        """How many are done, how many failed, and the time that is left; none for a single job."""
        self.look()
        if self.all < 2:
            return []
        done, failed = len(self.states), sum(v == "failed" for v in self.states.values())
        new = done - self.done_before
        seconds = left_of(time.perf_counter() - self.began, new, self.all - self.done_before)
        left = f"{self.word} {done}/{self.all} done" + (f", {failed} failed" if failed else "")
        return [fitted(left, done / self.all, f"{clock(seconds)} left", width)]


def ended_as(out: Path) -> Mapping[str, Any]:
    """What a job's status.json says; of one with seeds=[...] what those of its runs come to."""
    if inner := status.jobs(out):
        states = {str(status.read(out / name).get("state")) for name in inner}
        ended = states <= {"complete", "failed"}
        return {"state": "running" if not ended else min(states - {"complete"}, default="complete")}
    return status.read(out)


@contextmanager
def jobs_shown(folder: Path, word: str, *, told: bool) -> Iterator[None]:
    """Meanwhile the terminal's last line tells how many of the jobs of a folder are done."""
    with shown(Jobs(folder, word).lines, told=told):
        yield
