"""One run: from a configuration to the files in its folder."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import cl_runner
from cl_runner import (
    checkpoint,
    free_memory,
    kernels,
    memory,
    results,
    sharing,
    status,
    steps,
    strategies,
)
from cl_runner.checkpoint import Saved
from cl_runner.config import Config
from cl_runner.console import near, say
from cl_runner.core import Task, TrainState
from cl_runner.costs import COUNTS, SECONDS, peak_memory, reset_peak_memory
from cl_runner.data.benchmarks import build_stream
from cl_runner.data.datasets import Arrays, load
from cl_runner.engine import Calibration, evaluate, initial_state, readings, restored, train_task
from cl_runner.env import Env
from cl_runner.errors import Diverged, UserError
from cl_runner.fit import Begun, Between, Samples
from cl_runner.frame import frame_of
from cl_runner.functional.metrics import acc
from cl_runner.nn.networks import factory
from cl_runner.outline import check_scenario
from cl_runner.progress import display
from cl_runner.signals import Stop, stoppable
from cl_runner.strategies.base import Strategy

log = logging.getLogger(__name__)
say_once = cache(say)  # of several jobs in this process, the first
DEFAULT_THREADS = torch.get_num_threads()  # torch's own choice, whatever an earlier job set


def run(config: Config, out: Path, overrides: Sequence[str] = (), job: str = "") -> float:
    """Train on the tasks one after another and write the results into the folder `out`.

    job: the name of a job of many; it says a line in the place of the tables of a run alone.

    Returns the final ACC: on the validation data where there are any, so that a search never sees
    the test data. With `resume` it goes on where the run in that folder was stopped, or returns its
    ACC if it is complete. Raises UserError before anything is written, or when memory or disk are
    full; Diverged, KeyboardInterrupt and unforeseen errors after what was measured so far is
    written with its status.
    """
    try:
        if config.resume:
            checkpoint.check_run(out, config.resolved)
            if (there := status.finished(out)) is not None:
                tidy(config, out)
                tell(config, f"complete, nothing to do: {out}")
                return there
        with free_gpu(config.device):
            return _run(config, out, overrides, job)
    except (MemoryError, RuntimeError) as error:
        if message := memory.shortage(error):
            raise UserError(message) from error
        raise


def tidy(config: Config, out: Path) -> None:
    """Remove what a complete run needs no more, and what a process that was killed left."""
    if config.checkpoint.keep:
        results.remove_leftovers(out)
    else:
        checkpoint.remove(out)


def _run(config: Config, out: Path, overrides: Sequence[str], job: str) -> float:
    started = time.perf_counter()
    strategy = strategies.build(config.strategy, config.plugins)
    env = prepare(config, strategy)
    own, *others = readings(config.scenario)
    s = initial_state(strategy, env)
    saved = None
    if config.resume:
        saved = checkpoint.load(out, config.resolved, frame_of(config, strategy, s, env))
    record = Record(config, strategy, env, out, overrides, started)
    try:
        with stoppable() as stop, display(len(env.stream), config.verbose) as env.meter.display:
            first, begun = 0, None
            if saved is not None:
                s, first, begun = restored(saved.state, env), saved.task, saved.begun
                record.restore(saved, strategy, s)
            else:
                record.evaluated(0, strategy, s)
            for line in notes(strategy, env):
                tell(config, line, say_once if job else say)
            if config.resume:
                tell(config, position(out, saved))
            for task in env.stream[first:]:
                log.info("task %d: classes %s", task.index + 1, ", ".join(task.names))
                env.meter.lap()
                s = train_task(
                    strategy, s, task, env, begun, partial(watch, record, stop, strategy, task)
                )
                env.meter.lap("train_seconds")
                record.evaluated(task.index + 1, strategy, s)
                record.save(s, task.index + 1)
                begun = None
        record.write("complete")
    except BaseException as error:
        record.ended(error)
        log.error("%s", error if isinstance(error, Diverged) else repr(error))
        raise
    tidy(config, out)
    if config.verbose and job:
        say(f"{job} · {results.in_words(record.columns())} · {record.seconds:.1f} s")
    elif config.verbose:
        say(results.format_matrix(record.matrices["test", own]))
        say(results.format_metrics(record.columns(), [own, *others]))
        say(f"{record.seconds:.1f} s · results in {near(out)}")
    if config.plots:
        draw(config, out)
    return result(record)


def draw(config: Config, out: Path) -> None:
    """The pictures of a folder's runs; the run is complete, and stays so if they fail."""
    from cl_runner.compare.pictures import of_folder

    try:
        files = of_folder(out)
        tell(config, f"{len(files)} pictures in {near(files[0].parent)}")
    except Exception as error:  # noqa: BLE001 - the numbers are what counts
        tell(config, f"no pictures: {' '.join(str(error).split())}")


