"""A convolutional network whose images become smaller by strides, without pooling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.nn.network import Network, Stage


class StridedCNN(Network):
    """3x3 convolutions, from the second on with stride 2, then hidden layers, all with ReLU.

    Each convolution is followed by BatchNorm and ReLU, but the last one, whose outputs are the
    features that the hidden layers see: the network of van de Ven et al. 2022 (Nature Machine
    Intelligence 4, 1185) for CIFAR, as their code has it. Weights start as torch draws them.
    shape: (channels, height, width) of an input.
    """

    channels_last: ClassVar[bool] = True

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: Sequence[int],
        hidden_sizes: Sequence[int],
        outputs: int,
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2 if i else 1, padding=1)
            for i, (a, b) in enumerate(pairwise([shape[0], *channels]))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in channels[:-1])
        height, width = (-(-extent >> len(channels) - 1) for extent in shape[1:])
        sizes = [channels[-1] * height * width, *hidden_sizes, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def stages(self) -> Sequence[Stage]:
        *blocks, last = self.convolutions
        *hidden, output = self.layers
        return [
            *(partial(self._block, *own) for own in zip(blocks, self.norms, strict=True)),
            last,
            *(partial(self._hidden, layer) for layer in hidden),
            lambda x: output(x.flatten(1)),
        ]

    def _block(self, convolution: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        return F.relu(norm(convolution(x)))

    def _hidden(self, layer: nn.Module, x: Tensor) -> Tensor:
        return F.relu(layer(x.flatten(1)))
