"""What tasks and classes are called, in the files of a run whose tasks have names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TASKS = {  # columns of numbers from 1, and of the tasks' names beside them
    "after_task": "after_name",
    "eval_task": "eval_name",
    "task_a": "name_a",
    "task_b": "name_b",
}
CLASSES = {"class": "class_name", "predicted": "predicted_name"}  # of outputs, from 0
TAKEN = {*TASKS, *TASKS.values(), *CLASSES, "seed", "run"}  # no task's column may be called so


@dataclass(frozen=True)
class Titles:
    """The names of a stream's tasks, in their order, and of the network's outputs."""

    tasks: Sequence[str] = ()  # none: the tasks have no names, and files say numbers only
    classes: Mapping[int, str] = field(default_factory=dict)


UNNAMED = Titles()


def titled(rows: Sequence[Mapping[str, Any]], titles: Titles) -> Sequence[Mapping[str, Any]]:
    """The rows of a table with a column of names after each that counts tasks or classes.

    The untrained network, `after_task` 0, has no name.
    """
    if not titles.tasks:
        return rows
    tasks = dict(enumerate(titles.tasks, 1))
    return [dict(_cells(row, tasks, titles.classes)) for row in rows]


def _cells(
    row: Mapping[str, Any], tasks: Mapping[int, str], classes: Mapping[int, str]
) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        yield key, value
        if key in TASKS:
            yield TASKS[key], tasks.get(value, "")
        elif key in CLASSES:
            yield CLASSES[key], classes.get(value, "")


def columns(tasks: Sequence[str]) -> list[str]:
    """The tasks' names as columns of a table, each there once."""
    found: list[str] = []
    for number, name in enumerate(tasks, 1):
        free = name not in TAKEN and name not in found
        found.append(name if free else f"{name} (task {number})")
    return found
