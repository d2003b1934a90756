"""Crop and flip against the same thing done pixel by pixel."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_runner.data.augment import crop, crop_flip, shift

STAY = 4.5 / 9  # the uniform in the middle of those that give a shift of 4, which moves nothing


def images(number: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (number, *shape), dtype=torch.uint8, generator=generator)


def pixel_by_pixel(x: np.ndarray, uniform: np.ndarray, most: int = 4) -> np.ndarray:
    """Pad by 4, cut out at (floor(9 u1), floor(9 u2)), mirror if u3 < 1/2."""
    out, places = np.zeros_like(x), 2 * most + 1
    B, C, H, W = x.shape
    for b in range(B):
        down, right = int(places * uniform[b, 0]), int(places * uniform[b, 1])
        for c, i, j in np.ndindex(C, H, W):
            column = W - 1 - j if uniform[b, 2] < 0.5 else j
            row, column = i + down - most, column + right - most
            if 0 <= row < H and 0 <= column < W:
                out[b, c, i, j] = x[b, c, row, column]
    return out


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 10), (2, 5, 3)])
def test_crop_flip_pixel_by_pixel(shape: tuple[int, int, int]) -> None:
    x, generator = images(20, *shape), torch.Generator().manual_seed(1)
    uniform = torch.rand(20, 3, generator=generator)
    uniform[0], uniform[1] = 0.0, 1 - 2**-24  # the ends of the interval
    out = crop_flip(x, uniform)
    assert out.dtype == torch.uint8
    assert out.stride() == x.stride()  # with one channel is_contiguous() says less
    np.testing.assert_array_equal(out.numpy(), pixel_by_pixel(x.numpy(), uniform.numpy()))
    floating = crop_flip(x.float(), uniform)
    assert torch.equal(floating, out.float())


def test_shift_4_without_flip_is_the_identity() -> None:
    x = images(3, 2, 6, 6)
    assert torch.equal(crop_flip(x, torch.tensor([[STAY, STAY, 0.5]]).expand(3, 3)), x)


def test_shift_4_with_flip_mirrors_left_and_right() -> None:
    x = images(3, 2, 6, 5)
    assert torch.equal(crop_flip(x, torch.tensor([[STAY, STAY, 0.49]]).expand(3, 3)), x.flip(3))


def test_zeros_move_in() -> None:
    x = images(1, 1, 8, 8)
    down = crop_flip(x, torch.tensor([[0.0, STAY, 0.9]]))
    assert bool((down[:, :, :4] == 0).all())
    assert torch.equal(down[:, :, 4:], x[:, :, :4])
    left = crop_flip(x, torch.tensor([[STAY, 0.999, 0.9]]))
    assert bool((left[..., 4:] == 0).all())
    assert torch.equal(left[..., :4], x[..., 4:])


def test_all_shifts_and_both_sides_are_equally_likely() -> None:
    # The position of one bright pixel tells the shift; an even grid of uniforms gives exact counts.
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    grid = (torch.arange(18) + 0.5) / 18
    uniform = torch.cartesian_prod(grid, grid, torch.tensor([0.25, 0.75]))
    counts = crop_flip(x.expand(len(uniform), -1, -1, -1), uniform).sum((0, 1))
    assert bool((counts == len(uniform) / 81).all())


def test_crop_is_crop_flip_without_the_flip() -> None:
    x = torch.arange(3 * 2 * 6 * 6, dtype=torch.uint8).view(3, 2, 6, 6)
    uniform = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    unflipped = uniform.clone()
    unflipped[:, 2] = 0.9
    assert torch.equal(crop(x, uniform), crop_flip(x, unflipped))
    assert not torch.equal(crop(x, uniform), crop_flip(x, uniform * 0.5))


@pytest.mark.parametrize(("height", "most"), [(8, 1), (5, 1), (28, 3)])
def test_shift_is_a_crop_by_an_eighth_that_mirrors_nothing(height: int, most: int) -> None:
    x, uniform = images(6, 2, height, 6), torch.rand(6, 3)
    uniform[0], uniform[1] = 0.0, 1 - 2**-24
    uniform[:, 2] = 0.9
    expected = pixel_by_pixel(x.numpy(), uniform.numpy(), most)
    uniform[:, 2] = 0.1
    np.testing.assert_array_equal(shift(x, uniform).numpy(), expected)
