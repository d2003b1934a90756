"""Dark experience replay with labels: DER++."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cl_runner.core import Batch, TrainState
from cl_runner.errors import check
from cl_runner.functional.losses import cross_entropy, weighted_mean
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.der import DER
from cl_runner.strategies.parts.replay import held_of
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class DERPP(DER):
    """DER's loss + beta CE(f(x''), y'') (Buzzega et al. 2020, arXiv 2004.07211, eq. 6).

    (x'', y'') is a second batch from the buffer, drawn independently of DER's.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.beta >= 0, f"strategy.beta must be at least 0, got {self.beta}")

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        shapes = super().noise(batch_size, env)
        again = {f"{name}_labels": shapes[name] for name in ("draw", "replay_augment")}
        return shapes | again

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = Strategy.loss(self, theta, s, batch, env)
        old = self.draw(s, batch, env)  # (x', z')
        distance = (env.net(theta, old.x, old.task) - held_of(s, old, "logits")).square().mean(1)
        loss = loss + self.alpha * weighted_mean(distance, old.weight)
        old = self.draw(s, batch, env, "_labels")  # (x'', y'')
        logits = env.net(theta, old.x, old.task)
        return loss + self.beta * cross_entropy(logits, old.y, old.active, old.weight), aux
