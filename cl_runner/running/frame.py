"""What the checkpoint of a run may hold, as the run knows before it reads one.

A checksum tells damage; it tells nothing about a file that somebody else has made. So every name,
type, shape and position is held against the run that is about to go on: what its first moment has,
or the program itself would have written. Values that no size or index follows from stay free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_runner.config.schema import Config, Eval
from cl_runner.core import TrainState
from cl_runner.errors import UserError
from cl_runner.machine.energy import SOURCES
from cl_runner.results.columns import of_kind, task_costs
from cl_runner.running import edits, representation
from cl_runner.running.evaluation import readings, splits
from cl_runner.running.guard import ROW, Backtest
from cl_runner.running.representation import shape_of
from cl_runner.running.tasks import times
from cl_runner.strategies.base import Strategy
from cl_runner.training import online
from cl_runner.training.env import Env
from cl_runner.training.fit import plan
from cl_runner.training.meter import COUNTS, ENERGY, SECONDS
from cl_runner.training.watch import EVERY, Watch

GROUPS = ("buffers", "opt", "memory")  # the fields of TrainState that are dictionaries
EDITS = "edits."  # before the names of what is known of edits
GRAMS = "features."  # before the indices of tasks, of what they looked like
KEPT = "guard."  # before the names of the state to which the guard may go back
HEADER = 100_000_000  # bytes; safetensors takes no longer one
LARGEST = 1e30  # of any number that a header counts or measures
CONTENT = dict.fromkeys(("task", "step", "label", "guard", "counts", "tables", "config")).keys()
WHERE = ("after_task", "reading", "split")
TABLES = {  # of calibration and confusion, which are there with eval.calibration
    "calibration": {*WHERE, "eval_task", *(column.name for column in of_kind("calibration"))},
    "confusion": {*WHERE, "class", "predicted", "count"},
}
EVERYTHING = Eval()


class Unfit(UserError):
    """A checkpoint holds what no checkpoint of this run does; the message says what."""


def expect(condition: bool, message: str) -> None:
    """Raise Unfit(message) unless the condition holds."""
    if not condition:
        raise Unfit(message)


class Frame(NamedTuple):
    """What a checkpoint is held against."""

    state: TrainState  # before the first task
    keys: tuple[tuple[str, str], ...]  # (split, reading) of the accuracy matrices
    y: Tensor  # [N] the classes of the training set
    label: Tensor  # [T, classes] the output that stands for each in a task; -1: it has none
    steps: Callable[[int, int], int]  # of a task, by its index, that trains on so many samples
    idle: Callable[[int], bool]  # of a task: whether it has no step of its own
    budget: Collection[str]  # what is limited
    evaluation: Eval = EVERYTHING  # which tables, curves and cells of the matrices there are
    classes: int = 1  # K
    batch_size: Callable[[int], int] = lambda _: 1  # of a task
    passes: int = 1  # steps on each batch
    watch: Watch | None = None  # where borders are detected, as it begins
    longest: int = 0  # samples that a task trains on, where these are more than all there are
    guard: str | None = None  # the action of the guard, where there is one
    # Where the first task's model chooses the others: the edits, the samples of each, those of the
    # pool, and the test samples that nothing trains on.
    edits: tuple[int, int, int, int] | None = None
    grams: tuple[tuple[int, ...], ...] = ()  # the shape for each task, with eval.features

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.label)

    @property
    def rows(self) -> int:
        """N."""
        return len(self.y)

    @property
    def keeps_state(self) -> bool:
        """Whether the guard keeps a state to go back to."""
        return self.guard == "rollback"

    def most_bytes(self) -> int:
        """No checkpoint of the run is longer."""
        most = max(self.rows * self.tasks, self.longest)
        steps = max(self.steps(t, most) for t in range(self.tasks))
        state = sum(v.nbytes for v in named(self.state).values()) * (1 + self.keeps_state)
        samples = (2 + self.evaluation.online) * 8 * most
        rows = (self.tasks + 1) + (self.evaluation.every is not None) * self.tasks * steps
        tables = 8 * len(self.keys) * rows * (self.tasks + 2)
        seen = self.rows * self.tasks if self.watch else 0
        chosen = 8 * (2 * most + sum(self.edits)) if self.edits else 0
        grams = 4 * sum(math.prod(shape) for shape in self.grams)
        return HEADER + state + samples + tables + 8 * steps + seen + chosen + grams

    def measured(self, done: int) -> Tensor:
        """[T + 1, T] bool: the cells of a matrix that are there after `done` tasks."""
        cells = torch.zeros(self.tasks + 1, self.tasks, dtype=torch.bool)
        for i in range(done + 1):
            shown = self.evaluation.shown(i, self.tasks, chosen=self.edits is not None)
            cells[i, shown.start : shown.stop] = True
        return cells


def frame_of(config: Config, strategy: Strategy, s: TrainState, env: Env) -> Frame:
    """The frame of a run that begins with the state `s`."""
    stream = env.stream
    read = readings(config.scenario)
    return Frame(
        state=s,
        keys=tuple((split, reading) for split in splits(stream) for reading in read),
        y=stream.y.cpu(),
        label=stream.label.cpu(),
        steps=lambda t, samples: plan(
            samples, env.training, times(strategy, env), stream[t].epochs
        )[2],
        idle=lambda t: not len(strategy.training_set(s, stream, t, env)[0]),
        budget=env.meter.budget.keys(),
        evaluation=config.eval,
        classes=stream.num_classes,
        batch_size=lambda t: strategy.batch_size(t, env),
        passes=env.training.passes,
        watch=env.watch,
        longest=max(len(task.train) for task in stream),
        guard=None if config.guard.drop is None else config.guard.action,
        edits=edits.sizes(stream),
        grams=tuple(shape_of(task, env) for task in stream) if config.eval.features else (),
    )


def named(s: TrainState) -> dict[str, Tensor]:
    """All tensors of a state, by flat names."""
    groups = {f"{g}.{k}": v for g in GROUPS for k, v in getattr(s, g).items()}
    return {"theta": s.theta, "t": s.t, **groups}


# The header.


def check_keys(content: Any) -> None:
    """Raise Unfit unless the header's JSON has its keys, a configuration among them."""
    right = isinstance(content, dict) and content.keys() == CONTENT
    expect(right and isinstance(content["config"], dict), f"it must hold {', '.join(CONTENT)}")


