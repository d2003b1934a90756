"""Context-dependent gating with synaptic intelligence: XdG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from cl_runner.core import generator_for
from cl_runner.errors import check, one_of
from cl_runner.nn.gated import Gated, chain, hidden_units, layers
from cl_runner.strategies.si import SI
from cl_runner.training.env import Env


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
    - initial `subnetwork`: what leads out of gated units begins larger, by the root of n / (units
      that a task sees of n), as in a network of that size: otherwise what a layer gives shrinks
      from layer to layer, and plain SGD learns a task slowly. `network`: as it is without gates, as
      the authors have it, who train 2,000 units a layer by Adam and gate 0.8 of them.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    regulariser: ClassVar[bool] = False

    lambda_: float = 0.035
    damping: float = 0.01
    gated: float = 0.5
    initial: str = "subnetwork"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("strategy.initial", self.initial, ("subnetwork", "network"))
        check(0 <= self.gated < 1, f"strategy.gated must lie in [0, 1), got {self.gated}")

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        network = chain(make_net(), self.name)
        units = hidden_units(network, env.input_shape)
        generator = generator_for(torch.device("cpu"), env.seed, "gates")
        tables, ratios = [], []
        for n in units:
            off = round(self.gated * n)
            check(
                off < n,
                f"strategy.gated={self.gated} leaves no unit of a stage that has {n}; lower it or "
                "widen the model",
            )
            order = torch.rand(env.num_tasks, n, generator=generator).argsort(1)
            tables.append((order >= off).float())
            ratios.append(n / (n - off))
        if self.initial == "subnetwork":
            with torch.no_grad():
                for layer, ratio in zip(layers(network)[1:], ratios, strict=True):
                    for parameter in layer.parameters():
                        parameter.mul_(ratio**0.5)
        return Gated(network, units, torch.cat(tables, 1))
