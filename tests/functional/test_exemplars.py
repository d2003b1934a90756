"""Herding against the argmin over all candidates, and the classifier by means by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_runner.core import TrainState
from cl_runner.functional.exemplars import class_means, herding, nearest_mean, unit
from cl_runner.strategies.parts import features
from cl_runner.strategies.parts.features import features_of, herded


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


def test_means_stay_on_the_features_device():
    features = torch.zeros(5, 2, device="meta")
    y = torch.zeros(5, dtype=torch.int64, device="meta")
    assert class_means(features, y, 4).device == features.device


def test_scores_are_negative_squared_distances():
    features, means = random_features(6, 3, 0), random_features(4, 3, 1)
    expected = [[-float((f - m).square().sum()) for m in means] for f in features]
    torch.testing.assert_close(
        nearest_mean(features, means), torch.tensor(expected, dtype=torch.float64)
    )


def simple(x: Tensor) -> tuple[TrainState, SimpleNamespace]:
    """A network whose features are its inputs x [n, d], turned by the task's number."""

    def answers(theta: Tensor, x: Tensor, task: Tensor, *, last: int) -> Tensor:
        assert (theta.item(), last) == (7, -1)
        return torch.where(task[:, None] == 1, x.flip(1), x)

    def gather(rows: Tensor, tasks: Tensor, t: Tensor) -> SimpleNamespace:
        assert t.item() == 2
        return SimpleNamespace(x=x[rows], task=tasks)

    s = TrainState(torch.tensor(7), {}, {}, {}, torch.tensor(2))
    return s, SimpleNamespace(answers=answers, gather=gather)


def test_features_are_of_each_samples_own_task_in_chunks(monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 2)
    x = random_features(9, 3, 0)
    s, env = simple(x)
    index = torch.tensor([8, 0, 3, 3, 5])
    plain, turned = unit(x[index]), unit(x[index].flip(1))
    assert torch.equal(features_of(s, index, 0, env), plain)
    assert torch.equal(features_of(s, index, 1, env), turned)
    tasks = torch.tensor([0, 1, 0, 1, 1])
    mixed = torch.where(tasks[:, None] == 1, turned, plain)
    assert torch.equal(features_of(s, index, tasks, env), mixed)


def test_what_is_held_comes_first_and_new_samples_by_herding():
    x = random_features(20, 3, 0) + 1
    s, env = simple(x)
    task = SimpleNamespace(samples=lambda: (torch.arange(10, 20), 1))
    best = herded(s, task, env, 3)
    candidates = torch.tensor([0, 2, 3, 4, 8, 12])  # two slots, and samples 0, 1, 5 and 9
    order = herding(unit(x[[10, 11, 15, 19]].flip(1)), 4)
    expected = [0, 2, *candidates[2:][order].tolist()]
    for k in range(8):
        assert best(candidates, k).tolist() == expected[:k]