def check_content(content: Mapping[str, Any], frame: Frame) -> None:
    """Raise Unfit unless a header's JSON is of such a run, with position and tables."""
    task, step, label, T = content["task"], content["step"], content["label"], frame.tasks
    check_counts(content["counts"], frame)
    expect(is_count(task, T), f"task must lie in 0 .. {T}, got {short(task)}")
    if step is None:
        expect(label is None, f"label must be null between two tasks, got {short(label)}")
    else:
        expect(is_count(step), f"step must be a whole number of at least 0, got {short(step)}")
        expect(task < T, f"task must be less than {T} within a task, got {task}")
        right = label is None or is_count(label, T - 1)
        expect(right, f"label must lie in 0 .. {T - 1}, got {short(label)}")
    check_guard(content["guard"], task, step, frame)
    check_tables(content["tables"], task, frame)


def check_guard(watch: Any, task: int, step: int | None, frame: Frame) -> None:
    """Raise Unfit unless a guard has seen this (`Backtest`) of a task that has come so far."""
    begun = frame.guard is not None and task > 0 and step is not None
    if watch is None or not begun:
        expect(watch is None and not begun, f"guard is {short(watch)}")
        return
    names = Backtest._fields[:-1]
    right = isinstance(watch, dict) and watch.keys() == set(names)
    expect(right, f"guard must hold {', '.join(names)}")
    assert step is not None
    most = {"old_task": task - 1, "kept": step, "fired": step}
    for name, value in watch.items():
        right = is_count(value, most.get(name, LARGEST))
        if name in ("reference", "accuracy", "best"):
            right = is_amount(value) and value <= 1
        right = right or (name in ("old_task", "fired") and value is None)
        expect(right, f"guard: {name} is {short(value)}")
    lost = watch["old_task"] is not None or watch["fired"] is None
    expect(lost, "guard: the bound is broken, and no task has lost anything")


