"""What is left of a run that failed: its reason in its folder, and for a bug the traceback."""

from __future__ import annotations

import logging
import math
import traceback
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cl_runner.cli.messages import one_line, print_error, reason
from cl_runner.config.plugins import place
from cl_runner.config.schema import Config
from cl_runner.errors import Bug, Diverged, UserError, check
from cl_runner.machine.locks import Busy
from cl_runner.results import status
from cl_runner.results.names import JOBS, TRACEBACK
from cl_runner.sweeping import folders

log = logging.getLogger("cl_runner")


def known(error: Exception, out: Path, cfg: DictConfig) -> Exception:
    """The error itself if its message says all; else a Bug, with the traceback in the folder.

    A bug in a file of the user's own packages is told as that file's, with the line. It ends with
    code 1 all the same: a run failed, and no other command would have been right.
    """
    if isinstance(error, UserError | Diverged | Bug):
        return error
    plugins = cfg.plugins if OmegaConf.is_list(cfg.get("plugins")) else []
    where = place(error, [str(name) for name in plugins])
    if where is not None and where.raised:
        return bug(error, out, where.line)
    if isinstance(error, OSError) and error.errno:  # a disk that fails, a folder that is gone
        return UserError(one_line(reason(error)))
    caller = "" if where is None else f", or in {where.line}, which calls it"
    return bug(error, out, f"a bug in cl_runner{caller}")


def failed(error: Exception, out: Path, *, fail_fast: bool) -> float:
    """Conclude a failed job of a sweep (see `app`)."""
    if not isinstance(error, Busy):  # then the other process tells how it went
        try:
            record(out, error)
            if status.read(out).get("state") == "complete":  # with another configuration, say
                folders.refuse(out, error)
            log.error("%s", error)
        except (UserError, OSError):  # what writes no reason writes no results: the sweep ends
            raise SystemExit(1) from error
        if fail_fast:
            folders.stop(Path(HydraConfig.get().sweep.dir))
    print_error(error)
    if searched():
        raise error from None
    return math.nan


def check_search(config: Config) -> None:
    """Raise UserError where an optimiser asks for ACC and the run would not measure it."""
    acc = f"a search needs ACC, which eval.tasks={config.eval.tasks} does not measure"
    measured = config.eval.whole(config.benchmark.num_tasks)
    check(measured or not searched(), f"{acc}: use eval.tasks=seen")


def searched() -> bool:
    """Whether this is a job of an optimiser, which reads what it returns."""
    sweeper = HydraConfig.get().sweeper._target_
    return not sweeper.endswith((".BasicSweeper", ".ListingSweeper"))


def record(out: Path, error: Exception) -> None:
    """Leave a failure in a job's folder; a bug is in it, and several runs have told their own."""
    if not isinstance(error, Bug) and not (out / JOBS).exists():
        status.fail(out, error)


def bug(error: Exception, out: Path, whose: str) -> Bug:
    """Write the traceback into the run's folder, and that it failed. whose: where the bug is."""
    path, where = out / TRACEBACK, "is in"
    name = type(error).__name__
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        where = "cannot be written to"
    told = Bug(f"{whose}: {name}: {one_line(str(error))}; the traceback {where} {path}")
    told.__cause__ = error
    with suppress(UserError):
        status.fail(out, told, exception=name, traceback=path.name)
    return told
