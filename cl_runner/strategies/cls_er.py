"""Experience replay with a fast and a slow average of the weights: CLS-ER."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_runner.core import Batch, TrainState
from cl_runner.errors import check
from cl_runner.functional.losses import mask_logits, weighted_mean
from cl_runner.strategies.base import Aux
from cl_runner.strategies.er import ER
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class CLSER(ER):
    """ER's loss + lambda |f(x') - z'|^2 for the replayed x' (Arani et al. 2022, arXiv 2201.12604).

    z' are the logits of the plastic or the stable model, sample by sample of the one whose softmax
    gives the true label more. Both are exponential moving averages of the trained weights: after
    each step, with probability plastic_rate or stable_rate,
        average <- a average + (1 - a) theta,   a = min(1 - 1 / (n + 1), plastic_ or stable_decay)
    with n the steps so far. The stable model predicts. From the authors' code
    (github.com/NeurAI-Lab/CLS-ER, models/clser.py) come the ramp of a, the squared distance as the
    mean over classes and samples, and the plastic model's logits in a tie.
    In task-incremental learning the softmax is over the task's own outputs. As in the authors'
    code, both answer in training mode, dropout included. A model with BatchNorm: the averages use
    the batch's statistics in training and the trained network's running ones at test, where the
    authors' models keep their own; and the trained network sees the incoming and the replayed
    samples in one batch.
    """

    lambda_: float = 2.0
    plastic_rate: float = 1.0
    plastic_decay: float = 0.99
    stable_rate: float = 0.9
    stable_decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        for key in ("plastic_rate", "stable_rate"):
            value = getattr(self, key)
            check(0 < value <= 1, f"strategy.{key} must lie in (0, 1], got {value}")
        for key in ("plastic_decay", "stable_decay"):
            value = getattr(self, key)
            check(0 <= value < 1, f"strategy.{key} must lie in [0, 1), got {value}")

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        return super().noise(batch_size, env) | {"plastic": (), "stable": ()}

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        averages = {name: theta.detach().clone() for name in ("plastic", "stable")}
        steps = torch.zeros((), dtype=torch.int64, device=env.device)
        return super().init(theta, env) | averages | {"steps": steps}

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(theta, s, batch, env)
        assert batch.weight is not None
        B = len(batch.y) - self.replayed(env)
        z = self.better_logits(s, batch, B, env)
        distance = (aux["logits"][B:] - z).square().mean(1)
        return loss + self.lambda_ * weighted_mean(distance, batch.weight[B:]), aux

    def better_logits(self, s: TrainState, batch: Batch, first: int, env: Env) -> Tensor:
        """Per sample, from `first` on, the logits [n, K] of the average that knows it better."""
        x, y, task = batch.x[first:], batch.y[first:, None], batch.task[first:]
        active = None if batch.active is None else batch.active[first:]
        plastic, stable = (env.net(s.memory[name], x, task) for name in ("plastic", "stable"))
        p, q = (mask_logits(z, active).softmax(1).gather(1, y) for z in (plastic, stable))
        return torch.where(q > p, stable, plastic)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        s, aux = super().step(s, batch, env)
        memory, steps = s.memory, s.memory["steps"] + 1
        ramp = 1 - 1 / (steps + 1)

        def average(name: str, rate: float, decay: float) -> Tensor:
            share = torch.where(batch.noise[name] < rate, 1 - ramp.clamp_max(decay), 0.0)
            return torch.lerp(memory[name], s.theta, share)

        plastic = average("plastic", self.plastic_rate, self.plastic_decay)
        stable = average("stable", self.stable_rate, self.stable_decay)
        memory = memory | {"plastic": plastic, "stable": stable, "steps": steps}
        return s._replace(memory=memory), aux

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        return super().predict(s._replace(theta=s.memory["stable"]), x, task, env)