def result(record: Record) -> float:
    """The final ACC of a run; of its validation data where there are any."""
    split = "validation" if ("validation", record.own) in record.matrices else "test"
    return acc(record.matrices[split, record.own])


@contextmanager
def watch(
    record: Record, stop: Stop, strategy: Strategy, task: Task, samples: Samples
) -> Iterator[Between]:
    """Evaluate between the steps of a task if asked to; save the state now and then, and stop."""
    every, steps = record.config.checkpoint.every, record.config.checkpoint.every_steps
    meter = record.env.meter
    look, last = record.config.eval.every, 0

    def between(s: TrainState, step: int, losses: list[Tensor]) -> None:
        nonlocal last
        last = step
        if look is not None and step and step % look == 0:
            record.evaluated_within(task.index, step, strategy, s)
        due = every is not None and time.perf_counter() - record.saved_at >= every
        if due or stop.asked or (steps is not None and step and step % steps == 0):
            meter.lap("train_seconds")
            record.save(s, task.index, Begun(samples, step, tuple(losses)))
            meter.lap()
        stop.check()

    with stop.stepping():
        yield between
    record.drop(task.index, last)


def position(out: Path, saved: Saved | None) -> str:
    """Where a run goes on."""
    if saved is None:
        return f"there is nothing to resume, this run starts from the beginning: {out}"
    step = f" after step {saved.begun.step}" if saved.begun else ""
    return f"goes on in task {saved.task + 1}{step}: {out}"


def notes(strategy: Strategy, env: Env) -> Iterator[str]:
    """What to know about a run before its numbers are read."""
    if strategy.regulariser and env.stream.scenario == "class" and env.num_tasks > 1:
        yield (
            f"strategy={strategy.name} is a pure regulariser: in class-incremental learning expect "
            "little more than strategy=naive; run that and strategy=joint, the bounds, beside it"
        )
    yield from strategy.notes(env)


def tell(config: Config, text: str, aloud: Callable[[str], None] = say) -> None:
    """A line for the log, and for the console unless verbose=false."""
    log.info("%s", text)
    if config.verbose:
        aloud(text)


def read(config: Config) -> Arrays:
    """The data set of a run. Raises UserError."""
    path = None if config.data.path is None else Path(config.data.path)
    return load(config.benchmark.dataset, Path(config.data.root), path, partial(tell, config))


def prepare(config: Config, strategy: Strategy, arrays: Arrays | None = None) -> Env:
    """Device, data, stream and network of a run. Raises UserError for whatever does not fit.

    arrays: the data set, where several runs share it.
    """
    check_scenario(strategy.name, strategy.scenarios, config.scenario)
    device = choose_device(config.device)
    free = free_memory.available(device)
    torch.set_num_threads(config.threads or DEFAULT_THREADS)
    precision = kernels.choose(config.precision, device)
    kernels.keep_freed_memory()
    data = read(config) if arrays is None else arrays
    stream = build_stream(
        config.benchmark,
        config.scenario,
        data,
        device,
        augmented=config.training.augment != "none",
    )
    make_net = factory(config.model, stream.input_shape, stream.num_classes)
    parts = memory.of_data(stream, data if arrays is None else None)

    def network(env: Env) -> nn.Module:
        memory.require(parts | memory.of_network(config, strategy, env, make_net, free), free)
        return strategy.wrap(make_net, env)

    env = Env(
        stream=stream,
        make_net=network,
        precision=precision,
        budget=config.budget,
        optimizer=config.optimizer,
        training=config.training,
        seed=config.seed,
    )
    parts |= memory.of_parameters(config, env.flat.module, device)
    parts |= memory.of_strategy(strategy, env)  # with its checks against the stream
    parts |= memory.of_activations(config, strategy, env)
    memory.require(parts, free)
    env.engine, reason = steps.choose(config.engine, strategy.one_graph, env)
    log.info("engine: %s (%s)", env.engine, reason)
    return env


