"""The model card: what a model is, what it was measured at, and what it is not for."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cl_runner.config.identity import config_hash, flatten
from cl_runner.exporting.description import Description
from cl_runner.machine.reading import yaml_values
from cl_runner.results.columns import of_kind
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.results.names import ACCURACY_MATRIX, OVERRIDES, SUMMARY

# What is known of the licences of named data sets. "not stated": by those who publish them.
LICENCES = {
    "digits": "not stated in scikit-learn's copy (UCI Machine Learning Repository, data set 80)",
    "mnist": "CC BY-SA 3.0, by Keras's documentation (copyright: Yann LeCun, Corinna Cortes)",
    "fashion_mnist": "MIT, by its authors (Zalando Research)",
    "cifar10": "not stated",
    "cifar100": "not stated",
    "weather": "public domain in the United States (NOAA)",
    "flights": "public domain in the United States (Bureau of Transportation Statistics)",
    "letter": "CC BY 4.0 (UCI Machine Learning Repository, data set 59)",
}
YOURS = "not known: the data are your own"
WORST = 3  # tasks that are named as those which were forgotten most


def card_of(of: Description, run: Path, task: int | None) -> dict[str, Any]:
    """The card of a run's model, for one of its tasks or for all, as JSON. Raises UserError."""
    row = read_rows(run / SUMMARY)[0]
    R = read_matrix(run / ACCURACY_MATRIX)[1:]  # [T, T] after each task
    config = of.config
    strategy = {key: value for key, value in config["strategy"].items() if key != "name"}
    data = str(config["benchmark"]["dataset"])
    final = [None if math.isnan(a) else float(a) for a in R[-1]]
    own = range(len(of.tasks)) if task is None else [task]
    return {
        "name": f"{config['strategy']['name']} on {config['benchmark']['name']}",
        "strategy": {"name": config["strategy"]["name"], "settings": strategy},
        "model": dict(config["model"]),
        "training": dict(config["training"]) | {"optimizer": dict(config["optimizer"])},
        "stream": {
            "benchmark": config["benchmark"]["name"],
            "data": data,
            "scenario": of.scenario,
            "tasks": [
                {
                    "task": title,
                    "classes": list(t.names),
                    "training_samples": t.train,
                    "test_samples": t.test,
                    "accuracy": final[i],
                    "forgotten": forgotten(R, i),
                }
                for i, (title, t) in enumerate(zip(of.titles, of.tasks, strict=True))
            ],
        },
        "metrics": measured("metric", row),
        "costs": measured("cost", row),
        "input": {
            "type": of.dtype,
            "shape": ["B", *(of.given_shape if of.given_shape[1] > 1 else of.given_shape[2:])],
            "resize": of.resize,
            "pad_to": list(of.input_shape[1:]) if padded(of) else None,
            "scale": list(of.scale),
            "shift": None if of.shift is None else list(of.shift),
        },
        "output": {
            "task": None if task is None else of.titles[task],
            "classes": list(of.outputs if task is None else of.tasks[task].names),
            "columns": list(range(len(of.outputs)) if task is None else of.tasks[task].classes),
        },
        "limits": list(limits(of, R, own)),
        "licence_of_the_data": LICENCES.get(data, YOURS),
        "cl_runner": of.version,
        "commit": row.get("commit") or None,
        "config_hash": config_hash(config),
        "command": command(run),
    }


def measured(kind: Literal["metric", "cost"], row: Mapping[str, str]) -> dict[str, float]:
    """The numbers of a kind in a row of summary.csv, without those that were not measured."""
    found = {column.name: row.get(column.name) for column in of_kind(kind)}
    return {name: float(cell) for name, cell in found.items() if cell}


def padded(of: Description) -> bool:
    """Whether zeros are put around an image."""
    sides = of.given_shape[1:] if of.resize is None else (of.resize, of.resize)
    return sides != of.input_shape[1:]


def forgotten(R: Any, i: int) -> float | None:
    """By how much a task's accuracy fell from its best after its own training to the end."""
    column = R[i:, i]
    lost = float(column.max() - column[-1]) if len(column) else math.nan
    return None if math.isnan(lost) else lost


def command(run: Path) -> str:
    """What was typed to train the model; its folders are left out."""
    overrides = yaml_values(run / OVERRIDES)
    typed = [str(o) for o in overrides] if isinstance(overrides, list) else []
    kept = [o for o in typed if not o.startswith(("hydra.", "data.root=", "data.path="))]
    return shlex.join(["cl-run", *kept])


