"""Weights & Biases: offline files, which `wandb sync` sends, or the service itself."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cl_runner.config.loggers import WandB
from cl_runner.results.files import check_writable
from cl_runner.running.loggers.library import STEPS, TASKS, About, Values

NAMES = {TASKS: ("accuracy/*", "metrics/*", "costs/*"), STEPS: ("within/*", "train/*")}


def check_place(settings: WandB, _out: Path) -> None:
    """See Library."""
    if settings.dir is not None:
        check_writable(f"logger.wandb.dir={settings.dir}", Path(settings.dir))


def begin(settings: WandB, about: About) -> tuple[Any, str]:
    """See Library. Offline, each part of a run has files of its own, all of one name."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    own = about.known or secrets.token_hex(8)
    quiet = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
    )
    with nobody_to_ask():
        run = wandb.init(
            project=settings.project,
            mode=settings.mode,  # type: ignore[arg-type]
            dir=str(about.out if settings.dir is None else Path(settings.dir).absolute()),
            id=own,
            name=about.name,
            group=about.group,
            config=dict(about.config),
            resume="allow" if settings.mode == "online" else None,  # offline it would be a warning
            reinit="create_new",  # of a stack each run has its own
            settings=quiet,
        )
    for axis, names in NAMES.items():
        run.define_metric(axis)
        for name in names:
            run.define_metric(name, step_metric=axis)
    return run, own


def measured(run: Any, axis: str, points: Sequence[tuple[int, Values]]) -> None:
    """See Library."""
    for step, values in points:
        run.log({axis: step, **values})


def kept(run: Any, out: Path, files: Sequence[Path]) -> None:
    """See Library."""
    import wandb

    for path in () if run.disabled else files:
        if path.suffix == ".png":
            run.log({path.relative_to(out).with_suffix("").as_posix(): wandb.Image(str(path))})
        else:  # a copy: a link to the run's folder would lead nowhere once that is moved
            copy = shutil.copy(path, run.dir)
            run.save(str(copy), base_path=run.dir, policy="now")


def ended(run: Any, state: str) -> None:
    """See Library."""
    run.summary["status"] = state
    run.finish(exit_code=0 if state == "complete" else 1)


@contextmanager
def nobody_to_ask() -> Iterator[None]:
    """Meanwhile no terminal can be asked for a key: a run does not wait for an answer."""
    before = sys.stdin
    try:
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            sys.stdin = nothing
            yield
    finally:
        sys.stdin = before
