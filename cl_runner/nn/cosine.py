"""An output layer of cosines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.nn.networks import replace_output


class CosineLinear(nn.Linear):
    """scale * cos(x, w_k) for each unit k: without biases, and of no length but the scale.

    `scale`, one number, is learnt.
    """

    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def with_cosines(network: nn.Module, outputs: int, scale: float) -> nn.Module:
    """The network with a layer of cosines for its output layer. Raises UserError: it has none."""
    return replace_output(
        network, outputs, lambda layer: CosineLinear(layer.in_features, outputs, scale)
    )
