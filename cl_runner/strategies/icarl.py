"""Incremental classifier and representation learning: iCaRL."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.core import Batch, Stream, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional import buffers
from cl_runner.functional.exemplars import class_means, nearest_mean, unit
from cl_runner.functional.losses import weighted_mean
from cl_runner.strategies.base import Aux, Strategy, tasks_of
from cl_runner.strategies.parts.features import features_of, herded, width
from cl_runner.strategies.parts.replay import (
    arrived,
    bins_of,
    check_features,
    check_places,
    empty_rows,
    load,
    places,
    store,
)
from cl_runner.training.env import Env, kept, statistics


@dataclass(frozen=True, kw_only=True)
class ICaRL(Strategy):
    """Classifies by the nearest mean of exemplars, chosen by herding (Rebuffi et al. 2017).

    arXiv 1611.07725. For class-incremental learning, for which it is defined.
    - A task trains on its own samples and on all exemplars together, with a sigmoid and a binary
      cross-entropy for each class (algorithm 3): the target of a class of earlier tasks is the old
      network's sigmoid(logit / temperature), that of any other class the label, 1 or 0. The paper's
      temperature is 1.
    - At the end of a task each of the c classes seen so far has floor(buffer_size / c) exemplars:
      the new ones by herding (algorithm 4), the old ones the best-ranked that they had (5). With
      per_class in the place of buffer_size each has that many from its own task on.
    - Features, the activations before the output layer, and their class means have length 1; the
      class is that of the nearest mean (eq. 2), by the features that the network has now.
    The losses of the classes seen so far are summed, as in the paper, whose network has no other
    outputs yet, whatever training.active_classes says; the authors' code takes the mean over all
    classes, those of later tasks as negative, with a learning rate of 2. The mean that herding
    approaches keeps its length, as in that code; no mirrored images enter the class means. Classes
    without exemplars, all of them before the first task's end, come last, in the order of the
    network's outputs. The old network answers in evaluation mode.

    In van de Ven et al. 2022 (Nature Machine Intelligence 4, 1185; code:
    GMvandeVen/continual-learning) the temperature is 2, of the targets alone, and each class has
    100 exemplars: experiment=vandeven2022/icarl_split_class.
    """

    scenarios = ("class",)

    buffer_size: int | None = 500
    per_class: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_places(self.buffer_size, self.per_class)
        check(self.temperature > 0, f"strategy.temperature must be above 0, got {self.temperature}")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        size = places(self.buffer_size, self.per_class, env)
        check(
            size >= env.num_classes,
            f"strategy.buffer_size={self.buffer_size} is too small for strategy={self.name}, which "
            f"needs at least one exemplar for each of {env.num_classes} classes",
        )
        check(
            env.training.active_classes != "current",
            f"training.active_classes=current does not go with strategy={self.name}, which trains "
            "the outputs of all classes seen so far on every sample",
        )
        check_features(f"strategy={self.name}", env)
        means = torch.zeros(env.num_classes, width(env), device=env.device)
        return (
            store(empty_rows(size, env)) | {"means": means} | kept("old", theta, env.flat.buffers)
        )

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        return s._replace(memory=s.memory | kept("old", s.theta, s.buffers))

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        new = stream[t].train
        index, task = exemplars(s)
        return torch.cat([new, index]), torch.cat([torch.full_like(new, t), task])

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        logits = env.net(theta, batch.x, batch.task)
        answers = env.answers(s.memory["old"], batch.x, batch.task, statistics(s.memory, "old"))
        order = torch.arange(env.num_tasks, device=s.t.device)[:, None]
        old = (env.own_classes & (order < s.t)).any(0)  # [K]
        seen = (env.own_classes & (order <= s.t)).any(0)
        label = batch.y[:, None] == torch.arange(env.num_classes, device=batch.y.device)
        target = torch.where(old, (answers / self.temperature).sigmoid(), label.to(answers.dtype))
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * seen
        return weighted_mean(losses.sum(1), batch.weight), {"logits": logits}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        slots = load(s.memory)
        best = herded(s, task, env, len(slots["index"]))
        keep = buffers.balance(*bins_of(slots, task, env), best, self.per_class)
        slots = buffers.refill(slots, arrived(slots, task, keep), keep)
        s = s._replace(memory=s.memory | store(slots))
        index, tasks = exemplars(s)
        y = env.stream.labels(index, tasks)
        means = class_means(features_of(s, index, tasks, env), y, env.num_classes)
        return s._replace(memory=s.memory | {"means": means})

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        tasks, means = tasks_of(x, task), s.memory["means"]
        features = env.net(s.theta, x, tasks, last=-1)
        outputs = env.net(s.theta, features, tasks, first=-1)
        last = F.logsigmoid(outputs) - 4  # no squared distance of unit vectors exceeds 4
        return torch.where(means.any(1), nearest_mean(unit(features), means), last)


def exemplars(s: TrainState) -> tuple[Tensor, Tensor]:
    """Rows [m] and tasks [m] of the samples held."""
    slots = load(s.memory)
    held = slots["index"] >= 0
    return slots["index"][held], slots["task"][held]
