"""The data as pixels in [0, 1], which generators make and learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.core import Stream


def has_pixels(stream: Stream) -> bool:
    """Whether the data are pixels: uint8, or floats in [0, 1]."""
    x = stream.x
    return x.dtype == torch.uint8 or bool((x.min() >= 0) & (x.max() <= 1))


def to_pixels(x: Tensor, stream: Stream) -> Tensor:
    """The pixels in [0, 1] behind the network's inputs x [B, C, H, W]."""
    x = x if stream.shift is None else x - stream.shift
    return (x / (stream.scale * _white(stream))).clamp(0, 1)


def to_inputs(pixels: Tensor, stream: Stream) -> Tensor:
    """The network's inputs made of pixels [B, C, H, W] in [0, 1]."""
    return stream.normalise(pixels * _white(stream))


def _white(stream: Stream) -> int:
    """The data's value of a white pixel."""
    return 255 if stream.x.dtype == torch.uint8 else 1
