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
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from cl_runner import __version__, catalogue, console, outline, reading, sharing, status, sweep
from cl_runner.config import ABOUT_THE_COMMAND, SECTIONS, Config, validate
from cl_runner.errors import Diverged, UserError, check
from cl_runner.locks import Busy, locked
from cl_runner.naming import plain
from cl_runner.signals import Interrupted, stoppable
from cl_runner.typed import LAUNCHERS, flags, understood, unknown_key, unknown_option
from hydra_plugins import cl_runner_launcher as launcher

if TYPE_CHECKING:
    from cl_runner.group import Job

# Values of `resume` that are no folder's name.
YES_OR_NO = {"", "true", "false", "yes", "no", "on", "off", "1", "0", "null"}
CONFIG = "config.yaml"  # in a run's folder: its resolved configuration
SEED = "${seed}"  # the one reference in it, where several runs differ in nothing but their seeds
RESUMED = "cl_run_resumed"  # Hydra's name for the configuration of the run that goes on
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
        config = checked(cfg)
        with locked(out):
            if not (in_sweep or cfg.resume):
                check_free(out)  # again, now that nobody else can fill it
            if in_sweep or (out / status.OVERRIDES).exists():
                (out / sweep.TRACEBACK).unlink(missing_ok=True)
            overrides = said(out)
            if config.seeds is not None:
                return run_seeds(cfg, out, overrides)
            from cl_runner.runner import run  # torch, not before the configuration is valid

            begin_collecting()
            if in_sweep:
                return run(of_sweep(config, out), out, overrides, job=title(out))
            return run(config, out, overrides)
    except Exception as caught:  # noqa: BLE001 - a bug in one job must not end a sweep
        error = known(caught, out)
        if not in_sweep:
            raise SystemExit(1) from error
        return failed(error, out, fail_fast=cfg.fail_fast is True)


def checked(cfg: DictConfig) -> Config:
    """The configuration of a run, checked as far as that goes without torch. Raises UserError."""
    config = validate(cfg)
    outline.check_strategy(config.strategy, config.scenario)
    outline.check_data(config)
    return config


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


def title(out: Path) -> str:
    """Which job of a sweep this is; how many there are is known unless a search asks for them."""
    job = HydraConfig.get()
    own, asked = job.job.num + 1, len(status.jobs(Path(job.sweep.dir)))
    return f"job {own} of {asked} · {out.name}" if own <= asked else f"job {own} · {out.name}"


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
            config = checked(cfg)
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
    from cl_runner.checkpoint import check_run
    from cl_runner.group import run_all, run_left
    from cl_runner.results import merge_seeds, remove_leftovers, write_text
    from cl_runner.runner import draw

    begin_collecting()
    config = validate(cfg)
    whole = {"seeds": config.seeds, **of_any_seed(cfg), "seed": config.seed}
    if config.resume:
        check_run(out, whole)
    remove_leftovers(out)
    write_text(out / CONFIG, OmegaConf.to_yaml(whole))
    write_text(out / status.OVERRIDES, OmegaConf.to_yaml(list(overrides)))
    jobs = [seed_job(cfg, seed, out, overrides) for seed in config.seeds or []]
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
            console.say(
                f"{text}\n{len(results)} of {len(jobs)} seeds · results in {console.near(out)}"
            )
        if cfg.plots:
            draw(config, out)
    if errors:
        raise errors[0]
    return sum(results) / len(results)


