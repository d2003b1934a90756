"""How far tasks need the same weights, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_runner.core import Task, TrainState
from cl_runner.functional.importance import fisher_overlap
from cl_runner.nn.flat import Flat
from cl_runner.training.env import Env


def noted(s: TrainState, task: Task, fisher: Tensor) -> dict[str, Tensor]:
    """The tasks' Fisher diagonals [T, P] in a strategy's memory, with that of one more task [P]."""
    fishers = s.memory["task_fishers"].clone()
    fishers[task.index] = fisher
    return {"task_fishers": fishers}


def overlap_table(s: TrainState, env: Env) -> dict[str, list[dict[str, Any]]]:
    """`fisher_overlap.csv` of the tasks so far, from what `noted` keeps; none of a single task."""
    fishers = s.memory["task_fishers"][: int(s.t) + 1].cpu()  # which has float64 on any machine
    rows = overlaps(fishers, env.flat)
    return {"fisher_overlap": rows} if rows else {}


def overlaps(fishers: Tensor, flat: Flat) -> list[dict[str, Any]]:
    """The rows of `fisher_overlap.csv`, from the tasks' Fisher diagonals [T, P].

    One for each pair of tasks and each layer; none for a single task.
    """
    tasks = [layers(flat.views(fisher)) for fisher in fishers]
    return [
        {"layer": layer, "task_a": a + 1, "task_b": b + 1, "overlap": fisher_overlap(one, two)}
        for b in range(len(tasks))
        for a in range(b)
        for (layer, one), two in zip(tasks[a].items(), tasks[b].values(), strict=True)
    ]


def layers(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by layer: a vector of its weights and biases for each."""
    parts: dict[str, list[Tensor]] = {}
    for name, value in parameters.items():
        parts.setdefault(name.rpartition(".")[0] or name, []).append(value.flatten())
    return {layer: torch.cat(values) for layer, values in parts.items()}
