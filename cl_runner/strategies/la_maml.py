"""Look-ahead meta-learning with replay: La-MAML, and C-MAML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, TrainState
from cl_runner.errors import check, one_of
from cl_runner.strategies.base import Aux
from cl_runner.strategies.er import ER
from cl_runner.strategies.mer import at, rows
from cl_runner.training.env import Env
from cl_runner.training.optim import shortened

VARIANTS = ("la_maml", "sync", "c_maml")


@dataclass(frozen=True, kw_only=True)
class LaMAML(ER):
    """Meta-learnt steps that help new and replayed samples alike, with a learnt rate per weight.

    Gupta, Yadav & Paull 2020, arXiv 2007.13904, algorithm 2, to first order. The incoming batch is
    cut into `inner_steps` parts. From theta_0 on, fast weights take a step on each part in turn,
    theta_i = theta_(i-1) - relu(alpha) g_i, and after each of them the meta-loss L_i(theta_i) is
    taken on the whole batch joined with a replayed one. With L = mean_i L_i, and the g_i as
    constants,
        dL / d theta_0 = mean_i grad L_i(theta_i),
        dL / d alpha   = - mean_i grad L_i(theta_i) * sum_(j <= i) g_j  where alpha > 0, else 0.
    Both are clipped to a length of `clip_norm`. Then
    - variant `la_maml`: alpha <- alpha - alpha_lr dL / d alpha, and with these new rates
      theta <- theta_0 - relu(alpha) dL / d theta_0: the optimizer has no part in it;
    - `sync`: alpha likewise, and theta by the run's optimizer; `c_maml`: alpha stays alpha_init.
    As in the authors' code (montrealrobotics/La-MAML), whose clipping of g_i has no effect either,
    one batch is replayed for all parts of a step, before the buffer takes the new samples. There,
    each part is one sample on MNIST, and on images the batch is cut as here, to second order; the
    buffer is drawn from as it was when the task began; a batch is learnt from several times
    (`glances`), here by training.passes.
    What is tested is theta_0, without the inner steps. Rates at which these solve the task by
    themselves leave theta_0 without a gradient, and it learns nothing: where a task has few of the
    classes that compete, that is soon so (docs/limits.md).
    """

    whole_batches: ClassVar[bool] = False

    variant: str = "sync"
    inner_steps: int = 5
    alpha_init: float = 0.01
    alpha_lr: float = 0.01
    clip_norm: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("strategy.variant", self.variant, VARIANTS)
        check(
            self.inner_steps >= 1,
            f"strategy.inner_steps must be at least 1, got {self.inner_steps}",
        )
        check(self.alpha_init > 0, f"strategy.alpha_init must be positive, got {self.alpha_init}")
        check(self.alpha_lr >= 0, f"strategy.alpha_lr must be at least 0, got {self.alpha_lr}")
        check(self.clip_norm > 0, f"strategy.clip_norm must be positive, got {self.clip_norm}")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            not env.flat.buffers,
            f"strategy={self.name} needs a model without BatchNorm, since its inner steps are on "
            "few samples",
        )
        return super().init(theta, env) | {
            "rates": torch.full_like(theta.detach(), self.alpha_init)
        }

    def notes(self, env: Env) -> Iterator[str]:
        if self.variant == "la_maml":
            yield f"strategy={self.name} steps by rates of its own: optimizer.* has no part in it"

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        both = self.join(s, batch, self.draw(s, batch, env))
        before = s.theta.detach().clone()
        grad, of_rates, loss = self.look_ahead(before, s, batch, both, env)
        at(before, s, env)  # where the step began, for whoever has s
        rates = s.memory["rates"]
        if self.variant != "c_maml":
            rates = rates - self.alpha_lr * shortened(of_rates, self.clip_norm)
        grad = shortened(grad, self.clip_norm)
        if self.variant == "la_maml":
            new = s._replace(theta=before - rates.relu() * grad)
        else:
            new = env.update(s, grad)
        new = new._replace(memory=s.memory | {"rates": rates})
        return self.remember(new, batch, {}, env), {"loss": loss}

    def look_ahead(
        self, before: Tensor, s: TrainState, batch: Batch, both: Batch, env: Env
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the meta-loss in theta and alpha, [P] each, and the meta-loss."""
        gradient, alpha = env.grad_and_value(self.loss), s.memory["rates"].relu()
        fast, moved = before, torch.zeros_like(before)
        in_theta, in_alpha, losses = torch.zeros_like(before), torch.zeros_like(before), []
        size = -(-len(batch.y) // self.inner_steps)
        for first in range(0, len(batch.y), size):
            part = rows(batch, first, first + size)
            g, _ = gradient(at(fast, s, env), s, part, env)
            moved, fast = moved + g, fast - alpha * g
            G, (loss, _) = gradient(at(fast, s, env), s, both, env)
            in_theta, in_alpha = in_theta + G, in_alpha - G * moved
            losses.append(loss)
        n = len(losses)
        return in_theta / n, in_alpha / n * (alpha > 0), torch.stack(losses).mean()
