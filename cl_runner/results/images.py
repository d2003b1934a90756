"""Pictures that a strategy makes, as PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cl_runner.results.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor


def write_grid(path: Path, images: Tensor) -> None:
    """Images [n, C, H, W] in [0, 1] as one PNG: eight a row, a pixel between them.

    Of images that have neither 1 nor 3 channels it shows the first channel.
    """
    from PIL import Image

    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    n, C, H, W = images.shape
    columns = min(n, 8)
    rows = -(-n // columns)
    sheet = np.full((rows * (H + 1) - 1, columns * (W + 1) - 1, C), 128, dtype=np.uint8)
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for i, image in enumerate(pixels):
        y, x = i // columns * (H + 1), i % columns * (W + 1)
        sheet[y : y + H, x : x + W] = image
    path.parent.mkdir(exist_ok=True)
    png = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if C == 1 else sheet).save(png, format="PNG")
    write_bytes(path, png.getvalue())