def check_counts(counts: Any, frame: Frame) -> None:
    """Raise Unfit unless the counts are those of a meter (`costs.Meter.state`)."""
    amounts, limits = ("seconds", *SECONDS), ("limits", "began")
    names = {*amounts, *COUNTS, *ENERGY, *limits, "members", "task", "stopped", "known"}
    right = isinstance(counts, dict) and counts.keys() == names
    expect(right, f"counts must hold {', '.join(sorted(names))}")
    for name in amounts:
        expect(is_amount(counts[name]), f"counts: {name} is {short(counts[name])}")
    for name in COUNTS:
        expect(is_count(counts[name]), f"counts: {name} is {short(counts[name])}")
    known = is_amount(counts["energy_joules"]) and counts["energy_source"] in SOURCES
    none = [counts[name] for name in ENERGY] == [None, None]
    expect(known or none, f"counts: energy_joules is {short(counts['energy_joules'])}")
    for name in limits:
        value = counts[name]
        right = isinstance(value, dict) and value.keys() in (set(), set(frame.budget))
        right = right and all(map(is_amount, value.values()))
        expect(right, f"counts: {name} is {short(value)}")
    expect(
        counts["limits"].keys() == counts["began"].keys(),
        "counts: limits and began must be of the same budgets",
    )
    known, stopped, last = counts["known"], counts["stopped"], frame.tasks - 1
    right = isinstance(known, dict) and all(
        k.isascii() and k.isdecimal() and len(k) < 19 and is_count(v) for k, v in known.items()
    )
    expect(right, f"counts: known is {short(known)}")
    right = isinstance(stopped, list) and all(is_count(v, last) for v in stopped)
    expect(right, f"counts: stopped is {short(stopped)}")
    expect(is_count(counts["members"]), f"counts: members is {short(counts['members'])}")
    expect(is_count(counts["task"], last), f"counts: task is {short(counts['task'])}")


def check_tables(tables: Any, task: int, frame: Frame) -> None:
    """Raise Unfit unless the tables are files that the run writes, with their columns."""
    columns = {"costs": {"after_task", *task_costs()}}
    columns |= TABLES if frame.evaluation.calibration else {}
    columns |= {"online": {*online.row(0, 0, 0, 0)}} if frame.evaluation.online else {}
    columns |= {"guard": {*ROW}} if frame.guard else {}
    columns |= {"representation": {*representation.ROW}} if frame.grams else {}
    right = isinstance(tables, dict) and tables.keys() == columns.keys()
    expect(right, f"tables must be {', '.join(columns)}")
    for name, rows in tables.items():
        right = isinstance(rows, list) and all(
            isinstance(row, dict) and row.keys() == columns[name] for row in rows
        )
        expect(
            right, f"the rows of {name} must have the columns {', '.join(sorted(columns[name]))}"
        )
    held = {*task_costs("last"), "energy_joules"}  # None: the strategy has none; not known
    for i, row in enumerate(tables["costs"]):
        right = row["after_task"] == i and all(
            (value is None and key in held) or is_number(value) for key, value in row.items()
        )
        expect(right, f"row {i} of costs is {short(row)}")
    expect(len(tables["costs"]) == task + 1, f"costs must have {task + 1} rows")
    for row in (row for name in TABLES for row in tables.get(name, ())):
        numbers = (v for k, v in row.items() if k not in {"reading", "split"})
        right = (row["split"], row["reading"]) in frame.keys and all(map(is_cell, numbers))
        expect(right, f"a row of calibration or confusion is {short(row)}")
    for row in tables.get("online", ()):
        counts = {name: value for name, value in row.items() if name != "accuracy"}
        right = all(map(is_count, counts.values())) and 1 <= row["task"] <= task
        right = right and row["hits"] <= row["samples"] and row == online.row(**counts)
        expect(right, f"a row of online is {short(row)}")
    for row in tables.get("representation", ()):
        right = all(is_count(row[name]) for name in ("after_task", "layer", "task"))
        scores = [row["probe"], row["own_probe"]] + ([] if row["CKA"] is None else [row["CKA"]])
        right = right and all(is_amount(v) and v <= 1 for v in scores)
        expect(right, f"a row of representation is {short(row)}")
    rows = tables.get("guard", ())
    expect(len(rows) <= task, f"guard must have at most {task} rows")
    for row in rows:
        fired = (row["step"], row["action"])
        right = fired == (None, None) or (is_count(fired[0]) and fired[1] == frame.guard)
        lost = [row[name] for name in ("old_task", "reference", "accuracy")]
        right = right and (lost == [None] * 3 or (is_count(lost[0]) and all(map(is_amount, lost))))
        right = right and all(is_count(row[name]) for name in ("task", "looks", "kept_step"))
        expect(right, f"a row of guard is {short(row)}")


