"""What check_gpu.py finds: rows, the pieces of work that make them, and the files of both."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cl_runner.results.files import csv_text, write_text

# The `state` of a row: "measured"; "failed", it was tried and is wrong; "left out", there was no
# time for it; "missing", there is nothing to try it on; "note", it is no number.
COLUMNS = ("part", "name", "value", "unit", "bar", "met", "state", "message", "second")
POISONED = 3  # exit code of a process whose GPU takes no more orders, its rows being told
Row = dict[str, Any]
Send = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """What all pieces are told."""

    out: Path
    data: Path
    device: str  # cuda | cpu
    tiny: bool


@dataclass
class Context:
    """What a piece works with: the settings, the time that is left, and where its rows go."""

    settings: Settings
    part: str
    deadline: float  # of time.monotonic
    send: Send
    memo: dict[Any, Any] = field(default_factory=dict)  # what an earlier piece has found

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def emit(
        self,
        name: str,
        value: Any = None,
        unit: str = "",
        *,
        bar: str = "",
        met: bool | None = None,
        state: str = "",
        message: str = "",
    ) -> None:
        """Tell a row. bar: what the value should be; met: whether it is."""
        answer = "" if met is None else ("yes" if met else "no")
        state = state or ("note" if value is None else "measured")
        own = {"value": value, "unit": unit, "bar": bar, "met": answer, "state": state}
        self.send({"row": {"part": self.part, "name": name, **own, "message": message}})


class Piece(NamedTuple):
    """A piece of work that makes some rows."""

    name: str
    seconds: float  # that it takes, as far as is known: it is left out where fewer are left
    run: Callable[[Context], None]
    turn: int = 0  # those of a part with turn 0 come before the next part, the others after all
    limit: float | None = None  # seconds after which it hangs; None: five times `seconds`, and 30

    @property
    def longest(self) -> float:
        """Seconds after which it hangs."""
        return 5 * self.seconds + 30 if self.limit is None else self.limit


def run_pieces(pieces: Sequence[Piece], context: Context) -> int:
    """Let the pieces tell their rows, as long as there is time; one that fails tells a row of it.

    Returns 0, or POISONED where the GPU takes no more orders: what is left wants a new process.
    """
    for piece in pieces:
        context.send({"begin": piece.name, "longest": piece.longest})
        if (left := context.left()) < piece.seconds:
            needs = f"takes about {piece.seconds:.0f} s, {max(0, left):.0f} s were left"
            context.emit(piece.name, state="left out", message=needs)
            continue
        try:
            piece.run(context)
        except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a row
            context.emit(piece.name, state="failed", message=in_a_line(error))
            if poisoned(error):
                return POISONED
        gc.collect()  # what it has made on the GPU
    return 0


def in_a_line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def poisoned(error: BaseException) -> bool:
    """Whether an error of CUDA leaves the process without a GPU; lack of memory does not."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


class Report:
    """The rows so far, in two files that are written anew after each."""

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self.out, self.about, self.rows = out, dict(about), list[Row]()
        self.begun = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, and write the files."""
        whole = {"second": round(time.monotonic() - self.begun, 1), **row}
        self.rows.append({name: whole.get(name, "") for name in COLUMNS})
        self.write()

    def write(self) -> None:
        """Write gpu.json and gpu.csv, each whole or not at all."""
        text = json.dumps({"about": self.about, "rows": self.rows}, indent=1)
        write_text(self.out / "gpu.json", text + "\n")
        about = {name: self.about.get(name, "") for name in ("card", "driver", "torch", "date")}
        write_text(self.out / "gpu.csv", csv_text([row | about for row in self.rows]))

    def failed(self) -> int:
        """How many rows failed."""
        return sum(row["state"] == "failed" for row in self.rows)

    def table(self) -> str:
        """The rows as text, those that were left out by their names."""
        shown = [row for row in self.rows if row["state"] != "left out"]
        width = max((len(row["name"]) for row in shown), default=0)
        lines = [" · ".join(f"{name} {value}" for name, value in self.about.items())]
        for i, row in enumerate(shown):
            if i == 0 or row["part"] != shown[i - 1]["part"]:
                lines.append(f"[{row['part']}]")
            lines.append(f"{row['name']:{width}}  {told(row)}".rstrip())
        for part in dict.fromkeys(row["part"] for row in self.rows):
            own = [r["name"] for r in self.rows if (r["part"], r["state"]) == (part, "left out")]
            if own:
                lines.append(f"left out of {part}: {', '.join(own)}")
        bars = [row["met"] for row in self.rows if row["met"]]
        counts = f"{self.failed()} failed, {bars.count('yes')} of {len(bars)} bars met"
        return "\n".join([*lines, f"{len(self.rows)} rows, {counts}; in {self.out}"])


def told(row: Row) -> str:
    """A row without its name."""
    value = row["value"]
    number = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    bar = f"({row['bar']}: {row['met'] or '?'})" if row["bar"] else ""
    state = "" if row["state"] in {"measured", "note"} else row["state"].upper()
    # What a number was made of stands in the files; what it lacks, here.
    message = row["message"] if row["state"] != "measured" or row["met"] == "no" else ""
    return "  ".join(filter(None, (f"{number} {row['unit']}".strip(), bar, state, message)))
