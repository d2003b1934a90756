"""`cl-run -m`: what is asked for is listed; with hydra/launcher=vectorized it is trained together.

Jobs that differ only in seed, learning rate and the strategy's numbers are trained as one stacked
state where that is faster, the others in worker processes (`cl_runner.group`). Each job has its own
folder, as with Hydra's basic launcher, which is also what runs a job that can go neither way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from cl_runner import naming, status
from cl_runner.errors import UserError


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
        from cl_runner import cli  # torch comes with it, and only sweeps that run need it

        outcomes = cli.run_together(composed)
        returns = []
        for config, outcome in zip(composed, outcomes, strict=True):
            returns.append(
                run_job(
                    hydra_context=self.context,
                    task_function=(
                        self.task_function if outcome is None else cli.concluded(outcome)
                    ),
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
            )
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return returns


class ListingSweeper(Sweeper):
    """Hydra's own sweeper, which also leaves the list of its jobs: none can be lost unnoticed."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        # Not a base class: Hydra loads its module anew when it looks for plugins.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        self.basic = BasicSweeper(max_batch_size, params)
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

    def list_jobs(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose every job, so that mistakes are found first, and add them to jobs.json."""
        asked: dict[str, Sequence[str]] = {}
        settings: dict[str, Any] = {}
        for number, overrides in enumerate(batch):
            config = compose(self.context, self.master, overrides, number)
            out = os.path.relpath(config.hydra.runtime.output_dir, config.hydra.sweep.dir)
            own = naming.content(config)
            if settings.setdefault(out, own) != own:
                raise UserError(
                    f"{' '.join(overrides)} and {' '.join(asked[out])} are one job: what differs "
                    "makes no other run"
                )
            asked[out] = list(overrides)
        status.ask_for(Path(self.master.hydra.sweep.dir), asked)


def compose(
    context: HydraContext, master: DictConfig, overrides: Sequence[str], number: int
) -> DictConfig:
    """A job's configuration, with its output folder."""
    config = context.config_loader.load_sweep_config(master, list(overrides))
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    before: Any = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    out = Path(config.hydra.sweep.dir, str(OmegaConf.select(config, "hydra.sweep.subdir")))
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(out.absolute())
    HydraConfig.instance().cfg = before
    return config


def register() -> None:
    """Make both known to Hydra, which does not find them by itself in an editable install."""
    Plugins.instance().register(VectorizedLauncher)
    Plugins.instance().register(ListingSweeper)
    node = {"_target_": "hydra_plugins.cl_runner_launcher.VectorizedLauncher"}  # no settings
    ConfigStore.instance().store(
        group="hydra/launcher", name="vectorized", node=node, provider="cl_runner"
    )