def of_any_seed(cfg: DictConfig) -> Any:
    """The resolved configuration of runs that differ in their seeds, `${seed}` where they do."""
    own = cfg.copy()
    own.seed = mark = 2**62 + 1  # no other value is this one

    def unmarked(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: unmarked(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [unmarked(inner) for inner in value]
        text = str(value).replace(str(mark), SEED)
        return text if isinstance(value, str) or value == mark else value

    return unmarked(validate(own).resolved)


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
        code = answered(args)
        if code is None:
            launcher.register()
            sys.argv[1:] = continued(understood(args))
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
        sweep.gather(tell=not isinstance(error, KeyboardInterrupt))
    sweep.discard()
    return tell(error)


def answered(args: Sequence[str]) -> int | None:
    """The exit code of a command that is no run, or a completion that Hydra has not; else None."""
    match args:
        case ["status", *rest]:
            return status.main(rest)
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


def continued(args: Sequence[str]) -> list[str]:
    """The command's arguments; in the place of `resume=FOLDER` the configuration of its run.

    That is what config.yaml holds, in plain values that the schema has checked. The overrides of
    the folder are text of unknown origin: to compose them anew would execute what they say.
    """
    folders = [i for i, arg in enumerate(args) if is_folder(*arg.partition("=")[::2])]
    if not folders:
        return list(args)
    i, options = folders[-1], flags(args)
    folder = Path(args[i].partition("=")[2]).expanduser().absolute()
    single = not options.multirun
    check(single, "resume=FOLDER is for one run; repeat a sweep's own command with resume=true")
    own = options.config_name is None
    check(own, "resume=FOLDER takes the folder's own config, no --config-name")
    for arg in options.overrides:
        changes = arg.partition("=")[0].lstrip("+~") in SECTIONS
        check(not changes, f"resume={folder} goes on with the run there, which {arg} cannot change")
    confirmed = any(arg.startswith("plugins=") for arg in options.overrides)
    node = configuration_of(folder, confirmed=confirmed)
    store(node)
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    where = [f"hydra.run.dir='{quoted}'", "resume=true"]
    return [f"--config-name={RESUMED}", *args[:i], *where, *args[i + 1 :]]


def configuration_of(folder: Path, *, confirmed: bool) -> dict[str, Any]:
    """What the config.yaml of a run's folder says. Raises UserError for what is none of ours.

    confirmed: the command names packages itself, and those of the folder are left out for them.
    """
    for name in (CONFIG, status.OVERRIDES):
        there = (folder / name).exists()
        check(there, f"resume={folder}: there is no run, for there is no {name} of cl-run")
    path = folder / CONFIG
    node = reading.yaml_values(path)
    check(isinstance(node, dict), f"{path} is not a configuration of cl-run")
    plain_values = "${" not in str(node).replace(SEED, "")
    check(plain_values, f"{path} has references, ${{...}}, which cl-run does not write")
    try:
        config = validate(OmegaConf.create(node))
        outline.check_strategy(config.strategy, config.scenario)
    except UserError as error:
        raise UserError(f"{path} is not a configuration of cl-run: {error}") from None
    message = (
        f"resume={folder} would import {', '.join(config.plugins)}: if you trust what is called "
        f"that on this machine, add plugins=[{','.join(config.plugins)}]"
    )
    check(confirmed or not config.plugins, message)
    return {**node, "plugins": []}


def store(node: Mapping[str, Any]) -> None:
    """Give Hydra a run's configuration, with our own `hydra` section, under the name RESUMED."""
    text = (files("cl_runner.conf") / "config.yaml").read_text(encoding="utf-8")
    ours: Any = OmegaConf.to_container(OmegaConf.create(text))
    defaults = [choice for choice in ours["defaults"] if "hydra/" in str(choice)]
    command = {key: ours[key] for key in ABOUT_THE_COMMAND}
    whole = {"defaults": ["_self_", *defaults], **command, **node, "hydra": ours["hydra"]}
    ConfigStore.instance().store(name=RESUMED, node=whole, provider="cl_runner")


def said(out: Path) -> list[str]:
    """The overrides of the run in `out`, which its folder and tables tell; without `resume`.

    Those of a run that goes on from its folder alone are there, as text that nobody interprets.
    """
    job = HydraConfig.get()
    here, there = plain(job.overrides.task), []
    if job.job.config_name == RESUMED:
        there = reading.yaml_values(out / status.OVERRIDES)
        right = isinstance(there, list)
        check(right, f"{out / status.OVERRIDES} is not of cl-run: it holds no list of overrides")
    overrides = [*(o for o in map(str, there) if o not in here), *here]
    return [override for override in overrides if not override.startswith("resume=")]


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
            return 2, one_line(f"cannot read {error.override}: {hint}")
        case MissingConfigException(missing_cfg_file=str(path), options=list(options)):
            return 2, one_line(unknown_option(*whole(path, options)))
        case HydraException(__cause__=ConfigKeyError() | ConfigAttributeError() as cause) if (
            OmegaConf.is_dict(cause.parent_node)
        ):
            return 2, one_line(unknown_key(str(cause.full_key), cause.parent_node))
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


def whole(path: str, options: list[str]) -> tuple[str, str, list[str]]:
    """The group, the name and the options of a file that is not there, of which Hydra tells.

    The options are those that lie beside it; of experiments those in folders count, too.
    """
    if path.startswith("experiment/"):
        known = sorted({*options, *catalogue.options("experiment")})
        return "experiment", path.removeprefix("experiment/"), known
    return *path.rpartition("/")[::2], options


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
