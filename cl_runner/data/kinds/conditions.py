"""Every task shows all classes under a condition: light, contrast, noise, blur, occlusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.config.benchmarks import Conditions
from cl_runner.core import Stream, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import CPU, distinct, every_class, stream_of
from cl_runner.errors import check

FIELD = 2**16  # values of a task's noise, from which each image takes as many as it has


def conditions_stream(config: Conditions, arrays: Arrays, scenario: str) -> Stream:
    """Every task shows all classes under a condition, by its severity s in [0, 1]; 0 changes none.

    For images in [0, 1] of height H and width W:
    - brightness: x + s.
    - contrast: 1/2 + (1 - s) (x - 1/2).
    - noise: x + s/2 n, n normal.
    - blur: a Gaussian of standard deviation s/8 min(H, W) pixels, the border repeated.
    - occlusion: zeros in a rectangle of s H by s W pixels at a place that benchmark.seed draws for
      the task.
    After the corruptions of Hendrycks & Dietterich 2019, arXiv 1903.12261, in measures of ours;
    streams of them: Mai et al. 2021, arXiv 2101.10423. uint8 images are cut to 0 .. 255; floating
    ones, which are taken to lie in [0, 1], are not cut.
    """
    height, width = arrays.x_train.shape[2:]
    check(height > 1, f"{config.name} needs images; the data are feature vectors")
    conditions = config.conditions[: config.num_tasks]
    T = len(conditions)
    severity = torch.tensor(config.severity).expand(len(config.conditions))[:T]

    def of(condition: str) -> Tensor:
        """The severities [T], 0 of tasks under another condition."""
        there = torch.tensor([c == condition for c in conditions])
        return severity * there

    gain = 1 - of("contrast")
    tables = {
        "gain": gain,
        "offset": of("brightness") + of("contrast") / 2,
        "shown": 1 - occluders(of("occlusion"), height, width, config.seed),
    }
    tables = {name: v.view(T, 1, *v.shape[1:] or (1, 1)) for name, v in tables.items()}
    # What no task needs costs nothing.
    if "blur" in conditions:
        tables["taps"] = gaussian(of("blur") * min(height, width) / 8).view(T, -1, 1, 1, 1)
    if "noise" in conditions:
        fields = [
            torch.randn(FIELD, generator=generator_for(CPU, config.seed, "noise", t))
            for t in range(T)
        ]
        tables["noise"] = torch.stack(fields) * of("noise")[:, None] / 2
    label = every_class(replace(config, num_tasks=T), arrays, scenario)
    names = distinct(conditions)
    return stream_of(
        config, arrays, scenario, label, transform=conditioned, tables=tables, names=names
    )


def conditioned(x: Tensor, task: int | Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """Images [B, C, H, W] under the condition of task t.

    Tables: gain, offset [T, 1, 1, 1] and shown [T, 1, H, W]; noise [T, FIELD] and taps
    [T, 2 r + 1, 1, 1, 1] where a task has them. The noise of an image follows from its pixels (see
    `starts`): it is the same in the stream and in a replay, and for two equal images. uint8 images
    are rounded, and cut to 0 .. 255.
    """
    unit = 255 if x.dtype == torch.uint8 else 1
    chunks = []
    for at in range(0, len(x), 4096):  # bounds the memory of the float copies
        part = x[at : at + 4096]
        own = task if isinstance(task, int) else task[at : at + 4096]
        v = part.to(tables["gain"].dtype)
        if "taps" in tables:
            v = blurred(v, tables["taps"][own])
        v = v * tables["gain"][own] + tables["offset"][own] * unit
        if "noise" in tables:
            place = (starts(part, unit) + torch.arange(v[0].numel(), device=x.device)) % FIELD
            row = own if isinstance(own, int) else own[:, None]
            v = v + tables["noise"].flatten()[row * FIELD + place].view_as(v) * unit
        v = v * tables["shown"][own]
        chunks.append(v.round().clamp(0, 255).to(x.dtype) if x.dtype == torch.uint8 else v)
    return torch.cat(chunks) if chunks else x


def starts(x: Tensor, unit: int) -> Tensor:
    """Where in its task's noise an image's begins, [B, 1]: a hash of its pixels in 256 steps."""
    steps = (x.flatten(1) * (255 / unit)).round().long()
    factors = torch.arange(steps.shape[1], device=x.device) * 40503 + 1
    return (steps * factors).sum(1, keepdim=True) % FIELD


def blurred(x: Tensor, taps: Tensor) -> Tensor:
    """Images [B, C, H, W] weighted by taps [2 r + 1, 1, 1, 1], or [B, 2 r + 1, 1, 1, 1] each.

    First the rows, then the columns. A sum of products for each pixel: it does not depend on what
    else is in the batch.
    """
    weights = taps.unbind(-4)
    r = len(weights) // 2
    for dim, pads in ((2, (0, 0, r, r)), (3, (r, r, 0, 0))):
        padded, size = F.pad(x, pads, mode="replicate"), x.shape[dim]
        x = sum(
            (w * padded.narrow(dim, i, size) for i, w in enumerate(weights)), torch.zeros_like(x)
        )
    return x


def gaussian(sigma: Tensor) -> Tensor:
    """Weights [T, 2 r + 1] of a Gaussian of standard deviation sigma [T] pixels, cut at 3 sigma.

    r is that of the widest; for sigma = 0, a single 1.
    """
    r = int((3 * sigma.max()).ceil())
    distance = torch.arange(-r, r + 1)
    weights = torch.exp(-0.5 * (distance / sigma[:, None].clamp_min(1e-6)) ** 2)
    return weights / weights.sum(1, keepdim=True)


def occluders(severity: Tensor, height: int, width: int, seed: int) -> Tensor:
    """Rectangles of ones [T, H, W], each `severity` [T] of the height and of the width."""
    masks = torch.zeros(len(severity), height, width)
    for t, s in enumerate(severity.tolist()):
        h, w = round(s * height), round(s * width)
        uniform = torch.rand(2, generator=generator_for(CPU, seed, "occlusion", t))
        top, left = (uniform * torch.tensor([height - h + 1, width - w + 1])).long().tolist()
        masks[t, top : top + h, left : left + w] = 1
    return masks
