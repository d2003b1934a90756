"""ncm: its scores rank the classes as the distances to their means do."""

from __future__ import annotations

import torch

from cl_runner.functional.closed_form import add, nearest_mean, no_moments


def test_the_highest_score_is_that_of_the_nearest_mean():
    x, y = torch.randn(60, 5) + 3, torch.arange(60) % 4
    moments = add(no_moments(6, 5, torch.device("cpu"), gram=False), x, y)
    assert "gram" not in moments
    weights, biases = nearest_mean(moments)
    means = torch.stack([x[y == c].double().mean(0) for c in range(4)])
    new = torch.randn(200, 5).double() + 3
    scores = new @ weights.T + biases
    distances = torch.cdist(new, means).square()
    torch.testing.assert_close(-2 * scores[:, :4] + new.square().sum(1, keepdim=True), distances)
    assert float(scores[:, 4:].max()) < -1e29