def choose_device(name: str) -> torch.device:
    """The device that `device=` names; `auto` is CUDA where there is a usable one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "device=cuda: torch finds no usable CUDA GPU; use device=cpu or device=auto"
        )
    device = torch.device("cuda" if available and name != "cpu" else "cpu")
    if device.type == "cuda":
        # The same command gives the same numbers: no algorithm that depends on timing.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return device


@contextmanager
def free_gpu(device: str) -> Iterator[None]:
    """Meanwhile the current GPU is one that few runs use, where there are several."""
    number = torch.cuda.device_count() if device != "cpu" else 0
    if number < 2:
        yield
        return
    with sharing.gpu(number, free=sharing.free_memory()) as index:
        torch.cuda.set_device(index)
        log.info("GPU %d of %d", index, number)
        yield


class Record:
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
        self.members = members  # runs that are trained as one stacked state
        self.own = readings(config.scenario)[0]
        self.matrices: results.Matrices = {}
        self.memory: dict[str, int | None] = {}
        self.tables: results.Tables = {"costs": []}
        self.curves: results.Curves = {}
        self.seconds = 0.0
        self.saved_at = started
        reset_peak_memory(env.device)
        self.task, self.step = 1, 0  # for status.json: the task under way, steps at a checkpoint
        try:
            results.make_folder(out)
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}") from None
        if not (config.resume and (out / "overrides.yaml").exists()):
            results.write_text(out / "config.yaml", OmegaConf.to_yaml(dict(config.resolved)))
            results.write_text(out / "overrides.yaml", OmegaConf.to_yaml(list(overrides)))
        self.tell("running")

    def save(self, s: TrainState, task: int, begun: Begun | None = None) -> None:
        """Write a checkpoint: next comes task `task`, or what remains of it."""
        counts = {"seconds": time.perf_counter() - self.started, **self.env.meter.state()}
        saved = Saved(s, self.matrices, counts, self.tables, self.curves, task, begun)
        checkpoint.save(self.out, saved, self.config.resolved)
        if begun is not None:
            self.at(task, begun.step)
            self.tell("running")
        self.saved_at = time.perf_counter()

    def restore(self, saved: Saved, strategy: Strategy, s: TrainState) -> None:
        """Go on from where a checkpoint was written."""
        counts = dict(saved.counts)
        self.started -= counts.pop("seconds")
        self.env.meter.restore(counts)
        self.matrices, self.tables, self.curves = saved.matrices, saved.tables, saved.curves
        self.at(saved.task, 0 if saved.begun is None else saved.begun.step)
        self.memory = footprint(strategy, s, self.env)

    def evaluated(self, after_task: int, strategy: Strategy, s: TrainState) -> None:
        """Evaluate, fill row `after_task` of each R, and write what is known."""
        self.env.meter.lap()
        T = len(self.env.stream)
        seen = Calibration(after_task) if self.config.eval.calibration else None
        for key, row in evaluate(strategy, s, self.env, seen.see if seen else None).items():
            R = self.matrices.setdefault(key, np.full((T + 1, T), np.nan))
            R[after_task] = row
        for name, rows in seen.rows().items() if seen else ():
            self.tables.setdefault(name, []).extend(rows)
        self.env.meter.lap("evaluation_seconds")
        self.memory = footprint(strategy, s, self.env)
        self.add_costs(after_task)
        shown = self.matrices["test", self.own][after_task][: after_task or None]
        log.info("after task %d: mean accuracy %.4f", after_task, shown.mean())
        if after_task:
            for name, images in strategy.pictures(s, self.env).items():
                results.write_grid(self.out / "pictures" / f"{name}_{after_task}.png", images)
            for name, rows in strategy.tables(s, self.env).items():
                results.write_rows(self.out / f"{name}.csv", rows)
        self.at(after_task, 0)
        self.write("running")

    def evaluated_within(self, task: int, step: int, strategy: Strategy, s: TrainState) -> None:
        """Evaluate after a step of a task; not again if a run goes on from there."""
        if self.measured_at((task, step)):
            return
        self.env.meter.lap("train_seconds")
        for key, row in evaluate(strategy, s, self.env).items():
            self.curves.setdefault(key, []).append([task, step, *row])
        self.env.meter.lap("evaluation_seconds")

    def measured_at(self, position: tuple[int, int]) -> bool:
        """Whether the curves end at this task and step."""
        return any(tuple(rows[-1][:2]) == position for rows in self.curves.values() if rows)

    def drop(self, task: int, step: int) -> None:
        """Forget what was measured after a task's last step: it is evaluated when it has ended."""
        if self.measured_at((task, step)):
            for rows in self.curves.values():
                rows.pop()

    def add_costs(self, after_task: int) -> None:
        """What was spent since the last row of costs, and what the run holds now."""
        costs = self.tables["costs"]
        before = {name: sum(row[name] for row in costs) for name in (*SECONDS, *COUNTS)}
        spent = {name: getattr(self.env.meter, name) - value for name, value in before.items()}
        held = ("parameters", "buffer_bytes", "memory_bytes", "generator_parameters")
        peak = max((row["peak_memory_bytes"] for row in costs), default=0)
        costs.append(
            {"after_task": after_task, **spent}
            | {name: self.memory[name] for name in held}
            | {"peak_memory_bytes": max(peak, peak_memory(self.env.device))}
        )

    def columns(self) -> dict[str, Any]:
        """The row of summary.csv, without its status."""
        silent = {"verbose", "plots", "checkpoint"}
        resolved = {k: v for k, v in self.config.resolved.items() if k not in silent}
        flat = results.flatten(resolved)
        names = {
            group: flat.pop(f"{group}.name")
            for group in ("benchmark", "strategy", "model", "optimizer")
        }
        costs = self.tables["costs"]
        metrics = results.metric_columns(self.matrices, self.own, self.within)
        return {
            "benchmark": names["benchmark"],
            "scenario": flat.pop("scenario"),
            "strategy": names["strategy"],
            "seed": flat.pop("seed"),
            **metrics,
            "seconds": self.seconds,
            **{name: getattr(self.env.meter, name) for name in (*SECONDS, *COUNTS)},
            **self.stopped(),
            **self.memory,
            "peak_memory_bytes": costs[-1]["peak_memory_bytes"] if costs else None,
            "model": names["model"],
            "optimizer": names["optimizer"],
            **flat,
            "config_hash": results.config_hash(self.config.resolved),
            "stacked_members": self.members,
            **versions(self.env),
        }

    @property
    def within(self) -> results.Curves | None:
        """What was measured within the tasks; None where that is not asked for."""
        return None if self.config.eval.every is None else self.curves

    def stopped(self) -> dict[str, list[int]]:
        """The tasks, from 1, whose training the budget ended, where there is a budget."""
        meter = self.env.meter
        return {"budget_stopped": [t + 1 for t in meter.stopped]} if meter.budget else {}

    def write(self, state: str) -> None:
        """All result files as they stand; status.json is the last."""
        self.write_results(state)
        self.tell(state)

    def write_results(self, state: str) -> None:
        """The matrices and the summary."""
        self.seconds = (time.perf_counter() - self.started) / self.members
        if self.matrices:
            results.write_matrices(self.out, self.matrices, self.own, self.within)
            for name, rows in self.tables.items():
                if rows:  # no task was seen yet
                    results.write_rows(self.out / f"{name}.csv", rows)
        results.write_rows(self.out / "summary.csv", [{"status": state, **self.columns()}])

    def ended(self, error: BaseException) -> None:
        """All files of a run that an error or a signal ends; one that is complete stays so."""
        if status.read(self.out).get("state") == "complete":
            return
        if isinstance(error, Exception):
            self.write_results("failed")
            status.fail(self.out, error)
        else:
            self.write("interrupted")

    def at(self, index: int, step: int) -> None:
        """Where the run is: so many steps into task `index`; past the last one it stays there."""
        self.task, self.step = min(index + 1, len(self.env.stream)), step

    def tell(self, state: str) -> None:
        """Write status.json."""
        tasks = len(self.env.stream)
        status.write(self.out, state, task=self.task, tasks=tasks, step=self.step)


