"""From an image as the data set gives it to the network's input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.exporting.description import Description


class Preparation(nn.Module):
    """Resizing, zero padding, and x * scale + shift, as the run's data were prepared.

    What a frozen part of the network computes of an image before the part that was trained belongs
    behind it: it gives that part's input.
    """

    scale: Tensor  # [C, 1, 1]
    shift: Tensor | None

    def __init__(self, of: Description) -> None:
        super().__init__()
        self.given = of.given_shape
        self.dtype = torch.uint8 if of.dtype == "uint8" else torch.float32
        self.resize = of.resize
        self.images = of.given_shape[1] > 1
        height, width = (of.resize, of.resize) if of.resize else of.given_shape[1:]
        left, top = (of.input_shape[2] - width) // 2, (of.input_shape[1] - height) // 2
        right, bottom = of.input_shape[2] - width - left, of.input_shape[1] - height - top
        self.padding = (left, right, top, bottom)
        self.register_buffer("scale", torch.tensor(of.scale)[:, None, None])
        shift = None if of.shift is None else torch.tensor(of.shift)[:, None, None]
        self.register_buffer("shift", shift)

    def check(self, images: Tensor) -> None:
        """Raise ValueError for what is no image as it was trained on."""
        shapes = [self.given] if self.images else [self.given, self.given[2:]]
        fits = images.dtype == self.dtype and tuple(images.shape[1:]) in shapes
        wanted = f"{str(self.dtype).removeprefix('torch.')} [B, {', '.join(map(str, shapes[-1]))}]"
        got = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        if not fits:
            raise ValueError(f"the model takes {wanted}, got {got}")

    def forward(self, images: Tensor) -> Tensor:
        """The network's input [B, C, H, W] float32 from images [B, ...]."""
        x = images.float()
        if not self.images:
            x = x.reshape(-1, *self.given)
        if self.resize is not None and tuple(self.given[1:]) != (self.resize, self.resize):
            size = (self.resize, self.resize)
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
            x = x.round().clamp(0, 255) if self.dtype == torch.uint8 else x
        if any(self.padding):
            x = F.pad(x, self.padding)
        x = x * self.scale
        return x if self.shift is None else x + self.shift
