"""What a run says of its model: `model.json`, read and checked, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_runner.config.schema import SCENARIOS
from cl_runner.config.weights import WEIGHTS, digest
from cl_runner.errors import UserError, check
from cl_runner.machine.reading import json_values
from cl_runner.results import status
from cl_runner.results.files import DAMAGED
from cl_runner.results.names import CONFIG, JOBS, MODEL, MODEL_MEMORY, STATUS

FORMAT = 1  # of the file, as running.model writes it
LARGEST = 2**26  # bytes of model.json: what is larger is none of ours
MOST = 2**31  # of any size in it
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class TaskOf:
    """A task, as the card tells of it."""

    name: str  # "": it has none
    classes: tuple[int, ...]  # its outputs
    names: tuple[str, ...]  # what they stand for in it
    train: int  # samples
    test: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """A run's model without its tensors."""

    config: Mapping[str, Any]  # the resolved configuration of the run
    version: str  # of cl_runner that trained it
    scenario: str
    boundaries: str
    dtype: str  # of an image: uint8 | float32
    given_shape: Shape  # of an image as it is handed in
    resize: int | None  # height and width that it is brought to
    input_shape: Shape  # of what the network gets, which is that with zeros around it
    changed_by_tasks: bool  # whether a task changes the pixels; then they come changed
    scale: tuple[float, ...]  # [C] inputs are x * scale + shift
    shift: tuple[float, ...] | None  # [C]
    label: tuple[tuple[int, ...], ...]  # [T, classes of the data set]
    outputs: tuple[str, ...]  # [K] what the network's outputs stand for
    tasks: tuple[TaskOf, ...]
    digests: Mapping[str, str]  # of the files of tensors

    @property
    def titles(self) -> tuple[str, ...]:
        """What the tasks are called."""
        return tuple(t.name or f"task {i}" for i, t in enumerate(self.tasks, 1))

    def task(self, asked: int | str | None) -> int | None:
        """The index of the task that is asked for by number, from 1, or name.

        None: one that the model does not need. Raises UserError for one that it lacks, and for one
        that it would ignore.
        """
        T, known = len(self.tasks), ", ".join(self.titles)
        if self.scenario != "task":
            check(
                asked is None,
                f"task={asked} has no meaning: the run is {self.scenario}-incremental, and its "
                "model is not told the task",
            )
            return None
        check(
            asked is not None,
            "the run is task-incremental: its model must be told the task by --task N or its name, "
            f"of {known}",
        )
        text = str(asked)
        named = [i for i, title in enumerate(self.titles) if title == text]
        number = int(text) - 1 if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        check(len(named) < 2, f"{len(named)} tasks are called {text}: say which by its number")
        found = named[0] if named else number
        check(0 <= found < T, f"the run has no task {text}; it has {known}, or 1 to {T}")
        return found


def complete_run(run: Path) -> Path:
    """The folder of a complete run whose model was kept. Raises UserError, which says what is not.

    run: its folder, or one below which there is nothing but that run.
    """
    check(run.exists(), f"there is no folder {run}")
    check(run.is_dir(), f"{run} is no folder of a run")
    if (run / JOBS).exists():
        names = sorted(status.jobs(run))
        first = f", such as {run / names[0]}" if names else ""
        raise UserError(f"{run} holds {len(names)} runs: name one of them{first}")
    if not (run / STATUS).exists():
        below = sorted({path.parent for path in run.glob(f"*/{STATUS}")})
        check(not below, f"{run} holds {len(below)} runs: name one of them, such as {below[:1]}")
        raise UserError(f"{run} is no folder of a run: it has no {STATUS}")
    state = status.state(run)
    hint = {
        "running": "wait until it is complete",
        "interrupted": f"cl-run resume={run} goes on with it",
        "killed": f"cl-run resume={run} goes on with it",
        "failed": f"cl-run resume={run} repeats it",
    }.get(state, "it has no model")
    check(state == "complete", f"the run in {run} is not complete but {state}: {hint}")
    check(
        (run / MODEL).exists(),
        f"the run in {run} kept no model ({MODEL}): a run keeps it with checkpoint.keep=true. Run "
        f"the command of {run / CONFIG} again with it, in another folder; the same seed gives the "
        "same model. Keeping takes the bytes of the weights, and no time",
    )
    return run


def read(run: Path) -> Description:
    """What a run says of its model; the files of tensors are those that it says. Raises UserError.

    What is read is plain values: nothing in it is executed or looked up.
    """
    path = run / MODEL
    content = json_values(path, LARGEST)
    try:
        found = Content(content)
        form = found.integer("format")
        other = f"{path} was written by another version of cl_runner: format {form}, not {FORMAT}"
        check(form == FORMAT, other)
        description = of_content(found)
        check_sizes(description)
    except Unlike as error:
        raise UserError(f"{path}: {error}; {DAMAGED}") from None
    for name, known in description.digests.items():
        file = run / name
        check(file.is_file(), f"{file} is missing; the model is made of it")
        try:
            own = digest(file)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        message = f"{file} is not what the run wrote: its SHA-256 begins with {own}, not {known}"
        check(own == known, message)
    return description


