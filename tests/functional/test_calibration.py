"""Calibration of probabilities chosen by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cl_runner.functional.calibration import BINS, calibration, calibration_sums, confusion


def of(p: list[list[float]], y: list[int]) -> dict[str, float]:
    return calibration(
        calibration_sums(torch.tensor(p, dtype=torch.float64).log(), torch.tensor(y))
    )


def test_nll_and_brier_by_hand():
    scores = of([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2]], [0, 2])
    assert scores["NLL"] == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2)
    first, second = 0.3**2 + 0.2**2 + 0.1**2, 0.3**2 + 0.5**2 + 0.8**2
    assert scores["Brier"] == pytest.approx((first + second) / 2)


def test_expected_calibration_error_by_hand():
    """Of fifteen bins 0.61 and 0.65 share (9, 10], 0.9 is in (13, 14], and 1/3 in (4, 5]."""
    p = [[0.61, 0.39, 0], [0.65, 0.35, 0], [0.9, 0.1, 0], [1 / 3, 1 / 3 - 1e-9, 1 / 3 - 1e-9]]
    shared, alone, third = abs(1 - (0.61 + 0.65)), abs(1 - 0.9), abs(0 - 1 / 3)
    assert of(p, [0, 1, 0, 1])["ECE"] == pytest.approx((shared + alone + third) / 4)


def test_a_sure_network_that_is_right_or_wrong():
    assert of([[1, 0], [0, 1]], [0, 1]) == {"NLL": 0, "Brier": 0, "ECE": 0}
    wrong = of([[1, 0], [0, 1]], [1, 0])
    assert wrong == {"NLL": math.inf, "Brier": 2, "ECE": 1}


def test_a_uniform_network_is_calibrated_at_chance():
    scores = of([[0.25] * 4] * 8, [0, 1, 2, 3] * 2)
    assert scores["ECE"] == pytest.approx(0)  # the first class is always taken: a quarter is right
    assert scores["NLL"] == pytest.approx(math.log(4)) and scores["Brier"] == pytest.approx(0.75)


def test_batches_add_up_and_masked_classes_have_no_probability():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 6, generator=generator)
    y = torch.randint(0, 3, (50,), generator=generator)
    masked = scores.masked_fill(torch.arange(6) >= 3, -math.inf)
    parts = calibration_sums(masked[:20], y[:20]) + calibration_sums(masked[20:], y[20:])
    alone = calibration(calibration_sums(scores[:, :3], y))
    for name, value in calibration(parts).items():
        assert value == pytest.approx(alone[name])
    assert torch.equal(confusion(masked, y)[:3, :3], confusion(scores[:, :3], y))


def test_the_bins_of_the_lowest_confidence_of_the_highest_and_of_none():
    of_chance = calibration_sums(torch.zeros(4, 30), torch.tensor([0, 0, 0, 7]))
    assert of_chance[0].tolist() == pytest.approx([4, 4 / 30, 3])
    assert not of_chance[1:BINS].any()
    sure = calibration_sums(torch.tensor([[0.0, -math.inf]]), torch.tensor([0]))
    assert sure[BINS - 1].tolist() == [1, 1, 1]
    diverged = calibration_sums(torch.full((1, 2), math.nan), torch.tensor([0]))
    assert diverged[0, 0] == diverged[BINS, 0] == 1  # counted, with scores that are no numbers
    assert math.isnan(diverged[BINS, 1])


def test_confusion_against_a_loop():
    scores = torch.tensor([[2.0, 1, 0], [0, 3, 1], [0, 3, 1], [5, 0, 1]])
    y = torch.tensor([0, 1, 2, 2])
    assert confusion(scores, y).tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
