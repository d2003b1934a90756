"""The pixels behind a network's inputs, and back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cl_runner.strategies.parts.pixels import has_pixels, to_inputs, to_pixels


@pytest.mark.parametrize(
    ("values", "pixels"), [([0.0, 1.0], True), ([-0.1, 0.5], False), ([0.5, 1.1], False)]
)
def test_floats_are_pixels_between_zero_and_one(values: list[float], pixels: bool) -> None:
    assert has_pixels(SimpleNamespace(x=torch.tensor(values))) is pixels


def test_bytes_are_pixels() -> None:
    assert has_pixels(SimpleNamespace(x=torch.tensor([0, 200], dtype=torch.uint8)))


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("shift", [None, -0.4])
def test_pixels_and_the_networks_inputs(white: int, shift: float | None) -> None:
    """Of a stream whose inputs are 3 / white * x + shift."""
    stream = SimpleNamespace(
        x=torch.zeros(1, dtype=torch.uint8 if white == 255 else torch.float32),
        scale=torch.tensor(3 / white),
        shift=None if shift is None else torch.tensor(shift),
        normalise=lambda x: x * (3 / white) + (shift or 0),
    )
    pixels = torch.tensor([0.0, 0.25, 1.0])
    inputs = to_inputs(pixels, stream)
    torch.testing.assert_close(inputs, 3 * pixels + (shift or 0))
    torch.testing.assert_close(to_pixels(inputs, stream), pixels)
    beyond = torch.tensor([-1.0, 4.0])
    assert to_pixels(beyond, stream).tolist() == [0, 1]