class Unlike(Exception):
    """A value is not what stands there in a file of ours."""


def require(condition: bool, message: str) -> None:
    """Raise Unlike(message) unless the condition holds."""
    if not condition:
        raise Unlike(message)


class Content:
    """A dictionary of a JSON file, whose values are of the type that is asked for, or Unlike."""

    def __init__(self, values: Any, where: str = "") -> None:
        self.where = where
        require(isinstance(values, dict), f"{where or 'it'} is no dictionary")
        self.values: Mapping[str, Any] = values

    def get(self, key: str, *kinds: type) -> Any:
        """The value of a key, of one of these types."""
        value = self.values.get(key)
        require(type(value) in kinds, f"{self.where}{key} is not what it should be")
        return value

    def text(self, key: str) -> str:
        """A text."""
        found: str = self.get(key, str)
        return found

    def integer(self, key: str) -> int:
        """A whole number from 0."""
        found: int = self.get(key, int)
        require(0 <= found < MOST, f"{self.where}{key} is out of range")
        return found

    def inner(self, key: str) -> Content:
        """A dictionary within."""
        return Content(self.get(key, dict), f"{self.where}{key}.")

    def sequence(self, key: str, *kinds: type) -> tuple[Any, ...]:
        """A list, whose values are of one of these types."""
        values = self.get(key, list)
        fits = all(type(value) in kinds for value in values)
        require(fits, f"{self.where}{key} is not what it should be")
        return tuple(values)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        found = tuple(map(float, self.sequence(key, float, int)))
        require(all(map(math.isfinite, found)), f"{self.where}{key} is not finite")
        return found

    def shape(self, key: str) -> Shape:
        """(channels, height, width)."""
        found = self.sequence(key, int)
        fits = len(found) == 3 and all(0 < n < MOST for n in found) and math.prod(found) < MOST
        require(fits, f"{self.where}{key} is no shape of an image")
        return found[0], found[1], found[2]


def of_content(content: Content) -> Description:
    """The description that a file holds. Raises Unlike."""
    stream, config = content.inner("stream"), content.get("config", dict)
    require("${" not in repr(config), "config refers to something else (${...})")
    digests = content.inner("files")
    require(set(digests.values) == {WEIGHTS, MODEL_MEMORY}, "files is not what it should be")
    tasks = [Content(task, "stream.tasks.") for task in stream.get("tasks", list)]
    dtype, scenario = stream.text("dtype"), stream.text("scenario")
    require(dtype in ("uint8", "float32"), f"stream.dtype is {dtype!r}")
    require(scenario in SCENARIOS, f"stream.scenario is {scenario!r}")
    label = stream.get("label", list)
    for row in label:
        fits = isinstance(row, list) and all(type(c) is int for c in row)
        require(fits, "stream.label is no table of outputs")
    return Description(
        config=config,
        version=content.text("cl_runner"),
        scenario=scenario,
        boundaries=stream.text("boundaries"),
        dtype=dtype,
        given_shape=stream.shape("given_shape"),
        resize=stream.get("resize", int, type(None)),
        input_shape=stream.shape("input_shape"),
        changed_by_tasks=stream.get("changed_by_tasks", bool),
        scale=stream.numbers("scale"),
        shift=None if stream.get("shift", list, type(None)) is None else stream.numbers("shift"),
        label=tuple(map(tuple, label)),
        outputs=stream.sequence("outputs", str),
        tasks=tuple(
            TaskOf(
                name=task.text("name"),
                classes=task.sequence("classes", int),
                names=task.sequence("names", str),
                train=task.integer("train"),
                test=task.integer("test"),
            )
            for task in tasks
        ),
        digests={name: digests.text(name) for name in digests.values},
    )


def check_sizes(found: Description) -> None:
    """Raise Unlike where parts of a description contradict each other."""
    K, C = len(found.outputs), found.input_shape[0]
    shown: Sequence[int] = found.given_shape[1:]
    require(found.resize is None or 0 < found.resize < MOST, "stream.resize is out of range")
    shown = shown if found.resize is None else (found.resize, found.resize)
    padded = all(a <= b for a, b in zip(shown, found.input_shape[1:], strict=True))
    # Grey images may be shown in three channels.
    coloured = found.given_shape[0] == C or (found.given_shape[0], C) == (1, 3)
    require(padded and coloured, "stream.input_shape fits no image")
    channels = {len(found.scale), C if found.shift is None else len(found.shift)}
    require(channels == {C}, "stream.scale and stream.shift are not one for each channel")
    both = K > 0 and len(found.tasks) == len(found.label) > 0
    require(both, "stream.tasks are not those of label")
    require(len(set(map(len, found.label))) == 1, "stream.label is no table of outputs")
    within = all(-1 <= c < K for row in found.label for c in row)
    require(within, "stream.label names outputs that there are not")
    for task in found.tasks:
        own = task.classes
        fits = len(own) == len(set(own)) == len(task.names) > 0
        require(fits and all(0 <= c < K for c in own), "stream.tasks have no classes")
