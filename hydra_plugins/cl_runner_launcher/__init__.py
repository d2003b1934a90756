"""`cl-run -m`: what is asked for is listed; with hydra/launcher=vectorized it is trained together.

Jobs that differ only in seed, learning rate and the strategy's numbers are trained as one stacked
state where that is faster, the others in worker processes (`sweep.dispatch`). Each job has its own
folder, as with Hydra's basic launcher, which is also what runs a job that can go neither way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from cl_runner.config.keys import dotted, nearest
from cl_runner.config.outline import checked
from cl_runner.config.versions import AGAIN
from cl_runner.errors import UserError
from cl_runner.results import naming, status

if TYPE_CHECKING:  # Hydra looks for plugins in all that stands here, and Python 3.10 takes
    Outcome = float | Exception | None  # such names for classes, which ends any Hydra program
    RunTogether = Callable[[Sequence[DictConfig]], list[Outcome]]  # None: to be run alone
    Conclude = Callable[[Any], TaskFunction]

log = logging.getLogger(__name__)
TOGETHER: dict[str, Any] = {}  # what `register` was given; Hydra makes the launcher by itself


class VectorizedLauncher(Launcher):
    """Trains together what can be, then lets Hydra conclude job by job."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what the jobs need."""
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; the order of the results is that of the overrides."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        composed = [
            compose(self.context, self.config, overrides, initial_job_idx + i)
            for i, overrides in enumerate(job_overrides)
        ]
        outcomes = TOGETHER["run"](composed)
        returns = []
        for config, outcome in zip(composed, outcomes, strict=True):
            returns.append(
                run_job(
                    hydra_context=self.context,
                    task_function=(
                        self.task_function if outcome is None else TOGETHER["conclude"](outcome)
                    ),
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
            )
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return returns


class ListingSweeper(Sweeper):
    """Hydra's own sweeper, which also leaves the list of its jobs: none can be lost unnoticed.

    A key that some of the choices lack is refused, or with missing_keys=skip left out where it is
    lacking; jobs that are then the same are one.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        # Not a base class: Hydra loads its module anew when it looks for plugins.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        self.basic = BasicSweeper(max_batch_size, params)
        self.combinations = self.basic.split_arguments
        self.basic.split_arguments = self.batches  # type: ignore[method-assign]
        self.basic.validate_batch_is_legal = self.list_jobs  # type: ignore[method-assign]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what the jobs need."""
        self.context, self.master = hydra_context, config
        self.basic.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs."""
        return self.basic.sweep(arguments)

    def batches(
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The overrides of all jobs, each job once, composed, so that mistakes are found first."""
        (asked,) = self.combinations(overrides, None) or [[]]
        if not asked:
            globs = [o.input_line for o in overrides if o.is_sweep_override()]
            raise UserError(
                f"{' '.join(map(str, globs))}: nothing is there that matches, among what comes "
                "with cl-run; choices of a package of yours are named one by one"
            )
        fitted = [self.fitted(job) for job in asked]
        check_lacking(fitted, skip=self.master.missing_keys == "skip")
        self.composed = {tuple(job.overrides): job.config for job in fitted}
        check_any(list(self.composed.values()))
        jobs = [list(job) for job in self.composed]
        name_by_what_differs(self.composed)
        return list(self.basic.split_overrides_to_chunks(jobs, max_batch_size))

    def fitted(self, overrides: Sequence[str]) -> Fitted:
        """A job's configuration without the keys that its choices lack, and these."""
        kept = list(overrides)
        lacking: dict[str, Exception] = {}
        while True:
            try:
                config = self.context.config_loader.load_sweep_config(self.master, kept)
            except HydraException as error:
                cause = error.__cause__
                if not isinstance(cause, ConfigKeyError | ConfigAttributeError):
                    raise
                key = str(cause.full_key)
                left = [o for o in kept if o.partition("=")[0] != key]
                if left == kept:
                    raise
                kept, lacking[key] = left, error
            else:
                return Fitted(kept, config, lacking)

    def list_jobs(self, batch: Sequence[Sequence[str]]) -> None:
        """Add the jobs to jobs.json; no two may share a folder."""
        asked: dict[str, Sequence[str]] = {}
        settings: dict[str, Any] = {}
        for number, overrides in enumerate(batch):
            config = placed(self.composed.pop(tuple(overrides)), number)
            below = os.path.relpath(config.hydra.runtime.output_dir, config.hydra.sweep.dir)
            out = Path(below).as_posix()
            own = naming.content(config)
            if settings.setdefault(out, own) != own:
                raise UserError(
                    f"{' '.join(overrides)} and {' '.join(asked[out])} are one job: what differs "
                    "makes no other run"
                )
            asked[out] = list(overrides)
        status.ask_for(Path(self.master.hydra.sweep.dir), asked)


class Fitted(NamedTuple):
    """A job of a sweep as its choices allow it."""

    overrides: list[str]
    config: DictConfig
    lacking: dict[str, Exception]  # keys that were left out, with what Hydra says about them


def check_lacking(jobs: Sequence[Fitted], *, skip: bool) -> None:
    """Refuse keys that no job has, and, unless they are skipped, those that some jobs lack."""
    for key in dict.fromkeys(key for job in jobs for key in job.lacking):
        group = key.partition(".")[0]
        without = [
            job.config.hydra.runtime.choices.get(group) for job in jobs if key in job.lacking
        ]
        if len(without) == len(jobs):
            raise unknown(key, jobs)
        options = ", ".join(dict.fromkeys(map(str, without)))
        if not skip:
            raise UserError(
                f"{key} is no key of {group}={options}; leave {group}={options} out of the sweep, "
                "or missing_keys=skip runs it without the key"
            )
        log.info("%s is no key of %s=%s, which runs without it", key, group, options)


def unknown(key: str, jobs: Sequence[Fitted]) -> Exception:
    """The error about a key that no job has; of several jobs, of one that has a similar key."""
    group = key.partition(".")[0]
    for job in jobs:
        keys = [k for k in dotted(job.config) if k.startswith(f"{group}.")]
        if nearest(key, keys):
            return job.lacking[key]
    return jobs[0].lacking[key]


def check_any(configs: Sequence[DictConfig]) -> None:
    """Refuse a sweep none of whose jobs can run; where some can, they do."""
    refused = []
    for config in configs:
        try:
            checked(own(config))
        except UserError as error:
            refused.append(error)
    if len(refused) == len(configs):
        raise refused[0]


def own(config: DictConfig) -> DictConfig:
    """A composed configuration without Hydra's part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def name_by_what_differs(composed: Mapping[tuple[str, ...], DictConfig]) -> None:
    """The folder of a job is not named by what all jobs of its sweep have in common."""
    common = set.intersection(*map(set, composed)) if len(composed) > 1 else set()
    for overrides, config in composed.items():
        naming.plan(config, [override for override in overrides if override not in common])


def compose(
    context: HydraContext, master: DictConfig, overrides: Sequence[str], number: int
) -> DictConfig:
    """A job's configuration, with its output folder."""
    return placed(context.config_loader.load_sweep_config(master, list(overrides)), number)


def placed(config: DictConfig, number: int) -> DictConfig:
    """A job's configuration with its number and its output folder."""
    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = str(number), number
    before: Any = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    out = Path(config.hydra.sweep.dir, str(OmegaConf.select(config, "hydra.sweep.subdir")))
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(out.absolute())
    HydraConfig.instance().cfg = before
    return config


def register(run: RunTogether, conclude: Conclude) -> None:
    """Make both known to Hydra, which does not find them by itself in an editable install.

    run: trains a sweep's jobs together, as far as they can be. conclude: makes of such a job's
    outcome what stands for the task function. Both are handed in, since the command line lies above
    this module.
    """
    TOGETHER.update(run=run, conclude=conclude)
    Plugins.instance().register(VectorizedLauncher)
    Plugins.instance().register(ListingSweeper)
    node = {"_target_": "hydra_plugins.cl_runner_launcher.VectorizedLauncher"}  # no settings
    ConfigStore.instance().store(
        group="hydra/launcher", name="vectorized", node=node, provider="cl_runner", **AGAIN
    )
