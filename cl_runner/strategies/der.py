"""Dark experience replay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_runner.core import Batch, TrainState
from cl_runner.errors import check
from cl_runner.functional.buffers import Slots
from cl_runner.functional.losses import weighted_mean
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.replay import held_of
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class DER(ER):
    """Loss + alpha |f(x') - z'|^2 for (x', z') from the buffer (Buzzega et al. 2020, eq. 5).

    arXiv 2004.07211. z are the logits that the network gave when it saw x in the stream, before the
    step (where the policy refills at the end of a task: those of that time, in evaluation mode, of
    the plain input). The squared distance is the mean over classes and samples, as in the authors'
    code. `weighting` has no meaning here and must stay as it is: alpha weighs the replay.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.alpha >= 0, f"strategy.alpha must be at least 0, got {self.alpha}")
        check(
            self.weighting == "concatenation",
            f"strategy.weighting has no meaning for strategy={self.name}: strategy.alpha weighs",
        )

    def empty_slots(self, theta: Tensor, env: Env) -> Slots:
        return {"logits": torch.zeros(self.places(env), env.num_classes, device=env.device)}

    def keep(self, s: TrainState, batch: Batch, aux: Aux, env: Env) -> Slots:
        logits = aux["logits"] if aux else env.answers(s.theta, batch.x, batch.task)
        return {"logits": logits.detach()}

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = Strategy.loss(self, theta, s, batch, env)
        replay = self.draw(s, batch, env)
        z = held_of(s, replay, "logits")
        distance = (env.net(theta, replay.x, replay.task) - z).square().mean(1)
        return loss + self.alpha * weighted_mean(distance, replay.weight), aux

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        s, aux = Strategy.step(self, s, batch, env)
        return self.remember(s, batch, aux, env), aux
