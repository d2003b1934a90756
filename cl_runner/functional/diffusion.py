"""Diffusion of images: noise that is added by a schedule, and taken away again in few steps.

Times lie in [0, 1]: 0 is the image, 1 noise. Images have values in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

OFFSET = 0.008  # of the schedule: the first step is not too small (Nichol & Dhariwal 2021)
LEAST = 1e-4  # of the image is left at time 1


def signal(time: Tensor) -> Tensor:
    """alpha(t) [...]: the share of the variance of a noisy image that is the image's.

    cos^2((t + o) / (1 + o) pi / 2), over its value at 0: the cosine schedule of Nichol & Dhariwal
    2021, arXiv 2102.09672.
    """
    angle = (time + OFFSET) / (1 + OFFSET) * math.pi / 2
    first = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2)
    return (angle.cos() / first).square().clamp(LEAST, 1)


def times(uniform: Tensor, steps: int) -> Tensor:
    """One of the times 1 / steps, 2 / steps, ..., 1 for each uniform [B] in [0, 1)."""
    return ((uniform * steps).floor() + 1).clamp_max(steps) / steps


def noised(x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """sqrt(alpha(t)) x + sqrt(1 - alpha(t)) noise for images [B, C, H, W] at times [B].

    Ho et al. 2020, arXiv 2006.11239, eq. 4.
    """
    a = signal(time)[:, None, None, None]
    return a.sqrt() * x + (1 - a).sqrt() * noise


def sample(denoise: Callable[[Tensor, Tensor], Tensor], z: Tensor, steps: int, few: int) -> Tensor:
    """Images made of noise z [B, C, H, W] in `few` of the `steps` by which the noise was added.

    denoise(z, times [B]): the image that is expected behind noisy images. Deterministic (Song et
    al. 2020, arXiv 2010.02502, eq. 12 with sigma = 0): the noise that is left, were that the image,
    is scaled to the next of the times, which are evenly spaced from 1 to 0.
    """
    x, at = z, [round(steps * (1 - i / few)) / steps for i in range(few + 1)]
    for now, after in pairwise(at):
        time = z.new_full((len(z),), now)
        a, b = (signal(z.new_full((), value)) for value in (now, after))
        x = denoise(z, time)
        z = b.sqrt() * x + (1 - b).sqrt() * (z - a.sqrt() * x) / (1 - a).sqrt()
    return x
