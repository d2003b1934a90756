"""From raw images to what a network makes of them: size, normalisation, the frozen stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cl_runner.core import Stream
from cl_runner.data.streams import brought_to
from cl_runner.nn.network import Network


class Inputs(nn.Module):
    """Raw images [B, C, H, W], uint8 or floats as the data have them -> a network's inputs.

    size: height and width that they are brought to; None: they have it. Grey images become three
    channels where scale and shift have three. It is what `Stream.normalise` does.
    """

    scale: Tensor
    shift: Tensor | None

    def __init__(self, size: int | None, scale: Tensor, shift: Tensor | None) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("scale", scale.clone(), persistent=False)
        self.register_buffer("shift", None if shift is None else shift.clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C or 3, size, size], float32 of whole numbers."""
        x = images if self.size is None else brought_to(images, self.size)
        x = (x if x.is_floating_point() else x.float()) * self.scale
        return x if self.shift is None else x + self.shift


class Extractor(nn.Module):
    """Raw images -> the features that the first `stages` stages of a network make of them.

    The network is in evaluation mode, and nothing in it is trained.
    """

    def __init__(self, inputs: Inputs, network: Network, stages: int) -> None:
        super().__init__()
        self.inputs, self.network, self.stages = inputs, network, stages
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, ...]."""
        features: Tensor = self.network(self.inputs(images), first=0, last=self.stages)
        return features


@dataclass
class Cost:
    """The costs of computing the features of the training rows and of the test rows."""

    train_seconds: float
    evaluation_seconds: float
    flops: int
    evaluation_flops: int
    joules: float | None  # of the training rows; None: nothing counts them


@dataclass(eq=False)
class Features:
    """The features that a network's frozen stages give for the samples of a stream."""

    x: Tensor  # [N, 1, 1, D] of the training rows; 0 of those that no task has
    x_test: Tensor  # [M, 1, 1, D]
    numbers: int  # of samples
    file: Path | None  # where they are kept; None: nowhere
    cost: Cost | None  # until a run has counted it; None: somebody else did, or they were read


@dataclass(frozen=True)
class OnThem:
    """What makes a run one on features: these, what they come from, what is trained on them."""

    features: Features
    extractor: Extractor
    make_net: Callable[[], nn.Module]  # of what is above them, as the model is configured


def inputs_of(stream: Stream, size: int | None = None) -> Inputs:
    """What a stream does to its images before a network sees them, but for what tasks do."""
    return Inputs(size, stream.scale, stream.shift)
