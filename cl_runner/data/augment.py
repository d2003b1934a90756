"""Random crop and flip of image batches on their device, from uniforms that are passed in."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4  # pixels on each side


def crop_flip(x: Tensor, uniform: Tensor, flipped: float = 0.5) -> Tensor:
    """Each image shifted by up to 4 pixels (zeros move in) and mirrored with probability 1/2.

    x: [B, C, H, W]; uniform: [B, 3] for the vertical shift, the horizontal shift and the flip.
    The crop-and-flip of He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    B, _, H, W = x.shape
    shift = (uniform[:, :2] * (2 * PADDING + 1)).long()
    rows = shift[:, 0, None] + torch.arange(H, device=x.device)  # [B, H]
    columns = torch.arange(W, device=x.device).expand(B, W)
    mirrored = uniform[:, 2, None] < flipped
    columns = torch.where(mirrored, columns.flip(1), columns) + shift[:, 1, None]
    padded = F.pad(x, (PADDING,) * 4).permute(0, 2, 3, 1)  # [B, H + 8, W + 8, C]
    sample = torch.arange(B, device=x.device)[:, None, None]
    shifted = padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    # With one channel these strides pass for contiguous and for channels-last at once; on them the
    # backward pass of a residual network corrupted memory (torch 2.13, CPU).
    return shifted.clone(memory_format=torch.contiguous_format)


def crop(x: Tensor, uniform: Tensor) -> Tensor:
    """Each image shifted as by `crop_flip`, none mirrored."""
    return crop_flip(x, uniform, flipped=0.0)


# training.augment -> (images [B, C, H, W], uniforms [B, 3]) -> images
AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "crop": crop,
    "crop_flip": crop_flip,
}
