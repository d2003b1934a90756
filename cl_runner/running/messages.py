"""What a run says besides its results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cl_runner.config.schema import Config
from cl_runner.core import Stream
from cl_runner.machine.console import say
from cl_runner.nn.networks import build, factory
from cl_runner.results.names import LOG
from cl_runner.running.checkpoint import Saved
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.parts.costs import COSTLY, counted
from cl_runner.training.env import Env

log = logging.getLogger(__name__)
SAID = 3  # tasks, and classes of each, in the line about those that differ
say_once = cache(say)  # of several jobs in this process, the first


def where_it_goes_on(out: Path, saved: Saved | None) -> str:
    """Where a run goes on."""
    if saved is None:
        return f"there is nothing to resume, this run starts from the beginning: {out}"
    step = f" after step {saved.progress.step}" if saved.progress else ""
    return f"goes on in task {saved.task + 1}{step}: {out}"


def notes(strategy: Strategy, env: Env) -> Iterator[str]:
    """What to know about a run before its numbers are read."""
    if strategy.regulariser and env.stream.scenario == "class" and env.num_tasks > 1:
        yield (
            f"strategy={strategy.name} is a pure regulariser: in class-incremental learning expect "
            "little more than strategy=naive; run that and strategy=joint, the bounds, beside it"
        )
    yield from late_and_missing(env.stream)
    yield from strategy.notes(env)


def dear(config: Config, env: Env, costs: Mapping[str, Any]) -> Iterator[str]:
    """That training took more than ten times the FLOPs of naive's for each sample, where it did.

    costs: a row of costs.csv. Naive passes a sample once forward and once back through the
    configured network, which is counted on two samples and a network of its own.
    """
    stream, on = env.stream, env.on_features
    new = factory(config.model, stream.input_shape, stream.num_classes, config.plugins)
    make_net = new if on is None else on.make_net
    network = build(make_net, 0).to(env.device).eval()  # so that no dropout draws
    x, task = env.inputs(stream.x[:2]), torch.zeros(2, dtype=torch.int64, device=env.device)
    with torch.enable_grad():
        naive = counted(lambda: network(x, task).sum().backward()) / 2 * costs["samples"]
    if costs["flops"] > COSTLY * naive:
        yield (
            f"strategy={config.strategy['name']} took {costs['flops'] / naive:.1f} times the FLOPs "
            "of strategy=naive for each sample"
        )


def late_and_missing(stream: Stream) -> Iterator[str]:
    """Which classes appear after the first of the named tasks, and which ones later tasks lack."""
    seen: dict[str, None] = dict.fromkeys(stream[0].names)
    changes = []
    for task in stream[1:] if stream[0].name else ():
        new = [repr(name) for name in task.names if name not in seen]
        absent = [repr(name) for name in seen if name not in task.names]
        first = [f"is the first with {listed(new)}"] if new else []
        without = [f"has no {listed(absent)}"] if absent else []
        if first or without:
            changes.append(f"{task.name} {' and '.join(first + without)}")
        seen |= dict.fromkeys(task.names)
    if changes:
        more = len(changes) - SAID
        rest = f"; and so on in {more} more tasks" if more > 0 else ""
        yield f"not every task has the same classes: {'; '.join(changes[:SAID])}{rest}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; of many the first ones, and how many more there are."""
    more = len(names) - SAID
    return ", ".join(names[:SAID]) + (f" and {more} more" if more > 0 else "")


def print_and_log(config: Config, text: str, aloud: Callable[[str], None] = say) -> None:
    """A line for the log, and for the console unless verbose=false."""
    log.info("%s", text)
    if config.told:
        aloud(text)


@contextmanager
def logged(out: Path) -> Iterator[None]:
    """What is logged meanwhile goes to the folder's cl-run.log, and nowhere else."""
    out.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(out / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = before
        handler.close()
