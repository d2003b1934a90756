"""Answers of the network at the end of the last task, which the new one is to keep."""

from __future__ import annotations

from torch import Tensor

from cl_runner.core import Batch, TrainState
from cl_runner.functional.losses import distillation, weighted_mean
from cl_runner.training.env import Env, statistics


def old_answers(s: TrainState, batch: Batch, env: Env, last: int | None = None) -> Tensor:
    """Logits [B, K] of the network that the memory holds as "old", in evaluation mode.

    last=-1: its features [B, ...].
    """
    of_old = statistics(s.memory, "old")
    return env.answers(s.memory["old"], batch.x, batch.task, of_old, last=last)


def distilled(
    logits: Tensor, answers: Tensor, old: Tensor, temperature: float, batch: Batch
) -> Tensor:
    """The mean distillation, 0-d, of old answers [B, K] over the classes `old` [K] bool."""
    return weighted_mean(distillation(logits, answers, old[None], temperature), batch.weight)
