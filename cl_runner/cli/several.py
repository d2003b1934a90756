"""Several runs of one command: `seeds=[...]`, and the jobs of hydra/launcher=vectorized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf

from cl_runner.cli.failures import check_search, failed, known, record
from cl_runner.cli.resume import SEED
from cl_runner.config.outline import checked
from cl_runner.config.parse import validate
from cl_runner.config.schema import Config
from cl_runner.errors import UserError, check
from cl_runner.machine import console
from cl_runner.machine.locks import Busy
from cl_runner.machine.ram import begin_collecting
from cl_runner.results import status
from cl_runner.results.names import CONFIG, OVERRIDES, STATUS, TRACEBACK
from cl_runner.results.naming import plain
from cl_runner.sweeping import folders
from cl_runner.sweeping.count import jobs_shown

if TYPE_CHECKING:
    from cl_runner.sweeping.job import Job


def run_together(composed: Sequence[DictConfig]) -> list[float | Exception | None]:
    """The outcomes of a sweep's jobs, trained together where they can be; None: to be run alone."""
    jobs: dict[int, Any] = {}
    for i, whole in enumerate(composed):
        cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        out = Path(whole.hydra.runtime.output_dir)
        try:
            config = checked(cfg)
            check_search(config)
            if config.seeds is None and status.finished(out) is None:
                asked = plain(whole.hydra.overrides.task)
                jobs[i] = job_of(config, out, asked, title(whole.hydra, out))
        except UserError:
            continue  # told when the job is run alone
    if jobs:
        from cl_runner.sweeping.dispatch import run_all
        from cl_runner.sweeping.job import given_up

        begin_collecting()
        run_all(list(jobs.values()))
        if given_up(list(jobs.values())):
            folders.stop(Path(composed[0].hydra.sweep.dir))
    return [jobs[i].outcome if i in jobs else None for i in range(len(composed))]


def title(hydra: Any, out: Path) -> str:
    """Which job of a sweep this is; how many there are is known unless a search asks for them."""
    own, asked = hydra.job.num + 1, len(status.jobs(Path(hydra.sweep.dir)))
    return f"job {own} of {asked} · {out.name}" if own <= asked else f"job {own} · {out.name}"


def job_of(config: Config, out: Path, overrides: Sequence[str], title: str) -> Job:
    """A job to be trained together with others. Raises UserError if `out` is another run's."""
    from cl_runner.running.checkpoint import check_run  # torch, not before a configuration is valid
    from cl_runner.sweeping.job import Job

    config = status.going_on(config, out)
    if config.resume:
        check_run(out, config.resolved)
    (out / TRACEBACK).unlink(missing_ok=True)
    return Job(config, out, [o for o in overrides if not o.startswith("resume=")], title)


def concluded(outcome: float | Exception) -> TaskFunction:
    """What stands for `app` in a job that was run together with others."""

    def conclude(cfg: DictConfig) -> float:
        if not isinstance(outcome, Exception):
            return outcome
        out = Path(HydraConfig.get().runtime.output_dir)
        return failed(known(outcome, out, cfg), out, fail_fast=cfg.fail_fast)

    return conclude


def run_seeds(cfg: DictConfig, out: Path, overrides: Sequence[str]) -> float:
    """`seeds=[...]`: a run for each seed, in a folder each; the mean of their final ACC.

    Raises the first error of those that failed, after the files of all are written.
    """
    from cl_runner.results.files import remove_leftovers, write_text
    from cl_runner.results.seeds import merge_seeds
    from cl_runner.running.checkpoint import check_run
    from cl_runner.running.loop import draw_pictures
    from cl_runner.sweeping.dispatch import run_all, run_left

    begin_collecting()
    config = validate(cfg)
    whole = {"seeds": config.seeds, **of_any_seed(cfg), "seed": config.seed}
    if config.resume:
        check_run(out, whole)
    remove_leftovers(out)
    write_text(out / CONFIG, OmegaConf.to_yaml(whole))
    write_text(out / OVERRIDES, OmegaConf.to_yaml(list(overrides)))
    jobs = [seed_job(cfg, seed, out, overrides) for seed in config.seeds or []]
    status.ask_for(out, {job.out.name: job.overrides for job in jobs})
    (out / STATUS).unlink(missing_ok=True)  # of an attempt that did not come so far
    with jobs_shown(out, "seeds", told=config.told):
        run_all([job for job in jobs if status.finished(job.out) is None])
        run_left(jobs)
    results, errors = [], []
    for job in jobs:
        if isinstance(job.outcome, Exception):
            errors.append(known(job.outcome, job.out, cfg))
            # No folder: the run was refused before its first file. Busy: another process tells.
            if job.out.exists() and not isinstance(job.outcome, Busy):
                record(job.out, errors[-1])
        elif job.outcome is not None:  # begun, see fail_fast
            results.append(job.outcome)
    if results:
        text = merge_seeds(out, {job.config.seed: job.out for job in jobs})
        if config.told:
            console.say(
                f"{text}\n{len(results)} of {len(jobs)} seeds · results in {console.near(out)}"
            )
        if cfg.plots:
            draw_pictures(config, out)
    if errors:
        raise errors[0]
    return sum(results) / len(results)


def of_any_seed(cfg: DictConfig) -> Any:
    """The resolved configuration of runs that differ in their seeds, `${seed}` where they do."""
    own = cfg.copy()
    own.seed = mark = 2**62 + 1  # no other value is this one
    check(
        str(mark) not in str(OmegaConf.select(own, "model.weights")),
        "seeds=[...] start from the same weights, and model.weights names others for each seed: "
        "use a sweep, such as -m seed=0,1,2",
    )

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
    seeds = list(cfg.seeds)
    name = f"seed {seeds.index(seed) + 1} of {len(seeds)} · seed={seed}"
    return job_of(validate(own), out / f"seed={seed}", [*shared, f"seed={seed}"], name)
