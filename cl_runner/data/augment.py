"""Random crop and flip of image batches on their device, from uniforms that are passed in."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4  # pixels on each side


def crop_flip(x: Tensor, uniform: Tensor) -> Tensor:
    """Each image shifted by up to 4 pixels (zeros move in) and mirrored with probability 1/2.

    x: [B, C, H, W]; uniform: [B, 3] for the vertical shift, the horizontal shift and the flip.
    The crop-and-flip of He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    columns = torch.arange(x.shape[3], device=x.device).expand(len(x), -1)
    columns = torch.where(uniform[:, 2, None] < 0.5, columns.flip(1), columns)
    return cropped(x, uniform, columns, PADDING)


def crop(x: Tensor, uniform: Tensor) -> Tensor:
    """Each image shifted as by `crop_flip`, none mirrored."""
    columns = torch.arange(x.shape[3], device=x.device).expand(len(x), -1)
    return cropped(x, uniform, columns, PADDING)


def shift(x: Tensor, uniform: Tensor) -> Tensor:
    """Each image shifted by up to an eighth of its height, at least a pixel (zeros move in).

    x: [B, C, H, W]; uniform: [B, 2] or more for the vertical and the horizontal shift.
    """
    columns = torch.arange(x.shape[3], device=x.device).expand(len(x), -1)
    return cropped(x, uniform, columns, max(1, x.shape[2] // 8))


def cropped(x: Tensor, uniform: Tensor, columns: Tensor, most: int) -> Tensor:
    """`columns` [B, W] of images [B, C, H, W] with `most` zeros around, cut out at random places.

    uniform: [B, 2] or more, for the vertical and the horizontal place.
    """
    B, _, H, _ = x.shape
    place = (uniform[:, :2] * (2 * most + 1)).long()
    rows = place[:, 0, None] + torch.arange(H, device=x.device)  # [B, H]
    columns = columns + place[:, 1, None]
    padded = F.pad(x, (most,) * 4).permute(0, 2, 3, 1)  # [B, H + 2 most, W + 2 most, C]
    sample = torch.arange(B, device=x.device)[:, None, None]
    moved = padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    # With one channel these strides pass for contiguous and for channels-last at once; on them the
    # backward pass of a residual network corrupted memory (torch 2.13, CPU).
    return moved.clone(memory_format=torch.contiguous_format)


# training.augment -> (images [B, C, H, W], uniforms [B, 3]) -> images
AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "crop": crop,
    "crop_flip": crop_flip,
}
