"""An MLP whose weights are independent Gaussians, each with a mean and a width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.nn.networks import MLP


class MeanField(nn.Module):
    """Two MLPs of one shape: `mean`, and `log_std` of each of its parameters.

    As vectors, the first half of all parameters [2 P] are the means, the second the logarithms.
    """

    def __init__(self, mean: MLP, initial_std: float) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = deepcopy(mean)
        for parameter in self.log_std.parameters():
            nn.init.constant_(parameter, math.log(initial_std))

    def forward(
        self, x: Tensor, task: Tensor | int | None = None, noise: Sequence[Tensor] = ()
    ) -> Tensor:
        """Logits [B, K] by the means; or by weights drawn for each sample anew.

        noise: standard normal numbers [B, units] for each layer, whose outputs before the
        activation are Gaussian, too (local reparametrisation: Kingma et al. 2015, 1506.02557).
        """
        h = x.flatten(1)
        layers = list(zip(self.mean.layers, self.log_std.layers, strict=True))
        for i, (mean, log_std) in enumerate(layers):
            out: Tensor = mean(h)
            if noise:
                weight, bias = (2 * p for p in log_std.parameters())
                variance = F.linear(h.square(), weight.exp(), bias.exp())
                out = out + variance.sqrt() * noise[i]
            if i + 1 < len(layers):
                out = self.mean.dropout(out.relu())
            h = out
        return h
