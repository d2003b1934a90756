"""Averaged gradient episodic memory: A-GEM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cl_runner.core import Batch, TrainState
from cl_runner.errors import check
from cl_runner.functional.buffers import Slots
from cl_runner.functional.projection import project_half_space
from cl_runner.strategies.base import Aux
from cl_runner.strategies.er import ER
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class AGEM(ER):
    """No step may raise the mean loss on the memory (Chaudhry et al. 2019, arXiv 1812.00420).

    g_ref is the gradient on a batch drawn from the memory of the previous tasks. Where g . g_ref is
    negative, the step is along g - (g . g_ref / g_ref . g_ref) g_ref instead of g (eq. 11). In the
    first task g_ref is 0, and nothing happens. The buffer is fed by `policy`, as for strategy=er;
    what it holds of the current task is never drawn. The replayed samples set a limit and are not
    trained on, so `weighting` has no meaning here and must stay as it is. What is projected is the
    gradient: the step of an optimizer that is not plain SGD need not satisfy the constraint.
    """

    detectable: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.weighting == "concatenation",
            f"strategy.weighting has no meaning for strategy={self.name}: replay sets a limit",
        )

    def needs_borders(self, scenario: str) -> str:
        return "it replays samples of earlier tasks alone"

    def drawable(self, held: Slots, t: Tensor) -> Tensor:
        """Samples of the previous tasks alone."""
        return (held["index"] >= 0) & (held["task"] < t)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        gradient = env.grad_and_value(self.loss)
        replay = self.draw(s, batch, env)
        g, (loss, aux) = gradient(s.theta, s, batch, env)
        g_ref, _ = gradient(s.theta, s, replay, env)
        s = env.update(s, project_half_space(g, g_ref))
        return self.remember(s, batch, aux, env), {**aux, "loss": loss}
