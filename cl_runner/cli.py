"""The command `cl-run`: Hydra in front of `runner.run`, and every mistake told in one line.

Exit codes: 0 done, 1 a run diverged or cl_runner has a bug, 2 the user's mistake, 130 Ctrl-C,
143 SIGTERM, 129 SIGHUP.
Nothing here imports torch before a run's configuration is known to be valid, so that help,
completion and mistakes are answered at once.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError, safe_load

from cl_runner import __version__, console, sharing, status, sweep
from cl_runner.config import Config, validate
from cl_runner.errors import Diverged, UserError, check
from cl_runner.locks import Busy, locked
from cl_runner.naming import plain
from cl_runner.signals import Interrupted, stoppable
from hydra_plugins import cl_runner_launcher as launcher

if TYPE_CHECKING:
    from cl_runner.group import Job

# Values of `resume` that are no folder's name.
YES_OR_NO = {"", "true", "false", "yes", "no", "on", "off", "1", "0", "null"}
LAUNCHERS = ("joblib", "submitit", "ray")  # packages, and our extras
TRACEBACK = "CL_RUNNER_TRACEBACK"  # set to 1: show the traceback of every error

log = logging.getLogger("cl_runner")


class Bug(Exception):
    """An exception that nobody foresaw; the message says where its traceback is."""


@hydra.main(version_base="1.3", config_path="pkg://cl_runner.conf", config_name="config")
def app(cfg: DictConfig) -> float | None:
    """One run, alone or as a job of a sweep; returns the final ACC, for optimisers.

    A failed job of a sweep leaves its reason in its folder and returns NaN, so that the sweep goes
    on; only optimisers get the exception, which they count against their own failure rate. A run
    alone stops with SystemExit, since Hydra would add lines of its own to an Exception.
    """
    job = HydraConfig.get()
    out = Path(job.runtime.output_dir)
    overrides = [o for o in plain(job.overrides.task) if not o.startswith("resume=")]
    in_sweep = job.mode is RunMode.MULTIRUN
    try:
        if in_sweep and sweep.stopped(Path(job.sweep.dir)):
            with suppress(OSError):
                out.rmdir()  # Hydra has made it
            return math.nan
        if in_sweep and not cfg.resume and (result := status.finished(out)) is not None:
            return result
        if not (in_sweep or cfg.resume):
            check_free(out)
        config = validate(cfg)
        check_strategy_keys(config.strategy)
        with locked(out):
            if not (in_sweep or cfg.resume):
                check_free(out)  # again, now that nobody else can fill it
            if in_sweep or (out / status.OVERRIDES).exists():
                (out / sweep.TRACEBACK).unlink(missing_ok=True)
            if config.seeds is not None:
                return run_seeds(cfg, out, overrides)
            from cl_runner.runner import run  # torch, not before the configuration is valid

            begin_collecting()
            return run(of_sweep(config, out) if in_sweep else config, out, overrides)
    except Exception as caught:  # noqa: BLE001 - a bug in one job must not end a sweep
        error = known(caught, out)
        if not in_sweep:
            raise SystemExit(1) from error
        return failed(error, out, fail_fast=cfg.fail_fast is True)


def begin_collecting() -> None:
    """Let Python look for garbage from now on, in what is made from now on (see `__main__`)."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def check_free(out: Path) -> None:
    """Raise UserError if a folder holds a run."""
    there = [name for name in sweep.FILES if (out / name).exists()]
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
    workers = sharing.at_once(job.launcher, len(status.jobs(Path(job.sweep.dir))))
    if config.threads is None and workers > 1:
        config = replace(config, threads=max(1, sharing.cores() // workers))
        log.info("%d jobs at once: threads=%d", workers, config.threads)
    return status.going_on(config, out)


def known(error: Exception, out: Path) -> Exception:
    """The error itself if its message says all; else a Bug, with the traceback in the folder."""
    if isinstance(error, OSError) and error.errno:  # a disk that fails, a folder that is gone
        return UserError(one_line(reason(error)))
    return error if isinstance(error, UserError | Diverged | Bug) else bug(error, out)


def failed(error: Exception, out: Path, *, fail_fast: bool) -> float:
    """Conclude a failed job of a sweep (see `app`)."""
    hydra_ = HydraConfig.get()
    if not isinstance(error, Busy):  # then the other process tells how it went
        try:
            record(out, error)
            if status.read(out).get("state") == "complete":  # with another configuration, say
                sweep.refuse(out, error)
            log.error("%s", error)
        except (UserError, OSError):  # what writes no reason writes no results: the sweep ends
            raise SystemExit(1) from error
        if fail_fast:
            sweep.stop(Path(hydra_.sweep.dir))
    tell(error)
    if not hydra_.sweeper._target_.endswith((".BasicSweeper", ".ListingSweeper")):
        raise error from None
    return math.nan


def record(out: Path, error: Exception) -> None:
    """Leave a failure in a job's folder; a bug is in it, and several runs have told their own."""
    if not isinstance(error, Bug) and not (out / status.JOBS).exists():
        status.fail(out, error)


def run_together(composed: Sequence[DictConfig]) -> list[float | Exception | None]:
    """The outcomes of a sweep's jobs, trained together where they can be; None: to be run alone."""
    jobs: dict[int, Any] = {}
    for i, whole in enumerate(composed):
        cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        out = Path(whole.hydra.runtime.output_dir)
        try:
            config = validate(cfg)
            check_strategy_keys(config.strategy)
            if config.seeds is None and status.finished(out) is None:
                jobs[i] = job_of(config, out, plain(whole.hydra.overrides.task))
        except UserError:
            continue  # told when the job is run alone
    if jobs:
        from cl_runner.group import run_all, stopped

        begin_collecting()
        run_all(list(jobs.values()))
        if stopped(list(jobs.values())):
            sweep.stop(Path(composed[0].hydra.sweep.dir))
    return [jobs[i].outcome if i in jobs else None for i in range(len(composed))]


def job_of(config: Config, out: Path, overrides: Sequence[str]) -> Job:
    """A job to be trained together with others. Raises UserError if `out` is another run's."""
    from cl_runner.checkpoint import check_run  # torch, not before a configuration is valid
    from cl_runner.group import Job

    config = status.going_on(config, out)
    if config.resume:
        check_run(out, config.resolved)
    (out / sweep.TRACEBACK).unlink(missing_ok=True)
    return Job(config, out, [o for o in overrides if not o.startswith("resume=")])


def concluded(outcome: float | Exception) -> TaskFunction:
    """What stands for `app` in a job that was run together with others."""

    def conclude(cfg: DictConfig) -> float:
        if not isinstance(outcome, Exception):
            return outcome
        out = Path(HydraConfig.get().runtime.output_dir)
        return failed(known(outcome, out), out, fail_fast=cfg.fail_fast)

    return conclude


def run_seeds(cfg: DictConfig, out: Path, overrides: Sequence[str]) -> float:
    """`seeds=[...]`: a run for each seed, in a folder each; the mean of their final ACC.

    Raises the first error of those that failed, after the files of all are written.
    """
    from cl_runner.group import run_all, run_left
    from cl_runner.results import merge_seeds, remove_leftovers, write_text
    from cl_runner.runner import draw

    begin_collecting()
    remove_leftovers(out)
    write_text(out / status.OVERRIDES, OmegaConf.to_yaml(list(overrides)))
    jobs = [seed_job(cfg, seed, out, overrides) for seed in validate(cfg).seeds or []]
    status.ask_for(out, {job.out.name: job.overrides for job in jobs})
    (out / status.STATUS).unlink(missing_ok=True)  # of an attempt that did not come so far
    run_all([job for job in jobs if status.finished(job.out) is None])
    run_left(jobs)
    results, errors = [], []
    for job in jobs:
        if isinstance(job.outcome, Exception):
            errors.append(known(job.outcome, job.out))
            # No folder: the run was refused before its first file. Busy: another process tells.
            if job.out.exists() and not isinstance(job.outcome, Busy):
                record(job.out, errors[-1])
        elif job.outcome is not None:  # begun, see fail_fast
            results.append(job.outcome)
    if results:
        text = merge_seeds(out, {job.config.seed: job.out for job in jobs})
        if cfg.verbose:
            console.say(f"{text}\n{len(results)} of {len(jobs)} seeds · results in {out}")
        if cfg.plots:
            draw(validate(cfg), out)
    if errors:
        raise errors[0]
    return sum(results) / len(results)


def seed_job(cfg: DictConfig, seed: int, out: Path, overrides: Sequence[str]) -> Job:
    """The run of one seed, in a folder of its own that can go on by itself."""
    own = cfg.copy()
    own.seed, own.seeds, own.plots = seed, None, False  # the pictures show all seeds
    shared = [o for o in overrides if not o.startswith(("seed=", "seeds="))]
    return job_of(validate(own), out / f"seed={seed}", [*shared, f"seed={seed}"])


def bug(error: Exception, out: Path) -> Bug:
    """Write the traceback into the run's folder, and that it failed."""
    path, where = out / sweep.TRACEBACK, "is in"
    name = type(error).__name__
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        where = "cannot be written to"
    told = Bug(f"a bug in cl_runner: {name}: {error}; the traceback {where} {path}")
    with suppress(UserError):
        status.fail(out, told, exception=name, traceback=path.name)
    return told


def main() -> None:
    """The entry point of `cl-run`."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[TRACEBACK] = "1"
    logging.raiseExceptions = False  # a log on a full disk is no reason for a traceback
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on, for us to put in one line
    console.prepare()
    try:
        with stoppable(sweep.stop_jobs):
            code = answer(sys.argv[1:])
    except KeyboardInterrupt as again:  # the second: nothing is waited for
        tell(again)
        os._exit(explain(again)[0] or 1)
    finally:
        console.finish()
    sys.exit(code)


def answer(args: Sequence[str]) -> int:
    """Do what the command says; whatever goes wrong ends in one line. Returns the exit code."""
    try:
        if args[:1] == ["status"]:
            return status.main(args[1:])
        if args == ["--version"]:
            console.show(f"cl-run {__version__} (Hydra {hydra.__version__})")
            return 0
        check_flags()
        launcher.register()
        sys.argv[1:] = continued(args)
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
        return 0
    if explain(error)[0] != 2:
        sweep.gather(tell=not isinstance(error, KeyboardInterrupt))
    sweep.discard()
    return tell(error)


def continued(args: Sequence[str]) -> list[str]:
    """The command's arguments, `resume=FOLDER` replaced by those that its run was started with."""
    folders = [i for i, arg in enumerate(args) if is_folder(*arg.partition("=")[::2])]
    if not folders:
        return list(args)
    i = folders[-1]
    folder = Path(args[i].partition("=")[2]).expanduser().absolute()
    single = not {"-m", "--multirun"} & set(args)
    check(single, "resume=FOLDER is for one run; repeat a sweep's own command with resume=true")
    try:
        text = (folder / status.OVERRIDES).read_text(encoding="utf-8")
        overrides = [str(override) for override in safe_load(text)]
    except (OSError, UnicodeDecodeError, YAMLError, TypeError):
        message = f"resume={folder}: there is no run, for there is no {status.OVERRIDES} of cl-run"
        raise UserError(message) from None
    foreign = [override for override in overrides if re.match(r"[+~]*hydra\b", override)]
    check(not foreign, f"{folder / status.OVERRIDES} is not of cl-run: {' '.join(foreign)}")
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    where = [f"hydra.run.dir='{quoted}'", "resume=true"]
    return [*args[:i], *overrides, *where, *args[i + 1 :]]


def is_folder(key: str, value: str) -> bool:
    """Whether an override is resume=FOLDER."""
    return key == "resume" and value.lower() not in YES_OR_NO


def tell(error: BaseException) -> int:
    """Print an error's line, below its traceback if that is wanted; return the exit code."""
    code, message = explain(error)
    if code is None or os.environ.get(TRACEBACK) == "1":
        console.say("".join(traceback.format_exception(error)), sys.stderr, end="")
    console.say(f"cl-run: {message}", sys.stderr)
    return 1 if code is None else code


def check_strategy_keys(node: Mapping[str, Any]) -> None:
    """Refuse keys that the strategy's own YAML has not, without importing torch for its class."""
    yaml_file = files("cl_runner.conf") / "strategy" / f"{node.get('name')}.yaml"
    if yaml_file.is_file():
        known = [str(key) for key in OmegaConf.create(yaml_file.read_text(encoding="utf-8"))]
        for key in node:
            check(key in known, f"unknown key strategy.{key}; known are {', '.join(known)}")


def check_flags() -> None:
    """Refuse unknown flags as we refuse all else: argparse would print its usage."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; flags go before the key=value pairs, see cl-run --help")

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args()


def explain(error: BaseException) -> tuple[int | None, str]:
    """The exit code and the line for an error; no code means that it is unforeseen."""
    match error:
        case KeyboardInterrupt():
            code = error.exit_code if isinstance(error, Interrupted) else 130
            return code, f"interrupted{sweep.how_to_go_on()}"
        case Diverged() | Bug():
            return 1, one_line(str(error))
        case OverrideParseException():
            hint = "write key=value, and quote a value with special characters: 'key=\"a=b\"'"
            return 2, f"cannot read {error.override}: {hint}"
        case MissingConfigException(missing_cfg_file=str(path), options=list(options)):
            return 2, unknown_option(*path.rpartition("/")[::2], options)
        case HydraException(__cause__=ConfigKeyError() | ConfigAttributeError() as cause) if (
            OmegaConf.is_dict(cause.parent_node)
        ):
            return 2, unknown_key(str(cause.full_key), cause.parent_node)
        case HydraException(__cause__=OmegaConfBaseException() as cause):
            return 2, one_line(f"{error} {cause}")
        case UserError() | HydraException() | OmegaConfBaseException() | YAMLError() | OSError():
            return 2, one_line(reason(error))
        case ValueError():  # Hydra's own checks, which do not always name the override
            return 2, one_line(f"{error} (given: {' '.join(sys.argv[1:])})")
        case _ if type(error).__module__.partition(".")[0] in LAUNCHERS:
            return 1, f"the launcher lost a job: {one_line(str(error))[:200]}{sweep.how_to_go_on()}"
        case _:
            return None, f"a bug in cl_runner or Hydra: {one_line(repr(error))}; see above"


def unknown_option(group: str, name: str, options: list[str]) -> str:
    """What to say about a file that a group of the configuration has not."""
    near = get_close_matches(name, options, n=1)
    question = f" (did you mean {near[0]}?)" if near else ""
    allowed = f"known are {', '.join(options)}" if options else "there is no such group"
    if group == "hydra/launcher" and (extra := name.partition("_")[0]) in LAUNCHERS:
        allowed += f"; it needs pip install 'cl_runner[{extra}]'"
    return f"unknown option {group}={name}{question}; {allowed}"


def unknown_key(key: str, parent: DictConfig) -> str:
    """What to say about a key that the configuration has not: the nearest ones, and its neighbours.

    `parent` is the node of the composed configuration in which the key was looked for.
    """
    root = parent._get_root()
    hydras = key.startswith("hydra")
    keys = [k for k in dotted(root) if k.startswith("hydra") == hydras]
    names = get_close_matches(last(key), {last(k) for k in keys})
    near = sorted((k for k in keys if last(k) in names), key=lambda k: names.index(last(k)))
    question = f" (did you mean {' or '.join(near[:3])}?)" if near else ""
    where = "" if parent is root else f" in {key.rpartition('.')[0]}"
    known = ", ".join(str(k) for k in parent if where or hydras or k != "hydra")
    return f"unknown key {key}{question}" + (f"; known{where} are {known}" if known else "")


def last(key: str) -> str:
    """The name of a key without what stands before its last dot."""
    return key.rpartition(".")[2]


def dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a configuration, with dots."""
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield f"{prefix}{key}"
            yield from dotted(node._get_node(key), f"{prefix}{key}.")


def reason(error: Exception) -> str:
    """The message of an error; of the system's, which file and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def one_line(text: str) -> str:
    """The lines of a message in one, without what only developers of OmegaConf need."""
    noise = ("object_type=", "reference_type=")
    return " ".join(
        s for line in text.splitlines() if (s := line.strip()) and not s.startswith(noise)
    )
