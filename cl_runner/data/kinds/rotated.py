"""Every task shows all classes, rotated by an angle of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.config.benchmarks import Rotated
from cl_runner.core import Stream, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import CPU, every_class, stream_of
from cl_runner.errors import check


def rotated_stream(config: Rotated, arrays: Arrays, scenario: str) -> Stream:
    """Every task shows all classes, rotated by an angle of its own.

    Lopez-Paz & Ranzato 2017, arXiv 1706.08840.
    """
    height, width = arrays.x_train.shape[2:]
    check(height > 1, f"{config.name} needs images; the data are feature vectors")
    if config.angles is not None:
        degrees = torch.tensor(config.angles)
    elif config.angle_spacing == "even":
        degrees = torch.arange(config.num_tasks) * (config.max_angle / config.num_tasks)
    else:
        generator = generator_for(CPU, config.seed, "angles")
        degrees = torch.rand(config.num_tasks, generator=generator) * config.max_angle
    tables = {"grid": rotation_grid(degrees, height, width)}
    label = every_class(config, arrays, scenario)
    return stream_of(config, arrays, scenario, label, transform=rotated, tables=tables)


def rotated(x: Tensor, task: int | Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """Images [B, C, H, W], rotated counter-clockwise about their centre.

    Table: grid [T, H, W, 2], where each pixel comes from, in torch's normalised coordinates.
    Bilinear interpolation with zeros outside; uint8 images are rounded, so that an image is the
    same in the stream and in a replay.
    """
    grids, chunks = tables["grid"], []
    for at in range(0, len(x), 4096):  # bounds the memory of the float copies
        part = x[at : at + 4096]
        grid = (
            grids[task].expand(len(part), -1, -1, -1)
            if isinstance(task, int)
            else grids[task[at : at + 4096]]
        )
        turned = F.grid_sample(part.to(grids.dtype), grid, align_corners=False)
        chunks.append(turned.round().to(x.dtype) if x.dtype == torch.uint8 else turned)
    return torch.cat(chunks) if chunks else x


def rotation_grid(degrees: Tensor, height: int, width: int) -> Tensor:
    """Sampling grid [T, H, W, 2] for counter-clockwise rotations by `degrees` [T]."""
    angle = torch.deg2rad(degrees.double())
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Rotate in units of pixels, so that an image that is not square keeps its shape.
    matrix = torch.stack(
        [cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1
    ).view(-1, 2, 3)
    return F.affine_grid(matrix, [len(angle), 1, height, width], align_corners=False).float()
