"""What the network's layers still know of each task: representation.csv, with eval.features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_runner.core import Task, TrainState, generator_for
from cl_runner.errors import check
from cl_runner.functional.closed_form import Solution, add, no_moments, ridge, scatter
from cl_runner.functional.losses import mask_logits
from cl_runner.functional.similarity import centred_gram, cka
from cl_runner.nn.network import Network
from cl_runner.nn.networks import STAGES
from cl_runner.running.evaluation import evaluation_chunk
from cl_runner.training.batches import CPU
from cl_runner.training.env import Env
from cl_runner.training.flops import FlopCounter

COMPARED = 256  # test samples of a task, by which two states of the network are compared
PROBED = 5000  # training samples of a task, from which a probe is learnt
WIDEST = 1024  # units of a layer: of a wider one, so many random ones
STRENGTH = 1e-3  # of a probe's ridge, in units of the features' mean scatter
ROW = ("after_task", "layer", "task", "CKA", "probe", "own_probe")  # of representation.csv
Grams = dict[str, Tensor]  # by the index of a task: [layers, n, n] float32, after its own training


def check_shown(env: Env) -> None:
    """Raise UserError for a network that shows no activations between its layers."""
    module = env.flat.module
    check(isinstance(module, Network), f"eval.features=true needs {STAGES}")
    assert isinstance(module, Network)
    check(len(module.stages()) > 1, "eval.features=true needs a network with a hidden layer")


def shape_of(task: Task, env: Env) -> tuple[int, int, int]:
    """That of what is kept of a task, see Grams."""
    n = min(COMPARED, len(task.test))
    return len(layers(env)), n, n


def layers(env: Env) -> range:
    """The layers, by the number of stages that are below their activations."""
    module = env.flat.module
    assert isinstance(module, Network)
    return range(1, len(module.stages()))


@torch.no_grad()
def measured(
    after_task: int, s: TrainState, shown: range, grams: Grams, env: Env
) -> list[dict[str, Any]]:
    """The rows of a state after a task; of the tasks trained, those that are `shown`.

    What the task that has just ended looks like is added to `grams`. FLOPs count as evaluation's.
    """
    tasks = env.stream[max(shown.start, 0) : min(shown.stop, after_task)]
    env.flat.module.eval()
    with FlopCounter() as counter:
        new = env.stream[after_task - 1]
        grams[str(new.index)] = compared(s, new, env).float()
        probes = learnt(s, tasks, env)
        rows = []
        for task in tasks:
            now = compared(s, task, env)
            before = grams[str(task.index)].double().to(env.device)
            hits = accuracies(s, task, [probes[-1], probes[task.index - tasks[0].index]], env)
            for i, layer in enumerate(layers(env)):
                alike = cka(before[i], now[i])
                known = None if math.isnan(alike) else min(1.0, alike)
                values = after_task, layer, task.index + 1, known, *hits[i]
                rows.append(dict(zip(ROW, values, strict=True)))
    env.flat.module.train()
    env.meter.evaluation_flops += counter.flops
    return rows


def compared(s: TrainState, task: Task, env: Env) -> Tensor:
    """The Gram matrices [layers, n, n] of random test samples of a task, float64."""
    images, y = env.stream.held_out("test", task)
    rows = some(len(y), COMPARED, env, "compared", task.index)
    parts = [list(of) for of in features(s, env.inputs(images[rows]), task.index, env)]
    return torch.stack([centred_gram(torch.cat(of)) for of in zip(*parts, strict=True)])


def learnt(s: TrainState, tasks: Sequence[Task], env: Env) -> list[list[Solution]]:
    """Probes of each layer, for each task from its own samples; the last from those of all."""
    total: list[dict[str, Tensor]] = []
    probes = []
    for task in tasks:
        index, of = task.samples()
        rows = some(len(index), PROBED, env, "probed", task.index)
        batch = env.gather(index[rows], of if isinstance(of, int) else of[rows], s.t)
        own: list[dict[str, Tensor]] = []
        at = 0
        for part in features(s, batch.x, batch.task, env):
            y = batch.y[at : at + len(part[0])]
            at += len(y)
            own = own or [empty(x, env) for x in part]
            own = [add(moments, x, y) for moments, x in zip(own, part, strict=True)]
        probes.append([probe(moments) for moments in own])
        total = total or [empty(v["sum"], env) for v in own]
        total = [
            {k: v + new[k] for k, v in moments.items()}
            for moments, new in zip(total, own, strict=True)
        ]
    return [*probes, [probe(moments) for moments in total]]


def empty(x: Tensor, env: Env) -> dict[str, Tensor]:
    """The moments of no samples of features [B, d]."""
    return no_moments(env.num_classes, x.shape[1], env.device, gram=True)


def probe(moments: dict[str, Tensor]) -> Solution:
    """A linear classifier by ridge regression."""
    mean = float(scatter(moments).diagonal().mean())
    return ridge(moments, max(STRENGTH * mean, torch.finfo(torch.float64).tiny))


def accuracies(
    s: TrainState, task: Task, probes: Sequence[Sequence[Solution]], env: Env
) -> list[tuple[float, ...]]:
    """For each layer, the accuracy of each probe on a task's test samples.

    They are scored as the run is: in task-incremental learning on the task's own classes.
    """
    images, y = env.stream.held_out("test", task)
    own = env.own_classes[task.index] if env.stream.scenario == "task" else None
    hits = torch.zeros(len(layers(env)), len(probes), dtype=torch.int64, device=env.device)
    at = 0
    for part in features(s, env.inputs(images), task.index, env):
        target = y[at : at + len(part[0])]
        at += len(target)
        for i, x in enumerate(part):
            for j, (weights, biases) in enumerate(probe[i] for probe in probes):
                scores = mask_logits(x.double() @ weights.T + biases, own)
                hits[i, j] += (scores.argmax(1) == target).sum()
    return [tuple(count / len(y) for count in of) for of in hits.tolist()]


def features(s: TrainState, x: Tensor, task: int | Tensor, env: Env) -> Iterator[list[Tensor]]:
    """The activations [B, d] of each layer for network inputs [n, ...], in chunks of them."""
    tasks = torch.full((len(x),), task, device=x.device) if isinstance(task, int) else task
    chunk = evaluation_chunk(env)
    for part, own in zip(x.split(chunk), tasks.split(chunk), strict=True):
        found, at = [], part
        for layer in layers(env):
            at = env.answers(s.theta, at, own, first=layer - 1, last=layer)
            flat = at.flatten(1)
            units = some(flat.shape[1], WIDEST, env, "units", layer)
            found.append(flat if len(units) == flat.shape[1] else flat[:, units])
        yield found


def some(n: int, most: int, env: Env, *purpose: str | int) -> Tensor:
    """`most` of n positions, or all, in ascending order: the same ones whenever they are asked."""
    generator = generator_for(CPU, env.seed, "features", *purpose)
    return torch.randperm(n, generator=generator)[:most].sort().values.to(env.device)
