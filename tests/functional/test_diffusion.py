"""Diffusion against closed forms: of the schedule, of a point, of a normal distribution."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cl_runner.functional.diffusion import LEAST, noised, sample, signal, times


def test_the_schedule_is_the_cosine_from_all_to_nearly_nothing() -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    cosine = [math.cos((v + 0.008) / 1.008 * math.pi / 2) ** 2 for v in t.tolist()]
    expected = torch.tensor([c / cosine[0] for c in cosine[:3]] + [LEAST])
    torch.testing.assert_close(signal(t), expected)
    assert (signal(torch.linspace(0, 0.99, 100)).diff() < 0).all()


def test_the_times_are_equally_likely_and_never_0() -> None:
    uniform = torch.tensor([0.0, 0.24, 0.25, 0.74, 0.75, 1 - 2**-24])
    assert times(uniform, 4).tolist() == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_noisy_image_keeps_its_share_of_the_variance() -> None:
    x, noise = torch.full((2, 1, 1, 1), 3.0), torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    a = signal(torch.tensor([0.3, 0.8]))
    expected = a.sqrt() * 3 + (1 - a).sqrt() * noise.flatten()
    torch.testing.assert_close(noised(x, noise, torch.tensor([0.3, 0.8])).flatten(), expected)


@pytest.mark.parametrize("few", [1, 3, 10])
def test_what_is_always_expected_is_what_comes_out(few: int) -> None:
    seen = []

    def denoise(z: Tensor, time: Tensor) -> Tensor:
        seen.append(float(time[0]))
        return torch.full_like(z, 0.7)

    x = sample(denoise, torch.randn(4, 1, 2, 2), 100, few)
    assert torch.equal(x, torch.full_like(x, 0.7))
    expected = [round(100 * (1 - i / few)) / 100 for i in range(few)]
    assert seen == pytest.approx(expected)


def test_a_normal_distribution_comes_out_as_one_of_the_same_variance() -> None:
    """Of N(0, v) the expected image is known, and the deterministic sampler only scales."""
    v = 0.25

    def denoise(z: Tensor, time: Tensor) -> Tensor:
        a = signal(time)[:, None, None, None]
        return a.sqrt() * v / (a * v + 1 - a) * z

    z = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    scale = sample(denoise, z, 1000, 1000) / z
    torch.testing.assert_close(scale, torch.full_like(z, v**0.5), rtol=0.02, atol=0)


def test_few_steps_are_the_papers_by_a_plain_loop() -> None:
    def expected(z: float, time: float) -> float:
        return math.tanh(z - time)

    z, at = 0.8, [1.0, 0.67, 0.33, 0.0]
    for now, after in pairwise(at):
        a, b = (float(signal(torch.tensor(v))) for v in (now, after))
        x = expected(z, now)
        left = (z - math.sqrt(a) * x) / math.sqrt(1 - a)
        z = math.sqrt(b) * x + math.sqrt(1 - b) * left
    found = sample(
        lambda z, time: (z - time[:, None, None, None]).tanh(),
        torch.full((1, 1, 1, 1), 0.8),
        100,
        3,
    )
    assert float(found) == pytest.approx(z, rel=1e-5)
