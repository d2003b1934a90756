"""What a run has measured so far, and its files."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from cl_runner.config import identity
from cl_runner.config.schema import Config
from cl_runner.core import Stream, TrainState
from cl_runner.data.boundaries import mixed_samples
from cl_runner.errors import UserError
from cl_runner.functional.detectors import judged
from cl_runner.machine.ram import peak_memory, reset_peak_memory
from cl_runner.results import files, matrices, status
from cl_runner.results.columns import of_guard, task_costs
from cl_runner.results.images import write_grid
from cl_runner.results.names import (
    BOUNDARY_TABLE,
    CONFIG,
    EDIT_TABLE,
    OVERRIDES,
    PERSONAL_TABLE,
    SUMMARY,
    TASK_TABLE,
)
from cl_runner.results.titles import UNNAMED, Titles, titled
from cl_runner.running import edits
from cl_runner.running.calibration import Calibration
from cl_runner.running.checkpoint import Saved
from cl_runner.running.evaluation import evaluate, readings
from cl_runner.running.footprint import footprint
from cl_runner.running.guard import Backtest, ended, looked_back, row_of
from cl_runner.running.loggers.library import STEPS, TASKS
from cl_runner.running.loggers.switch import Switch
from cl_runner.running.loggers.values import Losses, accuracies, known, so_far
from cl_runner.running.representation import Grams, measured
from cl_runner.strategies.base import Strategy
from cl_runner.training import online
from cl_runner.training.env import Env
from cl_runner.training.fit import Progress
from cl_runner.training.online import Counted
from cl_runner.version import __version__

log = logging.getLogger(__name__)


class RunFiles:
    """What a run has measured so far, and its files."""

    def __init__(
        self,
        config: Config,
        strategy: Strategy,
        env: Env,
        out: Path,
        overrides: Sequence[str],
        started: float,
        members: int = 1,
    ) -> None:
        self.config, self.env, self.out, self.started = config, env, out, started
        self.together = members  # runs that are trained as one stacked state, and share the time
        self.members = members  # the most that ever were
        self.before = 0.0  # seconds that were spent when the run went on
        self.own = readings(config.scenario)[0]
        self.titles = titles_of(env.stream)
        self.matrices: matrices.Matrices = {}
        self.memory: dict[str, int | None] = {}
        asked = {"online": env.online, "guard": config.guard.drop is not None}
        asked |= {"representation": config.eval.features}
        named = ("costs", *(name for name, there in asked.items() if there))
        self.tables: matrices.Tables = {name: [] for name in named}
        self.made: files.Lines = {}
        self.backtest: Backtest | None = None  # what the guard has seen of the task under way
        self.edits: edits.Edits | None = None  # the tasks that were chosen, with benchmark=edits
        self.curves: matrices.Curves = {}
        self.grams: Grams = {}  # what the tasks looked like to the network, with eval.features
        self.seconds = 0.0
        self.saved_at = started
        reset_peak_memory(env.device)
        self.task, self.step = 1, 0  # for status.json: the task under way, steps at a checkpoint
        try:
            files.make_folder(out)
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}") from None
        if not (config.resume and (out / OVERRIDES).exists()):
            files.write_text(out / CONFIG, OmegaConf.to_yaml(dict(config.resolved)))
            files.write_text(out / OVERRIDES, OmegaConf.to_yaml(list(overrides)))
        if self.titles.tasks:
            files.write_rows(out / TASK_TABLE, task_rows(env.stream))
        self.write_status("running")
        self.loggers = Switch(config, out)
        self.losses = Losses(env.meter)

    def begin_logging(self) -> None:
        """Begin, or go on with, what the loggers are told."""
        self.loggers.begin(identity.flatten(self.config.resolved) | versions(self.env))
        self.env.meter.displays += [self.losses] if self.loggers else []

    def saved(self, s: TrainState, task: int, progress: Progress | None = None) -> Saved:
        """What a checkpoint holds: next comes task `task`, or what remains of it."""
        about = {"seconds": self.elapsed(), "members": self.members}
        counts = about | self.env.meter.state()
        watch = None if self.env.watch is None else self.env.watch.tensors()
        at = task, progress, watch, self.backtest, self.edits, self.grams
        return Saved(s, self.matrices, counts, self.tables, self.curves, *at)

    def elapsed(self) -> float:
        """The run's seconds so far; of several that are trained together, its share."""
        return self.before + (time.perf_counter() - self.started) / self.together

    def note_saved(self, task: int, progress: Progress | None) -> None:
        """A checkpoint is on the disk."""
        if progress is not None:
            self.at(task, progress.step)
            self.write_status("running")
            self.loggers.measured(STEPS, self.losses.taken())
        self.saved_at = time.perf_counter()

    def restore(self, saved: Saved, strategy: Strategy, s: TrainState) -> None:
        """Go on from where a checkpoint was written."""
        counts = dict(saved.counts)
        self.before = counts.pop("seconds")
        self.members = max(self.members, counts.pop("members"))
        self.env.meter.restore(counts)
        if self.env.watch is not None and saved.watch is not None:
            self.env.watch.restore(saved.watch)
        self.matrices, self.tables, self.curves = saved.matrices, saved.tables, saved.curves
        self.backtest, self.edits, self.grams = saved.backtest, saved.edits, saved.grams or {}
        if self.edits is not None:
            self.env.stream = edits.with_edits(self.env.stream, self.edits)
        self.at(saved.task, 0 if saved.progress is None else saved.progress.step)
        self.memory = footprint(strategy, s, self.env)

    def evaluated(self, after_task: int, strategy: Strategy, s: TrainState) -> None:
        """Evaluate, fill row `after_task` of each R, and write what is known."""
        self.env.meter.lap()
        T = len(self.env.stream)
        seen = Calibration(after_task) if self.config.eval.calibration else None
        shown, see = self.shown(after_task), seen.see if seen else None
        for key, row in evaluate(strategy, s, self.env, see, shown).items():
            R = self.matrices.setdefault(key, np.full((T + 1, T), np.nan))
            R[after_task] = row
        if self.edits is not None and after_task > 1:
            self.edits = edits.read(self.edits, after_task - 1, strategy, s, self.env)
        for name, rows in seen.rows().items() if seen else ():
            self.tables.setdefault(name, []).extend(rows)
        if self.config.eval.features and after_task:
            self.tables["representation"] += measured(after_task, s, shown, self.grams, self.env)
        self.env.meter.lap("evaluation_seconds")
        self.memory = footprint(strategy, s, self.env)
        self.add_costs(after_task)
        self.log_accuracy(after_task)
        if after_task:
            for name, images in strategy.pictures(s, self.env).items():
                write_grid(self.out / "pictures" / f"{name}_{after_task}.png", images)
            for name, rows in strategy.tables(s, self.env).items():
                files.write_rows(self.out / f"{name}.csv", titled(rows, self.titles))
        self.at(after_task, 0)
        self.write("running")
        if self.loggers:
            self.losses.close()
            self.loggers.measured(STEPS, self.losses.taken())
            self.loggers.measured(TASKS, [(after_task, self.told(after_task))])

    def told(self, after_task: int) -> dict[str, float]:
        """What the loggers are told after a task."""
        R, costs = self.matrices["test", self.own], self.tables["costs"][-1]
        values = accuracies("accuracy", R[after_task], R, self.titles)
        if after_task:
            rows, curves = so_far(after_task, self.matrices, self.within)
            more = self.tables.get("online"), self.edited()
            metrics = matrices.metric_columns(rows, self.own, curves, *more, base=self.base)
            values |= known({f"metrics/{name}": value for name, value in metrics.items()})
        return values | known({f"costs/{k}": v for k, v in costs.items() if k != "after_task"})

    def log_accuracy(self, after_task: int) -> None:
        """Log the mean accuracy on the tasks seen, or on those of them that were evaluated."""
        seen = self.matrices["test", self.own][after_task][: after_task or None]
        there = seen[~np.isnan(seen)]
        of = "" if len(there) == len(seen) else f" on {len(there)} of {len(seen)} tasks"
        if len(there):
            name = self.env.stream[after_task - 1].name if after_task else ""
            log.info("after task %s: mean accuracy %.4f%s", name or after_task, there.mean(), of)
            for display in self.env.meter.displays:
                display.evaluated(after_task, float(there.mean()))

    def add_online(self, task: int, steps: Sequence[Counted]) -> None:
        """What the steps of task `task` (its index) predicted right."""
        window, passes = self.config.eval.online_window, self.config.training.passes
        self.tables["online"] += online.rows(task + 1, steps, window, passes)

    def evaluated_within(self, task: int, step: int, strategy: Strategy, s: TrainState) -> None:
        """Evaluate after a step of a task; not again if a run goes on from there."""
        if self.measured_at((task, step)):
            return
        self.env.meter.lap()
        for key, row in evaluate(strategy, s, self.env, shown=self.shown(task)).items():
            self.curves.setdefault(key, []).append([task, step, *row])
        self.env.meter.lap("evaluation_seconds")
        if self.loggers:
            R, row = self.matrices["test", self.own], self.curves["test", self.own][-1][2:]
            within = accuracies("within", np.asarray(row), R, self.titles)
            self.loggers.measured(STEPS, [*self.losses.taken(), (self.env.meter.steps, within)])

    def shown(self, done: int) -> range:
        """The indices of the tasks that are evaluated when `done` are trained."""
        stream = self.env.stream
        return self.config.eval.shown(done, len(stream), chosen=stream.pool is not None)

    def choose(self, strategy: Strategy, s: TrainState) -> None:
        """Choose the tasks after the first by what its model gets wrong, where they are chosen.

        Raises UserError if it gets too little wrong.
        """
        if self.env.stream.pool is not None:
            self.env.meter.lap()
            self.edits = edits.decide(strategy, s, self.env)
            self.env.stream = edits.with_edits(self.env.stream, self.edits)
            self.env.meter.lap("evaluation_seconds")

    def measured_at(self, position: tuple[int, int]) -> bool:
        """Whether the curves end at this task and step."""
        return any(tuple(rows[-1][:2]) == position for rows in self.curves.values() if rows)

    def look_back(self, task: int, strategy: Strategy, s: TrainState) -> Backtest | None:
        """Let the guard look at a state within a task; what it knows if the bound breaks just now.

        Not twice at the same step, nor at what is not finite: that is found at the epoch's end.
        """
        meter, guard, R = self.env.meter, self.config.guard, self.matrices["validation", self.own]
        backtest = self.backtest or Backtest(meter.steps, -1)
        if self.guard_ended or backtest.looked == meter.steps or not torch.isfinite(s.theta).all():
            return None
        if self.measured_at((task, meter.steps - backtest.began)):
            row = self.curves["validation", self.own][-1][2 : task + 3]
        else:
            meter.lap()
            tasks = [("validation", old) for old in self.env.stream[: task + 1]]
            found = evaluate(strategy, s, self.env, only=tasks)
            row = found["validation", self.own][: task + 1]
            meter.lap("evaluation_seconds")
        now = looked_back(backtest, guard, R, row, s, meter.steps)
        self.backtest = now if now.fired is None else now._replace(state=None)
        return now if now.fired is not None and backtest.fired is None else None

    @property
    def guard_ended(self) -> bool:
        """Whether the guard has ended the training on the task under way."""
        return ended(self.backtest, self.config.guard)

    def steps_are_over(self, task: int, step: int) -> None:
        """After a task's last step, forget what was measured there: it is evaluated in a moment.

        Not so if the task goes back from there. The guard's row is complete.
        """
        backtest, self.backtest = self.backtest, None
        if backtest is not None:
            row = row_of(backtest, self.config.guard, task, self.env.meter.steps)
            self.tables["guard"].append(row)
            step = row["kept_step"]
        if self.measured_at((task, step)):
            for rows in self.curves.values():
                rows.pop()

    def add_costs(self, after_task: int) -> None:
        """What was spent since the last row of costs, and what the run holds now."""
        costs = self.tables["costs"]
        sums = {name: getattr(self.env.meter, name) for name in task_costs("sum")}
        spent = {  # what is not known of all is known of no further task
            name: value if value is None else value - sum(row[name] for row in costs)
            for name, value in sums.items()
        }
        peak = max((row["peak_memory_bytes"] for row in costs), default=0)
        peak = max(peak, peak_memory(self.env.device))
        measured = {**spent, **self.memory, "peak_memory_bytes": peak}
        costs.append({"after_task": after_task} | {name: measured[name] for name in task_costs()})

    def columns(self) -> dict[str, Any]:
        """The row of summary.csv, without its status."""
        silent = {"verbose", "plots", "checkpoint"}
        resolved = {k: v for k, v in self.config.resolved.items() if k not in silent}
        flat = identity.flatten(resolved)
        names = {
            group: flat.pop(f"{group}.name")
            for group in ("benchmark", "strategy", "model", "optimizer")
        }
        costs = self.tables["costs"]
        found = self.matrices, self.own, self.within, self.tables.get("online"), self.edited()
        metrics = matrices.metric_columns(*found, base=self.base)
        return {
            "benchmark": names["benchmark"],
            "scenario": flat.pop("scenario"),
            "strategy": names["strategy"],
            "seed": flat.pop("seed"),
            **metrics,
            "seconds": self.seconds,
            **{name: getattr(self.env.meter, name) for name in task_costs("sum")},
            "energy_source": self.env.meter.energy_source,
            **self.budget_stopped(),
            **self.detected(),
            **(of_guard(self.tables["guard"]) if "guard" in self.tables else {}),
            **self.memory,
            "peak_memory_bytes": costs[-1]["peak_memory_bytes"] if costs else None,
            "model": names["model"],
            "optimizer": names["optimizer"],
            **flat,
            "config_hash": identity.config_hash(self.config.resolved),
            "stacked_members": self.members,
            **versions(self.env),
        }

    @property
    def base(self) -> bool:
        """Whether the first task makes a common model, over which the others gain."""
        return getattr(self.config.benchmark, "base", None) is not None

    @property
    def within(self) -> matrices.Curves | None:
        """What was measured within the tasks; None where that is not asked for."""
        return None if self.config.eval.every is None else self.curves

    def budget_stopped(self) -> dict[str, list[int]]:
        """The tasks, from 1, whose training the budget ended, where there is a budget."""
        meter = self.env.meter
        return {"budget_stopped": [t + 1 for t in meter.stopped]} if meter.budget else {}

    def boundaries(self) -> list[dict[str, Any]]:
        """The rows of boundaries.csv, where borders are detected."""
        watch, stream = self.env.watch, self.env.stream
        if watch is None:
            return []
        mixed = [0] * len(stream)
        if stream.boundaries == "fuzzy":
            width = self.config.benchmark.fuzzy_width
            sizes = [len(task.train) for task in stream]
            mixed = [mixed_samples(width, a, b) for a, b in pairwise(sizes)] + [0]
        size = self.env.training.batch_size
        borders = [end - mixed[t] // size for t, end in enumerate(watch.ends) if end < watch.step]
        return judged(borders, watch.alarms)

    def edited(self) -> list[dict[str, Any]] | None:
        """The rows of edits.csv; None for a run that is not about edits."""
        stream, R = self.env.stream, self.matrices.get(("test", self.own))
        if stream.pool is None:
            return None
        return [] if self.edits is None or R is None else edits.rows_of(self.edits, R, stream)

    def detected(self) -> dict[str, float | None]:
        """What became of the borders, where they are detected."""
        if self.env.watch is None:
            return {}
        rows = self.boundaries()
        kinds = [row["kind"] for row in rows]
        delays = [row["delay"] for row in rows if row["kind"] == "found"]
        return {
            "borders_missed": kinds.count("missed"),
            "false_alarms": kinds.count("false"),
            "mean_delay": sum(delays) / len(delays) if delays else None,
        }

    def write(self, state: str) -> None:
        """All result files as they stand; status.json is the last."""
        self.write_results(state)
        self.write_status(state)

    def write_results(self, state: str) -> None:
        """The matrices and the summary."""
        self.seconds = self.elapsed()
        if self.matrices:
            measured = self.matrices, self.own, self.within, self.titles
            matrices.write_matrices(self.out, *measured, self.made)
            for name, rows in self.tables.items():
                if rows:  # no task was seen yet
                    files.write_grown(self.out / f"{name}.csv", rows, self.titles, self.made)
        if rows := self.boundaries():
            files.write_rows(self.out / BOUNDARY_TABLE, rows)
        if self.base and self.matrices:
            rows = matrices.personal_rows(self.matrices["test", self.own])
            files.write_rows(self.out / PERSONAL_TABLE, titled(rows, self.titles))
        if edited := self.edited():
            files.write_rows(self.out / EDIT_TABLE, edited)
        files.write_rows(self.out / SUMMARY, [{"status": state, **self.columns()}])

    def ended(self, error: BaseException) -> None:
        """All files of a run that an error or a signal ends; one that is complete stays so."""
        if status.read(self.out).get("state") == "complete":
            return
        if isinstance(error, Exception):
            self.write_results("failed")
            status.fail(self.out, error)
        else:
            self.write("interrupted")
        self.loggers.end("failed" if isinstance(error, Exception) else "interrupted")

    def at(self, index: int, step: int) -> None:
        """Where the run is: so many steps into task `index`; past the last one it stays there."""
        self.task, self.step = min(index + 1, len(self.env.stream)), step

    def write_status(self, state: str) -> None:
        """Write status.json."""
        tasks, name = len(self.env.stream), self.env.stream[self.task - 1].name
        about = {"task_name": name} if name else {}
        status.write(self.out, state, task=self.task, tasks=tasks, step=self.step, **about)


def titles_of(stream: Stream) -> Titles:
    """The names of tasks and classes; none where the tasks have none."""
    if not any(task.name for task in stream):
        return UNNAMED
    classes = {c: name for task in stream for c, name in zip(task.classes, task.names, strict=True)}
    return Titles(tasks=[task.name for task in stream], classes=classes)


def task_rows(stream: Stream) -> list[dict[str, Any]]:
    """The rows of tasks.csv: a task's classes, and its numbers of samples."""
    return [
        {
            "task": task.index + 1,
            "name": task.name,
            "classes": json.dumps(task.names, ensure_ascii=False),
            "train": len(task.train),
            "validation": len(task.validation),
            "test": len(task.test),
        }
        for task in stream
    ]


def used_device(device: torch.device) -> str:
    """What a device is called: a GPU of CUDA by its own name."""
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def versions(env: Env) -> dict[str, Any]:
    """What the numbers depend on besides the configuration."""
    return {
        "used_device": used_device(env.device),
        "used_precision": env.precision,
        "used_engine": env.engine,
        "used_threads": torch.get_num_threads(),
        "cl_runner_version": __version__,
        "commit": commit(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
    }


@cache
def commit() -> str | None:
    """The commit of the source tree that runs, marked `+` if changed; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