def is_count(value: Any, most: float = LARGEST) -> bool:
    """Whether a value is a whole number of at least 0."""
    return type(value) is int and 0 <= value <= most


def is_amount(value: Any) -> bool:
    """Whether a value is a number of at least 0."""
    return type(value) in (int, float) and 0 <= value <= LARGEST


def is_number(value: Any) -> bool:
    """Whether a value is a number; a difference of seconds may be rounded to less than 0."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def is_cell(value: Any) -> bool:
    """Whether a value is a score, which may be infinite, or is missing."""
    return value is None or type(value) is float or is_count(value)


def short(value: Any) -> str:
    """A foreign value in a message: one line that is not long, without what steers a terminal."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= 60 else f"{text[:60]}..."


# The tensors.


def check_tensors(tensors: Mapping[str, Tensor], content: Mapping[str, Any], frame: Frame) -> None:
    """Raise Unfit unless the tensors are those of such a run, at the header's position."""
    T, task, within = frame.tasks, content["task"], content["step"] is not None
    state = {name: v for name, v in tensors.items() if is_of_state(name)}
    check_state(state, frame)
    kept = {name: v for name, v in tensors.items() if name.startswith(KEPT)}
    watch = content["guard"]
    if frame.keeps_state and watch is not None and watch["fired"] is None:
        check_state({name.removeprefix(KEPT): v for name, v in kept.items()}, frame)
        state |= kept
    names = {f"R.{split}.{reading}" for split, reading in frame.keys}
    shown = frame.evaluation.tasks
    which = "" if shown == "all" else f" where eval.tasks={shown} measures,"
    for name in sorted(names):
        R = tensors.get(name)
        right = R is not None and (R.dtype, R.shape) == (torch.float64, (T + 1, T))
        expect(right, f"{name} must be float64 [{T + 1}, {T}]")
        assert R is not None
        there = frame.measured(task)
        right = torch.equal(~R.isnan(), there) and is_fraction(R[there])
        expect(right, f"{name} must hold fractions{which} up to row {task}, and none below it")
    within_tasks = frame.evaluation.every is not None
    names |= {f"curve.{split}.{reading}" for split, reading in frame.keys if within_tasks}
    for name in sorted(tensors.keys() & names):
        if name.startswith("curve.") and (rows := tensors[name]).numel():
            right = rows.dtype == torch.float64 and rows.ndim == 2 and rows.shape[1] == T + 2
            expect(right, f"{name} must be float64 [n, {T + 2}]")
            check_range(f"{name}, after_task", rows[:, 0], 0, T - 1)
            check_range(f"{name}, step", rows[:, 1], 1, LARGEST)
            there = frame.measured(T)[rows[:, 0].long()]
            right = torch.equal(~rows[:, 2:].isnan(), there) and is_fraction(rows[:, 2:][there])
            expect(right, f"{name} must hold fractions{which}")
    if within:
        names |= check_samples(tensors, content, frame)
    if frame.watch is not None:
        names |= check_watch(tensors, task, frame.watch)
    if frame.edits is not None and task > 0:
        names |= check_edits(tensors, task, frame.edits, frame.classes)
    for t, shape in enumerate(frame.grams[:task]):
        name = f"{GRAMS}{t}"
        right = kind(tensors.get(name)) == kind(torch.empty(shape, device="meta"))
        expect(right, f"{name} must be float32 {list(shape)}")
        names.add(name)
    unknown = sorted(tensors.keys() - state.keys() - names)
    expect(not unknown, f"{short(next(iter(unknown), None))} is no tensor of such a run")


