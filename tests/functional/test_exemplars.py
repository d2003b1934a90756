"""Herding against the argmin over all candidates, and the classifier by means by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_runner.functional.exemplars import class_means, herding, nearest_mean, unit


def random_features(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_brute_force(features: Tensor, k: int) -> list[int]:
    """Algorithm 4 of iCaRL as it is written, over the candidates not yet chosen."""
    rows, chosen = features.numpy(), list[int]()
    mean = rows.mean(0)
    for _ in range(min(k, len(rows))):
        left = [i for i in range(len(rows)) if i not in chosen]
        distances = [np.linalg.norm(mean - rows[[*chosen, i]].mean(0)) for i in left]
        chosen.append(left[int(np.argmin(distances))])
    return chosen


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("n", "d", "k"), [(30, 4, 12), (25, 1, 25), (5, 3, 9), (1, 2, 1)])
def test_herding_is_the_argmin_over_all_candidates(n: int, d: int, k: int, normalised: bool):
    for seed in range(5):
        features = random_features(n, d, seed) + 1
        features = unit(features) if normalised and d > 1 else features
        before = features.clone()
        assert herding(features, k).tolist() == by_brute_force(features, k)
        assert torch.equal(features, before)


def test_fewer_exemplars_are_the_first_of_more():
    """So that dropping the last ones is the same as having chosen fewer."""
    features = unit(random_features(60, 5, 0))
    order = herding(features, 60)
    assert sorted(order.tolist()) == list(range(60))
    for k in (1, 7, 30):
        assert torch.equal(herding(features, k), order[:k])


def test_the_mean_of_few_is_closer_to_the_mean_of_all_than_any_of_100_draws():
    features = unit(random_features(200, 8, 0) + 0.5)
    mean, order = features.mean(0), herding(features, 10)
    generator = torch.Generator().manual_seed(0)
    draws = [
        (features[torch.randperm(200, generator=generator)[:10]].mean(0) - mean).norm()
        for _ in range(100)
    ]
    assert (features[order].mean(0) - mean).norm() < min(draws)


def test_features_have_length_one_and_no_feature_is_no_nan():
    features = unit(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]))
    torch.testing.assert_close(features, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_class_means_have_length_one_and_are_zero_without_samples():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    means = class_means(features, torch.tensor([2, 2, 0]), 4)
    half = 0.5**0.5
    expected = torch.tensor([[0.0, 1.0], [0.0, 0.0], [half, half], [0.0, 0.0]])
    torch.testing.assert_close(means, expected)


def test_scores_are_negative_squared_distances():
    features, means = random_features(6, 3, 0), random_features(4, 3, 1)
    expected = [[-float((f - m).square().sum()) for m in means] for f in features]
    torch.testing.assert_close(
        nearest_mean(features, means), torch.tensor(expected, dtype=torch.float64)
    )
