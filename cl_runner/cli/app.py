"""The command `cl-run`: Hydra in front of `run.loop.run`, and every mistake told in one line.

Exit codes: 0 done, 1 a run diverged or cl_runner has a bug, 2 the user's mistake, 130 Ctrl-C,
143 SIGTERM, 129 SIGHUP.
Nothing here imports torch before a run's configuration is known to be valid, so that help,
completion and mistakes are answered at once.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cl_runner.cli import advise, catalogue, export, overview
from cl_runner.cli.failures import check_search, failed, known
from cl_runner.cli.messages import SHOW_TRACEBACK, explain, print_error
from cl_runner.cli.resume import continued, said
from cl_runner.cli.search_path import compose_once, share_the_store, with_yaml_of_plugins
from cl_runner.cli.several import concluded, run_seeds, run_together, title
from cl_runner.cli.typed import flags, understood
from cl_runner.config import versions
from cl_runner.config.outline import checked
from cl_runner.config.schema import Config
from cl_runner.errors import check
from cl_runner.machine import console, cores_and_gpus
from cl_runner.machine.locks import locked
from cl_runner.machine.ram import begin_collecting
from cl_runner.machine.signals import Interrupted, stoppable
from cl_runner.results import status
from cl_runner.results.names import OVERRIDES, TRACEBACK
from cl_runner.sweeping import count, folders, merge
from cl_runner.version import __version__
from hydra_plugins import cl_runner_launcher as launcher

log = logging.getLogger("cl_runner")


@hydra.main(**versions.MAIN, config_path="pkg://cl_runner.conf", config_name="config")
def app(cfg: DictConfig) -> float | None:
    """One run, alone or as a job of a sweep; returns the final ACC, for optimisers.

    A failed job of a sweep leaves its reason in its folder and returns NaN, so that the sweep goes
    on; only optimisers get the exception, which they count against their own failure rate. A run
    alone stops with SystemExit, since Hydra would add lines of its own to an Exception.
    """
    job = HydraConfig.get()
    out = Path(job.runtime.output_dir)
    in_sweep = job.mode is RunMode.MULTIRUN
    try:
        if in_sweep and folders.stopped(Path(job.sweep.dir)):
            with suppress(OSError):
                out.rmdir()  # Hydra has made it
            return math.nan
        if in_sweep and not cfg.resume and (result := status.finished(out)) is not None:
            return result
        if not (in_sweep or cfg.resume):
            check_free(out)
        config = checked(cfg)
        check_search(config)
        with locked(out):
            if not (in_sweep or cfg.resume):
                check_free(out)  # again, now that nobody else can fill it
            if in_sweep or (out / OVERRIDES).exists():
                (out / TRACEBACK).unlink(missing_ok=True)
            overrides = said(out)
            if config.seeds is not None:
                return run_seeds(cfg, out, overrides)
            from cl_runner.running.loop import run  # torch, not before the configuration is valid

            begin_collecting()
            if in_sweep:
                return run(of_sweep(config, out), out, overrides, job=title(job, out))
            return run(config, out, overrides)
    except Exception as caught:  # noqa: BLE001 - a bug in one job must not end a sweep
        error = known(caught, out, cfg)
        if not in_sweep:
            raise SystemExit(1) from error
        return failed(error, out, fail_fast=cfg.fail_fast is True)


def check_free(out: Path) -> None:
    """Raise UserError if a folder holds a run."""
    there = [name for name in folders.FILES if (out / name).exists()]
    message = (
        f"{out} already holds {', '.join(there)}; resume=true goes on with it, or choose another "
        "hydra.run.dir"
    )
    check(not there, message)


def of_sweep(config: Config, out: Path) -> Config:
    """A job of a sweep: the cores are shared, and what the sweep has begun goes on.

    Batch systems begin a job again. A sweep without resume=true has a folder without older runs.
    """
    job = HydraConfig.get()
    workers = cores_and_gpus.at_once(job.launcher, len(status.jobs(Path(job.sweep.dir))))
    if config.threads is None and workers > 1:
        config = replace(config, threads=max(1, cores_and_gpus.cores() // workers))
        log.info("%d jobs at once: threads=%d", workers, config.threads)
    return status.going_on(config, out)


def main() -> None:
    """The entry point of `cl-run`."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[SHOW_TRACEBACK] = "1"
    logging.raiseExceptions = False  # a log on a full disk is no reason for a traceback
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on, for us to put in one line
    console.prepare()
    try:
        with stoppable(folders.stop_jobs):
            code = answer(sys.argv[1:])
    except KeyboardInterrupt as again:  # the second: nothing is waited for
        print_error(again)
        os._exit(explain(again)[0] or 1)
    finally:
        logging.disable()  # what is still logged at exit would make a folder's log file anew
        console.finish()
    sys.exit(code)


def answer(args: Sequence[str]) -> int:
    """Do what the command says; whatever goes wrong ends in one line. Returns the exit code."""
    try:
        versions.register_resolver("cl_run.groups", catalogue.groups_shown)
        code = answered(args)
        if code is None:
            launcher.register(run_together, concluded)
            sys.argv[1:] = continued(with_yaml_of_plugins(understood(args)))
            compose_once(sys.argv[1:])
            share_the_store()
            with count.sweep:
                app()
    except SystemExit as stop:
        if stop.__cause__ is None and stop.code != SIGTERM:  # with that number Ray ends
            raise
        error: BaseException = stop.__cause__ or Interrupted(SIGTERM)
    except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001 - all becomes one line
        if isinstance(caught, BrokenPipeError) and console.gone():
            return 0  # the reader of what Hydra prints, such as `head`, has seen enough
        error = caught
    else:
        return code or 0
    if explain(error)[0] != 2:
        merge.gather(tell=not isinstance(error, KeyboardInterrupt))
    folders.discard()
    return print_error(error)


def answered(args: Sequence[str]) -> int | None:
    """The exit code of a command that is no run, or a completion that Hydra has not; else None."""
    match args:
        case ["status", *rest]:
            return overview.main(rest)
        case ["advise", *rest]:
            return advise.main(rest)
        case ["export", *rest]:
            return export.main(rest)
        case ["list" | "explain" as command, *rest]:
            return catalogue.main(command, rest)
        case ["--version"]:
            console.show(f"cl-run {__version__} (Hydra {hydra.__version__})")
            return 0
    options = flags(args)
    if options.help and options.overrides and "=" not in options.overrides[0]:
        return catalogue.main("explain", options.overrides)
    if options.shell_completion and options.overrides == ["install=zsh"]:
        console.show("(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }")
        console.show("autoload -Uz bashcompinit && bashcompinit")  # then bash's, of Hydra
    if options.shell_completion and options.overrides[:1] == ["query=bash"]:
        found = catalogue.completions(os.environ.get("COMP_LINE", ""))
        if found is not None:
            console.show("\n".join(found), end="\n" if found else "")
            return 0
    return None
