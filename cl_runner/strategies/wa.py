"""Weight aligning: WA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.strategies.base import Aux
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.distilled import distilled, old_answers
from cl_runner.strategies.parts.outputs import (
    check_growing,
    classes_before,
    every_unit,
    output_units,
    unseen_last,
    with_output_units,
)
from cl_runner.training.env import Env, kept


@dataclass(frozen=True, kw_only=True)
class WA(ER):
    """Replay, distillation, and at the end new classes no louder than old ones (Zhao et al. 2020).

    "Maintaining discrimination and fairness in class incremental learning", arXiv 1911.07053. For
    class-incremental learning.
    - A step trains on the incoming batch and on one of the buffer: with n classes of earlier tasks
      and m of this one, cross-entropy over the n + m + lambda n / (n + m) times the distillation
      of the old network's answers over the n, -sum_c p_c log q_c at the temperature T, on all of
      these samples.
    - The weights of the output layer are kept at or above 0 (set to 0 after a step that makes them
      negative), and it has no biases: so the longer a class's weights w_c, the larger its logit on
      features that are not negative, which are those after a ReLU.
    - When a task ends, w_c <- gamma w_c for its classes, gamma = mean |w_old| / mean |w_new|, at
      most 1.

    From the paper differ: it passes over new samples and exemplars together, epoch after epoch,
    where here each step replays `replay_batch_size` exemplars, since one pass over many new samples
    and few old ones learns nothing of the old. It weighs the two losses by 1 - n / (n + m) and
    n / (n + m), which in a few passes leaves new classes unlearnt. And its gamma may exceed 1. The
    more samples of the buffer each step has, the less are the new weights the longer; with as many
    as of the stream and a pass or two they are the shorter, and to lengthen them would bring back
    the preference for new classes that it is to remove. Of a network whose features can be negative
    the clipping is no help. The old network answers in evaluation mode.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    detectable: ClassVar[tuple[str, ...]] = ()
    uncounted: ClassVar[tuple[str, ...]] = ("output", "bias")  # follow from the architecture

    policy: str = "herding"
    lambda_: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(
            self.temperature > 0, f"strategy.temperature must be positive, got {self.temperature}"
        )

    def needs_borders(self, scenario: str) -> str:
        return "it keeps the network and aligns the outputs when a task ends"

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check_growing(f"strategy={self.name}", env)
        output = every_unit(env)
        order = output.cumsum(0)
        bias = output & (order > order[-1] - env.num_classes)
        masks = {"output": output.to(theta.device), "bias": bias.to(theta.device)}
        return super().init(theta, env) | masks | kept("old", theta, env.flat.buffers)

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        s = clipped(s)
        return s._replace(memory=s.memory | kept("old", s.theta, s.buffers))

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        old, seen = classes_before(s.t, env), classes_before(s.t + 1, env)
        batch = batch._replace(active=seen.expand(len(batch.y), -1))
        loss, aux = super().loss(theta, s, batch, env)
        answers = old_answers(s, batch, env)
        changed = distilled(aux["logits"], answers, old, self.temperature, batch)
        return loss + self.lambda_ * old.sum() / seen.sum() * changed, aux

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        s, aux = super().step(s, batch, env)
        return clipped(s), aux

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        s = super().end_task(s, task, env)
        old = classes_before(task.index, env)
        new = env.own_classes[task.index] & ~old
        if not (old.any() and new.any()):
            return s
        units = output_units(s.theta.detach(), env)
        lengths = units.norm(dim=1)
        gamma = (lengths[old].mean() / lengths[new].mean()).clamp_max(1)
        units = torch.where(new[:, None], gamma * units, units)
        return s._replace(theta=with_output_units(s.theta.detach(), units, env))

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        return unseen_last(super().predict(s, x, task, env), classes_before(s.t + 1, env))


def clipped(s: TrainState) -> TrainState:
    """The state with the output layer's weights at or above 0, and its biases 0."""
    theta = s.theta.detach()
    positive = torch.where(s.memory["bias"], 0.0, theta.clamp_min(0))
    return s._replace(theta=torch.where(s.memory["output"], positive, theta))
