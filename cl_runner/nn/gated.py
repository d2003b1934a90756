"""Networks whose hidden units are gated, each task's in its own way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.errors import check
from cl_runner.nn.network import Network
from cl_runner.nn.networks import activation_shapes


class Gated(nn.Module):
    """A network that multiplies what each hidden stage gives by the task's gates, one per unit.

    The units of a convolutional stage are its channels. `table` [T, units of all hidden stages]
    holds the gates; they are fixed.
    """

    trainable = False

    def __init__(self, network: Network, units: list[int], table: Tensor) -> None:
        super().__init__()
        self.network = network
        self.units = units
        self.table = nn.Parameter(table, requires_grad=self.trainable)

    def gates(self, rows: Tensor) -> Tensor:
        """The gates [B, units] from rows of the table."""
        return rows

    def forward(
        self, x: Tensor, task: Tensor, first: int = 0, last: int | None = None, **how: Any
    ) -> Tensor:
        """As that of `Network`; tasks [B], and `how` for `gates`."""
        gates = self.gates(self.table.index_select(0, task), **how).split(self.units, 1)
        for i, stage in list(enumerate(self.network.stages()))[first:last]:
            x = stage(x)
            if i < len(gates):
                x = x * gates[i].view(*gates[i].shape, *(1,) * (x.ndim - 2))
        return x


class Attention(Gated):
    """Gates sigmoid(scale * table), trained with the network; `scale` is that of `how`, or ours."""

    trainable = True

    def __init__(self, network: Network, units: list[int], table: Tensor, scale: float) -> None:
        super().__init__(network, units, table)
        self.scale = scale

    def gates(self, rows: Tensor, scale: Tensor | None = None) -> Tensor:
        return torch.sigmoid(rows * (self.scale if scale is None else scale))


def chain(module: nn.Module, strategy: str) -> Network:
    """The network itself, if each stage is one layer. Raises UserError for any other."""
    check(
        isinstance(module, Network)
        and len(layers(module)) == len(module.stages())
        and all(isinstance(m, nn.Linear | nn.Conv2d) for m in layers(module))
        and all(p.requires_grad for p in module.parameters()),
        f"strategy={strategy} gates the layers of a plain chain of Linear and Conv2d layers; use "
        "model=mlp or model=cnn, adapter=none and model.freeze=[]",
    )
    assert isinstance(module, Network)
    return module


def layers(module: nn.Module) -> list[nn.Module]:
    """The layers that have parameters, in order."""
    return [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]


def hidden_units(network: Network, input_shape: tuple[int, int, int]) -> list[int]:
    """The number of units, or of channels, of each hidden stage."""
    return [shape[0] for shape in activation_shapes(network, input_shape)[:-1]]
