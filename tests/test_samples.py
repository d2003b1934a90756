"""How far generated images are off, as scripts/samples.py measures it."""

from __future__ import annotations

import pytest
import torch
from samples import distances, frechet

from cl_runner.strategies.parts.pixels import to_pixels


def test_the_distance_of_normal_distributions_in_closed_form() -> None:
    """For variances that lie along the same axes it is the distance of means and deviations."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    own, other = corners * torch.tensor([3.0, 1.0]), corners * torch.tensor([2.0, 5.0])
    unbiased = 4 / 3  # the corners' variance
    expected = 7.0**2 + 2.0**2 + unbiased * ((3 - 2) ** 2 + (1 - 5) ** 2)
    moved = other + torch.tensor([7.0, -2.0])
    assert frechet(own, moved) == pytest.approx(expected)
    assert frechet(own, own) == pytest.approx(0, abs=1e-5)


def test_images_of_the_data_set_are_nearer_than_blurred_ones(prepared) -> None:
    _, _, env = prepared("benchmark=split_digits", "strategy=naive")
    images = to_pixels(env.stream.normalise(env.stream.x), env.stream)
    near = distances(images, env)
    blurred = distances((images + images.mean(0)) / 2, env)
    assert near["samples"].sum() == len(images) and (near["samples"] > 100).all()
    assert (near["distance"] <= near["of_training_images"] + 1e-3).all()
    assert blurred["distance"].mean() > 1.5 * near["distance"].mean()
