"""What a logger is: five functions of a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

# Where a value stands: after so many tasks, or after so many optimizer steps of the run.
TASKS, STEPS = "after_task", "steps"
Values = Mapping[str, float]  # of one moment, by their names


class About(NamedTuple):
    """What a logger is told of a run when it begins."""

    out: Path  # the run's folder
    name: str
    group: str  # what its sweep, or its folder's folder, is called
    config: Mapping[str, Any]  # the configuration, flat, and what else the numbers depend on
    known: str | None  # the library's own name of the run that goes on; None: it begins


class Library(Protocol):
    """A module of this room. What `begin` returns first is handed to the others.

    Whatever is raised switches the logger off, and no more (`switch`): but for UserError of
    `check_place`.
    """

    def check_place(self, settings: Any, out: Path, /) -> None:
        """Raise UserError where the logger could not write, before anything is trained."""

    def begin(self, settings: Any, about: About, /) -> tuple[Any, str]:
        """Begin, or go on; and the library's own name of the run."""

    def measured(self, handle: Any, axis: str, points: Sequence[tuple[int, Values]], /) -> None:
        """Take values at places on an axis, TASKS or STEPS, in order."""

    def kept(self, handle: Any, out: Path, files: Sequence[Path], /) -> None:
        """Take files of the run's folder `out` as they stand: tables, and pictures in .png."""

    def ended(self, handle: Any, state: str, /) -> None:
        """The run has ended: complete, failed or interrupted."""
