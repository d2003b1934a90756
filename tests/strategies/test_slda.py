"""slda: its weights by the covariance of single samples, and by the likelihood of Gaussians."""

from __future__ import annotations

import torch
from torch.distributions import MultivariateNormal

from cl_runner.functional.closed_form import add, discriminant, no_moments


def test_the_scores_are_those_of_gaussians_with_a_shared_covariance():
    x, y, epsilon = torch.randn(80, 6) @ torch.randn(6, 6) + 1, torch.arange(80) % 4, 0.03
    weights, biases = discriminant(
        add(no_moments(4, 6, torch.device("cpu"), gram=True), x, y), epsilon
    )
    x = x.double()
    means = torch.stack([x[y == c].mean(0) for c in range(4)])
    covariance = torch.zeros(6, 6).double()
    for one, c in zip(x, y, strict=True):
        covariance += torch.outer(one - means[c], one - means[c]) / 80
    covariance = (1 - epsilon) * covariance + epsilon * torch.eye(6).double()
    new = torch.randn(50, 6).double()
    likelihood = torch.stack(
        [MultivariateNormal(mean, covariance).log_prob(new) for mean in means], 1
    )
    scores = new @ weights.T + biases
    torch.testing.assert_close(scores.log_softmax(1), likelihood.log_softmax(1))