def footprint(strategy: Strategy, s: TrainState, env: Env) -> dict[str, int | None]:
    """What a state holds: parameters, buffered samples, and the rest of the strategy's memory.

    Buffers store row numbers; what is counted is the samples they stand for, at the data set's own
    precision, because that is what a method that may not keep the data would have to store; not so
    where a strategy keeps something else in their place. What is kept with each sample (its logits,
    say) counts as buffer too; its label and task do not. Not counted either is memory that follows
    from the rest (`Strategy.uncounted`). Of the parameters, those of a generator are also counted
    apart.
    """
    index = s.memory.get("buffer_index")
    samples = None if index is None else int((index >= 0).sum())
    size = env.stream.x[0].nbytes if strategy.buffers_inputs else 0
    slots = {k: v for k, v in s.memory.items() if k.startswith("buffer_")}
    size += sum(v[0].nbytes for k, v in slots.items() if k not in {"buffer_index", "buffer_task"})
    apart = {*slots, *strategy.uncounted}
    rest = sum(v.nbytes for k, v in s.memory.items() if k not in apart)
    generator = [v for k, v in env.flat.views(s.theta.detach()).items() if "generator." in k]
    return {
        "parameters": s.theta.numel(),
        "parameter_bytes": s.theta.nbytes,
        "generator_parameters": sum(v.numel() for v in generator) if generator else None,
        "buffer_samples": samples,
        "buffer_bytes": None if samples is None else samples * size,
        "memory_bytes": rest,
    }


def versions(env: Env) -> dict[str, Any]:
    """What the numbers depend on besides the configuration."""
    return {
        "used_device": torch.cuda.get_device_name() if env.device.type == "cuda" else "cpu",
        "used_precision": env.precision,
        "used_engine": env.engine,
        "used_threads": torch.get_num_threads(),
        "cl_runner_version": cl_runner.__version__,
        "commit": commit(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
    }


@cache
def commit() -> str | None:
    """The commit of the source tree that runs, marked `+` if changed; None outside a checkout."""
    source = Path(__file__).parent
    if not (source.parent / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
