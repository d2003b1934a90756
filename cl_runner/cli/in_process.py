"""A run of `cl-run` in a process that is the caller's: a notebook, a script, another program.

What Hydra, torch and logging were set to in that process, they are set to again afterwards.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig

from cl_runner.cli.app import app
from cl_runner.cli.messages import explain
from cl_runner.cli.resume import continued
from cl_runner.cli.search_path import with_yaml_of_plugins
from cl_runner.cli.typed import flags, understood
from cl_runner.config import versions
from cl_runner.errors import UserError
from cl_runner.results.names import LOG, OVERRIDES
from cl_runner.sweeping import folders

OURS = threading.RLock()  # Hydra's state, and torch's, is the process's: one run at a time
OF_HYDRA: tuple[type, ...] = (GlobalHydra, HydraConfig, JobRuntime, version.VersionBase)
log = logging.getLogger("cl_runner")


def run_here(args: Sequence[str]) -> Path:
    """What `cl-run ARGS` does, without -m; the folder of the run.

    Raises UserError with the line that the command prints; Diverged and Bug; and KeyboardInterrupt,
    once what was done is saved.
    """
    with OURS, hydra_of_ours() as hydra, torch_as_it_was():
        folders.runs[:] = folders.created[:] = []
        try:
            options = flags(continued(with_yaml_of_plugins(understood(args))))
            out: list[Path] = []

            def task(cfg: DictConfig) -> float | None:
                out.append(Path(HydraConfig.get().runtime.output_dir))
                with logged_beside(out[0] / LOG):
                    found: float | None = app(cfg)
                    return found

            hydra.run(options.config_name or "config", task, options.overrides, False)
        except BaseException as caught:
            folders.discard()
            error = caught.__cause__ if isinstance(caught, SystemExit) else caught
            if not isinstance(error, Exception):
                raise
            code, line = explain(error, args)
            if code == 2:
                raise UserError(line) from None
            raise error from error.__cause__
    return out[0]


def begun() -> Path | None:
    """The folder of the last run of this process, if it can go on from there."""
    return next((folder for folder in folders.runs if (folder / OVERRIDES).exists()), None)


@contextmanager
def hydra_of_ours() -> Iterator[Hydra]:
    """Hydra on our YAML; the one that the process may have is put aside meanwhile."""
    known: dict[type, Any] = Singleton._instances
    before = {kind: known.pop(kind) for kind in OF_HYDRA if kind in known}
    try:
        if versions.BASE:
            version.setbase(versions.BASE["version_base"])
        places = create_automatic_config_search_path(None, None, "pkg://cl_runner.conf")
        with versions.trusted():
            yield Hydra.create_main_hydra2("cl-run", places)
    finally:
        for kind in OF_HYDRA:
            known.pop(kind, None)
        known.update(before)


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """Threads, precision and determinism of torch are afterwards as before, or as it sets them."""
    before = settings_of_torch() if "torch" in sys.modules else None
    try:
        yield
    finally:
        if "torch" in sys.modules:
            import torch

            if before is None:
                from cl_runner.running.prepare import DEFAULT_THREADS

                before = DEFAULT_THREADS, "highest", False, False
            threads, precision, deterministic, warn_only = before
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def settings_of_torch() -> tuple[int, str, bool, bool]:
    """What a run may change of them."""
    import torch

    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@contextmanager
def logged_beside(path: Path) -> Iterator[None]:
    """What cl_runner logs goes to a file; the caller's own handlers get what they got before."""
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    others = Forward(level=log.getEffectiveLevel())
    before = log.level, log.propagate
    log.addHandler(file)
    log.addHandler(others)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.setLevel(before[0])
        log.propagate = before[1]
        log.removeHandler(others)
        log.removeHandler(file)
        file.close()


class Forward(logging.Handler):
    """Hands on what the logger above would have got, were it not for the run's file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand it on, if anybody has asked for it."""
        if logging.root.handlers:  # else Python would print warnings
            logging.root.handle(record)
