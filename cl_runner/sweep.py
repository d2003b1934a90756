"""What happens around the jobs of a sweep: their folders, their failures, the merged summary.csv.

A sweep's folder is its state: each job leaves `summary.csv`, `error.txt` or both in a folder of its
own, and everything here is read from there. So it works with every launcher, whichever process or
machine a job ran on.
"""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

SUMMARY, ERROR, MISTAKE = "summary.csv", "error.txt", "UserError"
SHOWN = ("run", "ACC", "forgetting", "status")  # the final table's columns
REMOVABLE = {"multirun.yaml", "cl-run.log"}  # what Hydra may have left in a refused run's folder

_created: list[Path] = []  # folders that this command makes, innermost first


class Folders(Callback):
    """Hydra's callback (conf/config.yaml): notes which folders are new, merges a sweep's results."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the run's folder before Hydra makes it."""
        _note(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's folder before Hydra makes it."""
        _note(config, "sweep")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Merge and report. Exits when jobs failed, because Hydra takes no exit code from us."""
        try:
            folder = Path(config.hydra.sweep.dir)
            rows = merge(folder)
            if config.verbose:
                print(table(rows))
            print(f"{len(rows)} runs: {folder / SUMMARY}")
            errors = failures(folder)
        except Exception as error:  # Hydra would make a warning of it, and exit with code 0
            raise SystemExit(1) from error
        if errors:
            print(f"{len(errors)} of {len(rows)} runs failed:")
            for run, reason in errors.items():
                print(f"  {folder / run}: {reason.removeprefix(f'{MISTAKE}: ')}")
            raise SystemExit(2 if all(e.startswith(f"{MISTAKE}: ") for e in errors.values()) else 1)


def _note(config: DictConfig, mode: str) -> None:
    HydraConfig.instance().set_config(config)  # the folder's name may refer to ${hydra:...}
    with suppress(OmegaConfBaseException):  # an invalid name is Hydra's to refuse, in a moment
        folder = Path(config.hydra[mode].dir).absolute()
        _created[:] = [path for path in (folder, *folder.parents) if not path.exists()]


def discard() -> None:
    """Remove the folders that this command made, if nothing but Hydra's own files lies in them."""
    for folder in _created:
        if folder.is_dir() and REMOVABLE.issuperset(os.listdir(folder)):
            for file in folder.iterdir():
                file.unlink()
            with suppress(OSError):  # someone else may use it meanwhile
                folder.rmdir()


def failures(folder: Path) -> dict[str, str]:
    """The failed jobs: sub-folder -> "type of the error: reason"."""
    return {
        path.parent.relative_to(folder).as_posix(): path.read_text(encoding="utf-8").strip()
        for path in sorted(folder.rglob(ERROR))
    }


def merge(folder: Path) -> list[dict[str, str]]:
    """Gather the jobs' summary.csv in one, and return its rows.

    The columns are the union of the jobs' columns, after `run`, the sub-folder; what a job has not
    is empty. A job that failed before it could write a summary has a row with its status only.
    """
    rows = {run: {"run": run, "status": "failed"} for run in failures(folder)}
    for path in folder.rglob(SUMMARY):
        if path.parent != folder:
            run = path.parent.relative_to(folder).as_posix()
            with path.open(newline="", encoding="utf-8") as file:
                rows[run] = {"run": run, **next(csv.DictReader(file))}
    merged = [rows[run] for run in sorted(rows)]
    # Jobs with a summary come first: their order of columns is the order.
    columns = dict.fromkeys(key for row in sorted(merged, key=len, reverse=True) for key in row)
    temporary = folder / f".{SUMMARY}.{os.getpid()}"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), restval="")
        writer.writeheader()
        writer.writerows(merged)
    temporary.replace(folder / SUMMARY)
    return merged


def table(rows: list[dict[str, str]]) -> str:
    """The rows' main columns, aligned."""
    cells = [SHOWN, *(tuple(_short(row.get(key, "")) for key in SHOWN) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _short(cell: str) -> str:
    """A fraction with four digits; any other cell as it is."""
    try:
        return f"{float(cell):.4f}"
    except ValueError:
        return cell
