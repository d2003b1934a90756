"""Bias correction: BiC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Stream, Task, TrainState, Window, generator_for
from cl_runner.errors import check, one_of
from cl_runner.functional import buffers
from cl_runner.functional.buffers import Slots
from cl_runner.functional.calibration import correction
from cl_runner.strategies.base import Aux
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.distilled import distilled, old_answers
from cl_runner.strategies.parts.features import herded
from cl_runner.strategies.parts.outputs import check_growing, classes_before, unseen_last
from cl_runner.strategies.parts.replay import (
    REFILLED,
    arrived,
    bins_of,
    kept_of,
    load,
    planned,
    store,
)
from cl_runner.training.batches import CPU
from cl_runner.training.env import Env, kept


@dataclass(frozen=True, kw_only=True)
class BiC(ER):
    """Replay, distillation, and two numbers that correct the new classes' logits (Wu et al. 2019).

    "Large scale incremental learning", arXiv 1905.13260. For class-incremental learning.
    - Stage one, the steps: with n classes of earlier tasks and m of this one, cross-entropy over
      the n + m plus lambda n / (n + m) times the distillation of the old network's corrected
      answers over the n, at the temperature T.
    - Stage two, when a task ends, from the second on: the logits o_c of its classes become
      alpha o_c + beta, those of the old classes stay, with the alpha and beta of the least
      cross-entropy on validation samples, as many of each class, old or new.
    - A share `validation` of each class's places in the buffer is for these samples, drawn from the
      class's own when its task begins; they are neither trained on nor replayed. The other places
      are filled by herding, or at random (policy class_balanced).

    From the paper and the authors' code (wuyuebupt/LargeScaleIncrementalLearning) differ: they pass
    over new samples and exemplars together, where here each step replays `replay_batch_size`
    exemplars; the two losses weigh 1 - n / (n + m) and n / (n + m) there, which in a few passes
    leaves new classes unlearnt; and they find alpha and beta by some epochs of SGD, where here they
    are the minimum itself, by Newton's method, with (alpha - 1)^2 / 2 + beta^2 / 2 added to the sum
    of the losses, without which they are infinite where few samples are told apart with ease. As in
    their code, what is corrected is the latest task's classes: the next network learns the earlier
    corrections by distillation. Within a task nothing is corrected yet.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    detectable: ClassVar[tuple[str, ...]] = ()
    float64: ClassVar[bool] = True

    policy: str = "herding"
    lambda_: float = 1.0
    temperature: float = 2.0
    validation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("strategy.policy", self.policy, REFILLED)
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(
            self.temperature > 0, f"strategy.temperature must be positive, got {self.temperature}"
        )
        check(
            0 < self.validation < 1,
            f"strategy.validation must lie between 0 and 1, got {self.validation}",
        )

    def needs_borders(self, scenario: str) -> str:
        return "it corrects the new classes' logits when a task ends"

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check_growing(f"strategy={self.name}", env)
        check(
            self.places(env) >= 2 * env.num_classes,
            f"{self.places(env)} places are too few for strategy={self.name}, which needs two for "
            f"each of {env.num_classes} classes: raise strategy.buffer_size or strategy.per_class",
        )
        plain = torch.eye(2, device=env.device)[0]  # alpha 1, beta 0
        return (
            super().init(theta, env)
            | {"correction": plain, "old_correction": plain.clone()}
            | kept("old", theta, env.flat.buffers)
        )

    def empty_slots(self, theta: Tensor, env: Env) -> Slots:
        return {"validation": torch.zeros(self.places(env), dtype=torch.bool, device=env.device)}

    # The validation samples.

    def reserved(self, t: int, env: Env) -> int:
        """The places of each class for validation samples, when the classes before t fill all."""
        share = self.per_class or self.places(env) // int(classes_before(t, env).sum())
        return max(1, int(self.validation * share))

    def held_out(self, task: Task, env: Env) -> Tensor:
        """Which of a task's samples are for validation, [n] bool.

        As many as are reserved, but no more than a quarter of the task's, nor half of a class's.
        """
        y = env.stream.labels(task.train, task.index)
        generator = generator_for(CPU, env.seed, "validation", task.index)
        order = torch.randperm(len(y), generator=generator).to(y.device)
        chosen = torch.zeros_like(y, dtype=torch.bool)
        most = min(self.reserved(max(task.index, 1), env), len(y) // (4 * len(task.classes)))
        for c in task.classes:
            own = order[y[order] == c]
            chosen[own[: min(most, len(own) // 2)]] = True
        return chosen

    def training_set(
        self, s: TrainState, stream: Stream, t: int, env: Env
    ) -> tuple[Tensor, int | Tensor]:
        return stream[t].train[~self.held_out(stream[t], env)], t

    def plan(self, memory: Slots, t: Tensor, window: Window, env: Env) -> tuple[Slots, Slots]:
        def drawable(held: Slots, t: Tensor) -> Tensor:
            return self.drawable(held, t) & ~load(memory)["validation"]

        return planned(memory, t, window, self.policy, self.replayed(env), drawable, env)

    # The two stages.

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        plain = torch.eye(2, device=env.device)[0]
        latest = {"old_correction": s.memory["correction"], "correction": plain}
        return s._replace(memory=s.memory | latest | kept("old", s.theta, s.buffers))

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        old, seen = classes_before(s.t, env), classes_before(s.t + 1, env)
        batch = batch._replace(active=seen.expand(len(batch.y), -1))
        loss, aux = super().loss(theta, s, batch, env)
        latest = old & ~classes_before(s.t - 1, env)
        answers = corrected(old_answers(s, batch, env), s.memory["old_correction"], latest)
        changed = distilled(aux["logits"], answers, old, self.temperature, batch)
        return loss + self.lambda_ * old.sum() / seen.sum() * changed, aux

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        slots, held_out = load(s.memory), self.held_out(task, env)
        old, seen = classes_before(task.index, env), classes_before(task.index + 1, env)
        if task.index:
            logits, y = self.answers(s, slots, task, held_out, env)
            numbers = correction(logits, y, seen & ~old, seen)
            s = s._replace(memory=s.memory | {"correction": numbers})
        size, reserved = len(slots["index"]), self.reserved(task.index + 1, env)
        validation = torch.cat([slots["validation"], held_out])
        rank = (
            herded(s, task, env, size)
            if self.policy == "herding"
            else buffers.shuffled(generator_for(env.device, env.seed, "buffer", task.index))
        )

        def best(candidates: Tensor, k: int) -> Tensor:
            for_it = candidates[validation[candidates]][:reserved]
            return torch.cat([for_it, rank(candidates[~validation[candidates]], k - len(for_it))])

        chosen = buffers.balance(*bins_of(slots, task, env), best, self.per_class)
        arrivals = arrived(slots, task, chosen)
        arrivals["validation"] = held_out[buffers.arrivals(slots, chosen)]
        slots = buffers.refill(slots, arrivals, chosen)
        return s._replace(memory=s.memory | store(slots))

    def answers(
        self, s: TrainState, slots: Slots, task: Task, held_out: Tensor, env: Env
    ) -> tuple[Tensor, Tensor]:
        """Logits [n, K] and classes [n] of the validation samples, those held and the new ones."""
        held = (slots["index"] >= 0) & slots["validation"]
        new = task.train[held_out]
        index = torch.cat([slots["index"][held], new])
        tasks = torch.cat([slots["task"][held], torch.full_like(new, task.index)])

        def logits(s: TrainState, batch: Batch, _: Aux, env: Env) -> Slots:
            return {"logits": env.answers(s.theta, batch.x, batch.task)}

        found = kept_of(logits, s, index, tasks, env)
        return found["logits"], env.stream.labels(index, tasks)

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        before, seen = classes_before(s.t, env), classes_before(s.t + 1, env)
        logits = corrected(super().predict(s, x, task, env), s.memory["correction"], seen & ~before)
        return unseen_last(logits, seen)


def corrected(logits: Tensor, numbers: Tensor, classes: Tensor) -> Tensor:
    """Logits [B, K] with alpha o_c + beta in the place of o_c for `classes` [K] bool."""
    alpha, beta = numbers
    return torch.where(classes, alpha * logits + beta, logits)
