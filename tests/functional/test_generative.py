"""Losses of generative models against closed forms, torch.distributions and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from cl_runner.functional.generative import (
    answer_error,
    answers,
    bernoulli_error,
    critic_error,
    elbo_error,
    gaussian_kl,
    log_mixture,
    log_normal,
    normal,
    slope_error,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_normal_numbers_have_the_normal_quantiles_and_are_finite() -> None:
    uniform = torch.tensor([0.0, 0.025, 0.5, 0.975, 1 - 2**-24])
    z = normal(uniform)
    torch.testing.assert_close(z[1:4], torch.tensor([-1.959964, 0.0, 1.959964]))
    assert z.isfinite().all()
    many = normal(rand(100_000))
    assert abs(float(many.mean())) < 0.02 and abs(float(many.std()) - 1) < 0.02


def test_gaussian_kl_is_that_of_torch_distributions() -> None:
    mean, log_variance = randn(5, 3), randn(5, 3, seed=1)
    q = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(q, Normal(torch.zeros(3), torch.ones(3))).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)


def test_the_log_density_of_a_mixture_is_that_of_torch_distributions() -> None:
    z, share = randn(5, 3), rand(5, 2, seed=1) + 0.1
    means, log_variances = randn(2, 3, seed=2), randn(2, 3, seed=3)
    parts = [Normal(means[k], (0.5 * log_variances[k]).exp()).log_prob(z).sum(1) for k in range(2)]
    torch.testing.assert_close(log_normal(z, means[0], log_variances[0]), parts[0])
    expected = (share[:, 0] * parts[0].exp() + share[:, 1] * parts[1].exp()).log()
    torch.testing.assert_close(log_mixture(z, share, means, log_variances), expected)


def test_a_label_picks_its_part_of_a_mixture_and_no_gradient_is_lost() -> None:
    z, means, label = (
        randn(4, 3).requires_grad_(),
        randn(2, 3, seed=2).requires_grad_(),
        [1, 0, 0, 1],
    )
    share = torch.eye(2)[label]
    density = log_mixture(z, share, means, torch.zeros(2, 3))
    torch.testing.assert_close(density, log_normal(z, means[label], torch.zeros(4, 3)))
    density.sum().backward()
    torch.testing.assert_close(z.grad, (means[label] - z).detach())
    assert means.grad.isfinite().all()


def test_bernoulli_error_is_minus_the_log_probability_of_binary_pixels() -> None:
    logits, x = randn(5, 1, 2, 3), rand(5, 1, 2, 3).round()
    expected = -Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_error(logits, x), expected)


def test_the_bound_is_tight_at_the_true_posterior_and_only_there() -> None:
    """One pixel that is on with probability 1/4 whatever z: log p(x) is known."""
    x = torch.tensor([[1.0], [0.0]])
    evidence = torch.tensor([0.25, 0.75]).log()

    def decode(z: Tensor) -> Tensor:
        return torch.full((len(z), 1), 0.25).logit()

    prior = elbo_error(lambda x: torch.zeros(len(x), 4), decode, x, rand(2, 2))
    torch.testing.assert_close(-prior, evidence)
    other = elbo_error(lambda x: torch.full((len(x), 4), 0.5), decode, x, rand(2, 2))
    assert (-other < evidence - 0.1).all()


def test_the_bound_samples_z_with_the_encoders_mean_and_deviation() -> None:
    mean, deviation, u = 2.0, 3.0, rand(1, 1)
    seen = []

    def decode(z: Tensor) -> Tensor:
        seen.append(z)
        return z

    code = torch.tensor([[mean, 2 * torch.tensor(deviation).log()]])
    elbo_error(lambda _: code, decode, torch.ones(1, 1), u)
    torch.testing.assert_close(seen[0], mean + deviation * normal(u))


def test_the_slope_of_a_linear_critic_is_its_weight() -> None:
    w = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(slope_error(lambda x: x @ w, randn(5, 2)), torch.full((5,), 16.0))
    zero = slope_error(lambda x: (0 * x).sum(1), randn(5, 2))
    torch.testing.assert_close(zero, torch.ones(5))


def hidden_critic(w: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x @ w[:6].view(2, 3)) @ w[6:]


def test_the_slope_error_has_the_gradient_of_double_backward() -> None:
    w = randn(9).requires_grad_()
    x = randn(5, 2, seed=1)
    slope_error(lambda x: hidden_critic(w, x), x).mean().backward()
    gradient, w.grad = w.grad, None
    x.requires_grad_()
    (slope,) = torch.autograd.grad(hidden_critic(w, x).sum(), x, create_graph=True)
    (slope.square().sum(1).sqrt() - 1).square().mean().backward()
    torch.testing.assert_close(gradient, w.grad)
    functional = torch.func.grad(
        lambda w: slope_error(lambda x: hidden_critic(w, x), x.detach()).mean()
    )(w.detach())
    torch.testing.assert_close(functional, w.grad)


def test_the_critics_error_is_penalised_at_the_stated_points_between() -> None:
    """critic(x) = |x|^2 / 2 has the slope |x|."""
    x, fake = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 7.0)

    def critic(x: Tensor) -> Tensor:
        return 0.5 * x.square().sum((1, 2, 3))

    actual = critic_error(critic, x, fake, torch.tensor([0.0, 0.75]), 10.0)
    expected = torch.tensor([20.0 + 10 * (7 - 1) ** 2, 20.0 + 10 * (4 - 1) ** 2])
    torch.testing.assert_close(actual, expected)


HEADS = torch.tensor([[[True, True, False, False]], [[False, True, True, True]]])  # [H, 1, K]


def test_hard_answers_are_the_likeliest_of_the_heads_classes() -> None:
    logits = torch.tensor([[1.0, 2.0, 9.0, 0.0], [3.0, 2.0, 0.0, 2.5]])
    chosen = answers(logits, HEADS, None)
    assert chosen.argmax(-1).tolist() == [[1, 0], [2, 3]]
    assert torch.equal(chosen.sum(-1), torch.ones(2, 2)) and set(chosen.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_answers_are_a_softmax_over_the_heads_classes(temperature: float) -> None:
    logits = randn(3, 4)
    soft = answers(logits, HEADS, temperature)
    for h, (head,) in enumerate(HEADS):
        own = (logits[:, head] / temperature).softmax(1)
        torch.testing.assert_close(soft[h][:, head], own)
        assert (soft[h][:, ~head] == 0).all()


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_the_error_of_an_answer_is_its_cross_entropy_over_the_shown_classes(temperature) -> None:
    """Shown are more classes than the answer knows, as when new ones have come."""
    logits, old = randn(3, 4), randn(3, 4, seed=1)
    target = answers(old, torch.tensor([[[True, True, False, False]]]), temperature)
    shown = torch.tensor([[[True, True, True, False]]])
    actual = answer_error(logits, target, shown, temperature)
    for b in range(3):
        p = (old[b, :2] / (temperature or 1)).softmax(0)
        if temperature is None:
            p = (p == p.max()).float()
        log_q = (logits[b, :3] / (temperature or 1)).log_softmax(0)
        torch.testing.assert_close(actual[0, b], -(p[0] * log_q[0] + p[1] * log_q[1]))


@pytest.mark.parametrize("batch", [1, 3])
def test_without_a_mask_all_classes_are_shown(batch: int) -> None:
    logits, target = randn(batch, 4), answers(randn(batch, 4, seed=1), HEADS[[0, 1, 0]], None)
    everything = torch.ones(1, 1, 4, dtype=torch.bool)
    torch.testing.assert_close(
        answer_error(logits, target, None, None), answer_error(logits, target, everything, None)
    )


def test_a_head_without_classes_is_finite() -> None:
    none = torch.zeros(1, 1, 4, dtype=torch.bool)
    target = answers(randn(3, 4), none, 2.0)
    assert answer_error(randn(3, 4, seed=1), target, none, 2.0).isfinite().all()


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_a_head_without_classes_answers_over_every_one_and_the_others_over_theirs(temperature):
    logits, heads = randn(3, 4), torch.tensor([[[False] * 4], [[True, True, False, False]]])
    every = torch.tensor([[[True] * 4]])
    found = answers(logits, heads, temperature)
    assert torch.equal(found[:1], answers(logits, every, temperature))
    assert torch.equal(found[1:], answers(logits, heads[1:], temperature))
    error = answer_error(logits, found, heads, temperature)
    assert torch.equal(error[:1], answer_error(logits, found[:1], every, temperature))
    assert torch.equal(error[1:], answer_error(logits, found[1:], heads[1:], temperature))


def test_a_head_may_differ_from_sample_to_sample() -> None:
    """As where each generated sample belongs to a task that is known."""
    logits, old = randn(2, 4), randn(2, 4, seed=1)
    own = HEADS.view(1, 2, 4)
    target = answers(old, own, 2.0)
    error = answer_error(logits, target, own, 2.0)
    for b in range(2):
        one = answers(old[b : b + 1], HEADS[b : b + 1], 2.0)
        assert torch.equal(target[:, b], one[:, 0])
        alone = answer_error(logits[b : b + 1], one, HEADS[b : b + 1], 2.0)
        torch.testing.assert_close(error[0, b], alone[0, 0])


def test_hard_answers_stay_on_their_device() -> None:
    logits, heads = torch.zeros(3, 4, device="meta"), HEADS.to("meta")
    assert answers(logits, heads, None).device == logits.device