def check_state(tensors: Mapping[str, Tensor], frame: Frame) -> None:
    """Raise Unfit unless these are the tensors of a state of the run."""
    check_same_kind(tensors, named(frame.state))
    check_range("t", tensors["t"], 0, frame.tasks - 1)
    ranges: dict[str, tuple[int, float]] = {
        "buffer_index": (-1, frame.rows - 1),
        "buffer_task": (0, frame.tasks - 1),
        "stamp": (0, frame.tasks),
    }
    ranges |= {"seen": (0, LARGEST), "period": (1, LARGEST)}
    for name, (low, high) in ranges.items():
        if name in frame.state.memory:
            check_range(f"memory.{name}", tensors[f"memory.{name}"], low, high)
    check_buffer(tensors, frame)


def check_buffer(tensors: Mapping[str, Tensor], frame: Frame) -> None:
    """Raise Unfit unless the task of each sample in a buffer has its class."""
    index, task = (tensors.get(f"memory.buffer_{name}") for name in ("index", "task"))
    if index is None:
        return
    if task is None:  # GEM's, in which each task has its share
        seen = tensors.get("memory.seen")
        if seen is None or seen.shape != (frame.tasks,) or len(index) % frame.tasks:
            return
        task = torch.arange(frame.tasks).repeat_interleave(len(index) // frame.tasks)
    filled = index >= 0
    right = has_classes(index[filled], task[filled], frame)
    expect(right, "memory.buffer_index holds a row whose class is not in its task")


def has_classes(index: Tensor, task: int | Tensor, frame: Frame) -> bool:
    """Whether the classes of rows [n] are in their task, one of all or one each."""
    return bool((frame.label[task, frame.y[index]] >= 0).all())


def check_samples(
    tensors: Mapping[str, Tensor], content: Mapping[str, Any], frame: Frame
) -> set[str]:
    """The names of what belongs to a task under way. Raises Unfit unless it is in order."""
    names = {"samples.index"} | ({"samples.task"} if content["label"] is None else set())
    for name in sorted(names):
        v = tensors.get(name)
        right = v is not None and v.dtype == torch.int64 and v.ndim == 1
        expect(right, f"{name} must be int64 [n]")
        assert v is not None
        most = frame.rows if name == "samples.index" else frame.tasks
        check_range(name, v, 0, most - 1)
        expect(len(v) == len(tensors["samples.index"]), "samples.task must be as long as the index")
    task, step, index = content["task"], content["step"], tensors["samples.index"]
    expect(len(index) > 0 or frame.idle(task), f"samples.index is empty in task {task + 1}")
    label = tensors["samples.task"] if content["label"] is None else content["label"]
    right = has_classes(index, label, frame)
    expect(right, "samples.index holds a row whose class is not in its task")
    most = frame.steps(task, len(index))
    expect(step <= most, f"step must lie in 0 .. {most}, got {short(step)}")
    if (losses := tensors.get("losses")) is not None:
        right = losses.is_floating_point() and losses.ndim == 1 and len(losses) <= step
        expect(right, f"losses must be of at most {step} steps")
        names.add("losses")
    shown = -(-step // frame.passes) * frame.batch_size(task)
    predicted = min(shown, len(index)) if frame.evaluation.online else 0
    if predicted:
        v = tensors.get("predictions")
        right = v is not None and v.dtype == torch.int64 and v.shape == (predicted,)
        expect(right, f"predictions must be int64 [{predicted}]")
        assert v is not None
        check_range("predictions", v, 0, frame.classes - 1)
        names.add("predictions")
    return names


def check_watch(tensors: Mapping[str, Tensor], task: int, watch: Watch) -> set[str]:
    """The names of what a detector has seen. Raises Unfit unless it is in order."""
    own = watch.tensors()
    there = {k: tensors[f"watch.{k}"] for k in own if f"watch.{k}" in tensors}
    free = {"alarms", "ends", "losses"}  # of any length
    same = own.keys() - free
    mine, other = ({f"watch.{k}": v[k] for k in same & v.keys()} for v in (own, there))
    check_same_kind(other, mine)
    for name in sorted(free):
        v = there.get(name)
        kind_ = v is not None and (
            v.is_floating_point() if name == "losses" else v.dtype == torch.int64
        )
        expect(v is not None and kind_ and v.ndim == 1, f"watch.{name} must be a list of numbers")
    step, ends = int(there["step"]), there["ends"]
    check_range("watch.step", there["step"], 0, LARGEST)
    for name in ("alarms", "ends"):
        check_range(f"watch.{name}", there[name], 0, step)
        expect(bool((there[name].diff() >= 0).all()), f"watch.{name} must not fall")
    expect(len(ends) == task, f"watch.ends must be of {task} tasks")
    expect(len(there["losses"]) <= EVERY, f"watch.losses must be of at most {EVERY} steps")
    expect(watch.whole(there["state"].tolist()), "watch.state is that of no detector")
    return {f"watch.{name}" for name in own}


def check_edits(
    tensors: Mapping[str, Tensor], task: int, sizes: tuple[int, int, int, int], K: int
) -> set[str]:
    """The names of what is known of edits. Raises Unfit unless it is in order."""
    E, n, pool, untouched = sizes
    there = {name: v for name, v in tensors.items() if name.startswith(EDITS)}
    own = edits.Edits(
        torch.zeros(E, n, dtype=torch.int64),
        torch.zeros(E, n, dtype=torch.int64),
        torch.zeros(untouched, dtype=torch.int64),
        torch.zeros(E, dtype=torch.float64),
        torch.zeros(E, dtype=torch.float64),
    )
    check_same_kind(there, {f"{EDITS}{name}": v for name, v in own._asdict().items()})
    for name, most in (("places", pool), ("taken", K), ("before", K)):
        check_range(f"{EDITS}{name}", there[f"{EDITS}{name}"], 0, most - 1)
    places = there[f"{EDITS}places"].flatten()
    expect(len(places.unique()) == E * n, f"{EDITS}places must be different ones")
    for name in ("locality", "generality"):
        v = there[f"{EDITS}{name}"]
        right = bool(v[task - 1 :].isnan().all()) and is_fraction(v[: task - 1])
        expect(right, f"{EDITS}{name} must hold fractions of {task - 1} edits, and none below them")
    return set(there)


def is_of_state(name: str) -> bool:
    """Whether a tensor belongs to the TrainState."""
    return name in {"theta", "t"} or name.startswith(tuple(f"{group}." for group in GROUPS))


def check_same_kind(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
    """Raise Unfit naming the first tensor whose type or shape differs, or that is missing."""
    for name in sorted(there.keys() | here.keys()):
        found, own = there.get(name), here.get(name)
        if kind(found) != kind(own):
            raise Unfit(f"{short(name)} is {kind(found)} there and {kind(own)} here")


def kind(v: Tensor | None) -> str:
    """A tensor's type and shape in words."""
    return "missing" if v is None else f"{str(v.dtype).removeprefix('torch.')} {list(v.shape)}"


def check_range(name: str, v: Tensor, low: float, high: float) -> None:
    """Raise Unfit unless all values of a tensor lie in [low, high]."""
    right = not v.numel() or bool(((v >= low) & (v <= high)).all())
    expect(right, f"{name} must lie in {low} .. {high}")


def is_fraction(v: Tensor) -> bool:
    """Whether all values of a tensor lie in [0, 1]."""
    return bool(((v >= 0) & (v <= 1)).all())
