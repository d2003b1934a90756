"""The loggers of a run, each of which is switched off by its first failure. The run goes on."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cl_runner.config.schema import Config
from cl_runner.errors import UserError
from cl_runner.machine.reading import json_values
from cl_runner.results.files import write_text
from cl_runner.results.names import LOGGERS
from cl_runner.running.loggers import mlflow, tensorboard, wandb
from cl_runner.running.loggers.library import About, Library, Values
from cl_runner.running.messages import print_and_log

log = logging.getLogger(__name__)
LIBRARIES: dict[str, Library] = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
SUFFIXES = {".csv", ".yaml", ".json"}  # of what is kept; a checkpoint is for the run alone


def check_places(config: Config, out: Path) -> None:
    """Raise UserError where a logger could not write."""
    for name, settings in config.logger.items():
        LIBRARIES[name].check_place(settings, out)


class Switch:
    """The loggers of a run."""

    def __init__(self, config: Config, out: Path) -> None:
        self.config, self.out = config, out
        self.on: dict[str, Any] = {}  # handles, by the names of those that work

    def __bool__(self) -> bool:
        """Whether there is anybody to be told."""
        return bool(self.on)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Begin, or go on with what is known in the run's folder. config: flat."""
        there = names_in(self.out) if self.config.resume else {}
        if left := ",".join(name for name in there if name not in self.config.logger):
            line = f"this run was logged before: logger=[{left}] would go on with it"
            print_and_log(self.config, line)
        out = self.out.absolute()
        for name, settings in self.config.logger.items():
            about = About(out, out.name, out.parent.name, config, there.get(name))
            try:
                self.on[name], there[name] = quietly(LIBRARIES[name].begin, settings, about)
            except Exception as error:  # noqa: BLE001 - the run is what counts
                self.off(name, error)
        if self.on:
            write_text(self.out / LOGGERS, json.dumps(there, indent=1) + "\n")

    def measured(self, axis: str, points: Sequence[tuple[int, Values]]) -> None:
        """Tell values at places on an axis."""
        if points:
            self.tell("measured", axis, points)

    def end(self, state: str) -> None:
        """Tell the run's end: complete, failed or interrupted. Files are kept unless it goes on."""
        if self.on and state != "interrupted":
            files = [path for path in sorted(self.out.iterdir()) if path.suffix in SUFFIXES]
            files = [path for path in files if path.name != LOGGERS and path.name[0] != "."]
            self.tell("kept", self.out, [*files, *sorted(self.out.glob("pictures/[!.]*.png"))])
        self.tell("ended", state)
        self.on.clear()

    def tell(self, what: str, *args: Any) -> None:
        """Call a function of each library that works."""
        for name, handle in list(self.on.items()):
            try:
                quietly(getattr(LIBRARIES[name], what), handle, *args)
            except Exception as error:  # noqa: BLE001 - the run is what counts
                self.off(name, error)

    def off(self, name: str, error: Exception) -> None:
        """Say why a logger failed, and let it go."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print_and_log(self.config, f"logger={name} failed and is switched off: {reason}")
        if (handle := self.on.pop(name, None)) is not None:
            with suppress(Exception):
                quietly(LIBRARIES[name].ended, handle, "failed")


def quietly(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) without the warnings of libraries, which nobody can heed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


def names_in(out: Path) -> dict[str, str]:
    """What the libraries call the run in a folder, by their names; the file may be anybody's."""
    with suppress(UserError):
        found = json_values(out / LOGGERS, 2**16)
        if isinstance(found, dict):
            return {k: v for k, v in found.items() if k in LIBRARIES and plain(v)}
    return {}


def plain(name: Any) -> bool:
    """Whether something may be a library's name of a run."""
    return isinstance(name, str) and name.isascii() and 0 < len(name) < 65 and name.isalnum()
