"""What is told of a run that is complete: at length, or in one line as a job of many."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from cl_runner.config.schema import Config
from cl_runner.functional.metrics import Matrix
from cl_runner.machine.console import near, say
from cl_runner.results import text
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import read_matrix, read_titles
from cl_runner.results.names import ACCURACY_MATRIX, SUMMARY
from cl_runner.running.evaluation import readings


def tell(
    config: Config,
    out: Path,
    job: str,
    columns: Mapping[str, Any],
    R: Matrix,
    names: Sequence[str],
) -> None:
    """Say what a run has reached; of a job of many the matrix only with verbose=full.

    columns: of its summary; names: of its tasks, where they have some.
    """
    seconds = f"{columns['seconds']:.1f} s"
    if not job or config.verbose == "full":
        for line in at_length(config, columns, R, names):
            say(line)
    if job:
        reached = text.in_words(columns) or text.further(columns)
        say(" · ".join(filter(None, [job, reached, seconds])))
    else:
        say(f"{seconds} · results in {near(out)}")


def at_length(
    config: Config, columns: Mapping[str, Any], R: Matrix, names: Sequence[str]
) -> Iterator[str]:
    """The matrix, the metrics, and those besides that were asked for."""
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    yield text.format_matrix(R, names, width)
    yield text.format_metrics(columns, readings(config.scenario))
    asked = config.eval.online or config.eval.tasks != "all"
    asked = asked or config.benchmark.chosen or getattr(config.benchmark, "base", None) is not None
    if asked and (further := text.further(columns)):
        yield further


def tell_of(config: Config, out: Path, job: str) -> None:
    """The same of a run that another process has trained, from its folder. Raises UserError."""
    (row,) = read_rows(out / SUMMARY)
    columns = {name: number(cell) for name, cell in row.items()}
    path = out / ACCURACY_MATRIX
    tell(config, out, job, columns, read_matrix(path), read_titles(path))


def number(cell: str) -> float | None:
    """The number in a cell of a table; None where there is none."""
    try:
        return float(cell)
    except ValueError:
        return None