def limits(of: Description, R: Any, own: Sequence[int]) -> Iterator[str]:
    """What the model is not for, a sentence each."""
    data = of.config["benchmark"]["dataset"]
    yield (
        f"It was trained and tested on {data} alone. What it is worth on other data was not "
        "measured."
    )
    yield (
        "It knows the classes above and no other: of whatever it is shown, its probabilities sum "
        "to 1. They are a softmax of the strategy's scores, and were not calibrated."
    )
    if of.scenario == "task":
        yield "It must be told the task: for images of another task its answer means nothing."
    if of.changed_by_tasks:
        yield (
            "The tasks change the images, as by permuting or turning them. That change stands for "
            "one in the world and is no part of the model: it takes images as a task shows them."
        )
    if of.given_shape[1] == 1:
        yield (
            "It takes numbers as the run's data set has them, after the encoding of a table's "
            "columns, which is no part of the model."
        )
    lost = sorted(((forgotten(R, i) or 0.0, i) for i in own), reverse=True)
    named = [f"{of.titles[i]} (by {loss:.3f})" for loss, i in lost[:WORST] if loss > 0]
    if named:
        yield f"What it has forgotten most since it was trained on it: {', '.join(named)}."


def as_text(card: Mapping[str, Any]) -> str:
    """A card in Markdown."""
    return "\n".join(lines(card)) + "\n"


def lines(card: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a card in Markdown."""
    stream, given, output = card["stream"], card["input"], card["output"]
    yield f"# {card['name']}"
    yield ""
    of = f" Task: {plain(output['task'])}." if output["task"] else ""
    yield (
        f"A classifier that was trained on {len(stream['tasks'])} tasks one after another "
        f"({stream['scenario']}-incremental learning), by `strategy={card['strategy']['name']}` of "
        f"cl_runner.{of}"
    )
    yield from ("", "## What goes in, what comes out", "")
    shape = ", ".join(map(str, given["shape"]))
    yield f"- In: `{given['type']}` [{shape}], as the data set gives it."
    K = len(output["classes"])
    yield f"- Out: probabilities, `float32` [B, {K}], of the classes in this order:"
    yield f"  {', '.join(map(plain, output['classes']))}."
    size = given["resize"]
    steps = [f"resizing to {size}x{size}"] if size is not None else []
    if given["pad_to"] is not None:
        steps.append(f"zero padding to {given['pad_to'][0]}x{given['pad_to'][1]}")
    yield f"- Within the model: {', '.join([*steps, 'x * scale + shift'])}, where scale ="
    yield f"  {given['scale']} and shift = {given['shift'] or 0}; the network; the strategy's own"
    yield "  prediction; softmax."
    yield from ("", "## How well", "", "| measure | value |", "|---|---|")
    yield from (f"| {name} | {shown(value)} |" for name, value in card["metrics"].items())
    yield from ("", "Accuracy on the test data of each task, after the last one:", "")
    yield "| task | classes | training samples | accuracy | forgotten |"
    yield "|---|---|---|---|---|"
    for task in stream["tasks"]:
        cells = plain(task["task"]), ", ".join(map(plain, task["classes"]))
        rest = task["training_samples"], shown(task["accuracy"]), shown(task["forgotten"])
        yield f"| {' | '.join(map(str, (*cells, *rest)))} |"
    yield from ("", "## Limits", "", *(f"- {plain(line)}" for line in card["limits"]))
    yield from ("", "## Where it comes from", "")
    yield f"- Data: {plain(stream['data'])} ({plain(stream['benchmark'])}). Licence:"
    yield f"  {card['licence_of_the_data']}."
    yield f"- Strategy: {settings(card['strategy']['settings'])}."
    yield f"- Network: {settings(card['model'])}."
    yield f"- Training: {settings(card['training'])}."
    costs = [f"{name}={value:.6g}" for name, value in card["costs"].items()]
    yield f"- Costs: {', '.join(costs)}."
    yield f"- cl_runner {plain(card['cl_runner'])}, commit {plain(card['commit'] or 'not known')},"
    yield f"  config_hash {card['config_hash']}."
    yield f"- Command: `{plain(card['command'])}`"


def plain(text: object) -> str:
    """A text as part of a line, and of a cell, of Markdown."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return shown.replace("|", "\\|").replace("`", "'")


def shown(value: object) -> str:
    """A number with four digits; nothing where it is not known."""
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else plain(value)


def settings(values: Mapping[str, Any]) -> str:
    """Settings in a line."""
    told = [f"{key}={json.dumps(value)}" for key, value in flatten(values).items()]
    return plain(", ".join(told)) or "no settings"
