"""Meta-experience replay."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.config.schema import SGD
from cl_runner.core import Batch, TrainState, Window
from cl_runner.errors import check
from cl_runner.functional import buffers
from cl_runner.functional.buffers import Slots
from cl_runner.strategies.base import Aux
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.replay import load, store
from cl_runner.training.env import Env
from cl_runner.training.fit import plan

TIMED = 15  # gradients, before a run, to tell what it takes


@dataclass(frozen=True, kw_only=True)
class MER(ER):
    """Replay in Reptile's meta-updates (Riemer et al. 2019, arXiv 1810.11910, algorithm 1).

    The samples of the incoming batch are taken one after another. For each, s batches (`batches`)
    are made of k - 1 samples of the buffer (`replay_batch_size`) and the sample itself, and
    - theta takes one plain SGD step, with the optimizer's lr, on every sample of a batch in turn;
    - after each batch, theta <- theta_before_batch + beta (theta - theta_before_batch);
    - after the s batches, theta <- theta_before_sample + gamma (theta - theta_before_sample);
    - the sample is offered to the reservoir.
    So a step costs batch_size * s * k gradients of one sample, one after another. They are one
    graph, unrolled: keep training.batch_size small, which changes nothing in the method (the
    authors have 1). Only policy `reservoir` and plain SGD are allowed; `weighting` has no meaning.

    As in the authors' code (mattriemer/MER, meralg1), the draws are with replacement, a buffer that
    holds n < k - 1 samples gives n, and replay_batch_size does not count the current sample. There,
    it comes first in each batch; here last.
    """

    whole_batches: ClassVar[bool] = False
    shown_once: ClassVar[str] = "whose every step offers its samples to the buffer"

    replay_batch_size: int = 2
    batches: int = 1
    beta: float = 0.3
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.policy == "reservoir",
            f"strategy.policy must be reservoir for strategy={self.name}, got {self.policy}",
        )
        check(
            self.weighting == "concatenation",
            f"strategy.weighting has no meaning for strategy={self.name}: samples come singly",
        )
        check(self.batches >= 1, f"strategy.batches must be at least 1, got {self.batches}")
        check(0 < self.beta <= 1, f"strategy.beta must lie in (0, 1], got {self.beta}")
        check(0 < self.gamma <= 1, f"strategy.gamma must lie in (0, 1], got {self.gamma}")

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        drawn = (batch_size, self.batches * self.replayed(env))
        return {"draw": drawn, "replay_augment": (*drawn, 3), "reservoir": (batch_size,)}

    def plan(self, memory: Slots, t: Tensor, window: Window, env: Env) -> tuple[Slots, Slots]:
        return {}, {}

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        optimizer = env.optimizer
        check(
            isinstance(optimizer, SGD)
            and optimizer.momentum == optimizer.weight_decay == 0
            and optimizer.clip_value is None
            and optimizer.clip_norm is None,
            f"strategy={self.name} takes plain SGD steps: it needs optimizer=sgd with "
            "optimizer.momentum=0, optimizer.weight_decay=0, optimizer.clip_value=null and "
            "optimizer.clip_norm=null",
        )
        check(
            not env.flat.buffers,
            f"strategy={self.name} needs a model without BatchNorm, since it trains on one sample "
            "at a time",
        )
        return super().init(theta, env)

    def notes(self, env: Env) -> Iterator[str]:
        number, seconds = self.gradients(env), self.seconds_of_one(env)
        yield (
            f"strategy={self.name} takes {number} SGD steps of one sample each, one after another: "
            f"about {number * seconds / 60:.1f} minutes, at {1000 * seconds:.1f} ms a step as "
            "measured now (engine=eager); training.iterations makes them fewer"
        )

    def gradients(self, env: Env) -> int:
        """Of one sample each, in the whole run; a few less while the buffer fills."""
        incoming = 0
        for task in env.stream:
            n = len(task.train)
            _, per_epoch, steps = plan(n, env.training, epochs=task.epochs)
            incoming += steps // per_epoch * n + steps % per_epoch * env.training.batch_size
        return incoming * self.batches * (self.replayed(env) + 1)

    def seconds_of_one(self, env: Env) -> float:
        """Seconds that an SGD step on one sample takes."""
        t = torch.zeros((), dtype=torch.int64, device=env.device)
        sample = env.gather(env.stream[0].train[:1], 0, t)
        s = TrainState(env.flat.theta, {}, {}, {}, t)
        gradient, theta, times = env.grad_and_value(self.loss), s.theta.detach().clone(), []
        for _ in range(TIMED):
            began = time.perf_counter()
            grad, (loss, _) = gradient(at(theta, s, env), s, sample, env)
            float((theta - loss * grad)[0])  # waits for the device
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        theta = before = s.theta.detach().clone()
        losses = []
        for i in range(len(batch.y)):
            sample = rows(batch, i, i + 1)
            sample = sample._replace(noise={k: v[i : i + 1] for k, v in batch.noise.items()})
            theta, loss = self.learn(theta, s, sample, env)
            s = self.remember(s, sample, {}, env)
            losses.append(loss)
        at(before, s, env)  # where the step began, for whoever has s
        return s._replace(theta=theta), {"loss": torch.stack(losses).mean()}

    def learn(self, theta: Tensor, s: TrainState, sample: Batch, env: Env) -> tuple[Tensor, Tensor]:
        """Theta after all steps for one sample, and its loss before the last one of them."""
        gradient, lr, drawn = env.grad_and_value(self.loss), s.opt["lr"], self.replayed(env)
        replay = self.draw(s, sample, env)
        before_sample = theta
        loss = torch.zeros_like(lr)
        for i in range(self.batches):
            before_batch = theta
            old = [rows(replay, j, j + 1) for j in range(i * drawn, (i + 1) * drawn)]
            for one in (*old, sample):
                grad, (loss, _) = gradient(at(theta, s, env), s, one, env)  # 0 for no sample
                theta = theta - lr * grad
            theta = torch.lerp(before_batch, theta, self.beta)
        return torch.lerp(before_sample, theta, self.gamma), loss

    def remember(self, s: TrainState, batch: Batch, aux: Aux, env: Env) -> TrainState:
        slots, seen = load(s.memory), s.memory["seen"]
        target = buffers.reservoir_targets(seen.sum(), self.places(env), batch.noise["reservoir"])
        slots = buffers.add(slots, {"index": batch.index, "task": batch.task}, target)
        bins = env.bins(batch.y, batch.task)
        seen = seen.scatter_add(0, bins, torch.ones_like(bins))
        return s._replace(memory=s.memory | store(slots) | {"seen": seen})

    def draw(self, s: TrainState, batch: Batch, env: Env, which: str = "") -> Batch:
        """The samples of all batches for one incoming sample, [batches * replayed]."""
        slots = load(s.memory)
        held = s.memory["seen"].sum().clamp_max(self.places(env))  # a reservoir fills from slot 0
        uniform = batch.noise["draw" + which].flatten()
        slot = buffers.below(uniform, held)
        filled = torch.arange(self.replayed(env), device=held.device).repeat(self.batches) < held
        index = torch.where(filled, slots["index"][slot], batch.index)
        task = torch.where(filled, slots["task"][slot], batch.task)
        augment = batch.noise["replay_augment" + which].flatten(0, 1)
        return env.gather(index, task, s.t, weight=filled.float(), augment=augment)


def at(theta: Tensor, s: TrainState, env: Env) -> Tensor:
    """Theta [P], put where s has its own if that is live: gradients cost a third there."""
    return env.commit(s._replace(theta=theta)).theta if s.theta is env.flat.theta else theta


def rows(batch: Batch, first: int, last: int) -> Batch:
    """The samples first .. last - 1 of a batch."""
    return Batch._make(v[first:last] if isinstance(v, Tensor) else v for v in batch)
