"""Context-dependent gating with synaptic intelligence: XdG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from cl_runner.core import generator_for
from cl_runner.env import Env
from cl_runner.errors import check
from cl_runner.nn.gated import Gated, chain, hidden_units
from cl_runner.strategies.si import SI


@dataclass(frozen=True, kw_only=True)
class XdG(SI):
    """SI in a network of which each task sees a random part (Masse et al. 2018, 1802.01569).

    In each task a share `gated` of the units of every hidden stage is multiplied by 0: these units
    contribute nothing, and the weights into and out of them get no gradient. The choice is drawn
    per task, and a task's own is used to predict. Stabilisation is SI's; lambda=0 is gating alone.
    - The share is exact, as in the paper's figure 1; the authors' code draws each unit alone.
    - In a convolutional stage channels are gated. The authors' convolutions are trained
      beforehand, fixed, and not gated.
    - The authors reset Adam between tasks (here optimizer.reset=true): slots carried over go on
      moving the weights of gated units.
    - Here each task has outputs of its own; in the authors' permuted MNIST the tasks share them.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    regulariser: ClassVar[bool] = False

    lambda_: float = 0.035
    damping: float = 0.01
    gated: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.gated < 1, f"strategy.gated must lie in [0, 1), got {self.gated}")

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        network = chain(make_net(), self.name)
        units = hidden_units(network, env.input_shape)
        generator = generator_for(torch.device("cpu"), env.seed, "gates")
        tables = []
        for n in units:
            off = round(self.gated * n)
            check(
                off < n,
                f"strategy.gated={self.gated} leaves no unit of a stage that has {n}; lower it or "
                "widen the model",
            )
            order = torch.rand(env.num_tasks, n, generator=generator).argsort(1)
            tables.append((order >= off).float())
        return Gated(network, units, torch.cat(tables, 1))
