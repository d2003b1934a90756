"""Losses and penalties against sums in plain Python, autograd and closed forms."""

import math

import pytest
import torch
from torch import Tensor

from cl_runner.functional.losses import (
    cross_entropy,
    distillation,
    mask_logits,
    pulled,
    quadratic,
    quadratic_proximal,
    weighted_mean,
)

B, K, P = 7, 5, 11


def by_hand(logits: Tensor, y: Tensor, active: Tensor | None, weight: Tensor | None) -> float:
    """The weighted mean of -log softmax over the active classes, one Python float at a time."""
    total = mass = 0.0
    for b in range(len(y)):
        scores = [logits[b, c].item() for c in range(K) if active is None or bool(active[b, c])]
        w = 1.0 if weight is None else weight[b].item()
        log_sum = math.log(math.fsum(math.exp(score) for score in scores))
        total += w * (log_sum - logits[b, y[b]].item())
        mass += w
    return total / mass


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits, labels, active classes (each label among them) and weights (one of them 0)."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    y = torch.randint(K, (B,), generator=generator)
    active = torch.rand(B, K, generator=generator) < 0.5
    active[torch.arange(B), y] = True
    weight = torch.rand(B, generator=generator, dtype=torch.float64)
    weight[2] = 0
    return logits, y, active, weight


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_the_sum_written_out(batch, masked: bool, weighted: bool) -> None:
    logits, y, active, weight = batch
    arguments = y, active if masked else None, weight if weighted else None
    assert cross_entropy(logits, *arguments).item() == pytest.approx(
        by_hand(logits, *arguments), rel=1e-12
    )


def test_mask_leaves_active_logits_and_removes_the_others(batch) -> None:
    logits, _, active, _ = batch
    masked = mask_logits(logits, active)
    assert torch.equal(masked[active], logits[active])
    # Minus infinity, and not some large number: it holds for logits of any size.
    shifted = torch.softmax(mask_logits(logits - 1e6, active), 1)
    assert bool((shifted[~active] == 0).all())
    torch.testing.assert_close(shifted, torch.softmax(masked, 1), rtol=1e-6, atol=1e-9)
    assert mask_logits(logits, None) is logits


def test_inactive_classes_have_no_influence_and_no_gradient(batch) -> None:
    logits, y, active, weight = batch
    other = torch.where(active, logits, 1e4).requires_grad_()
    loss = cross_entropy(other, y, active, weight)
    assert loss.item() == cross_entropy(logits, y, active, weight).item()
    (gradient,) = torch.autograd.grad(loss, other)
    assert bool((gradient[~active] == 0).all())
    assert bool((gradient[active & (weight[:, None] > 0)] != 0).any())


def test_rows_of_weight_0_do_not_matter(batch) -> None:
    logits, y, active, weight = batch
    kept = weight > 0
    other = logits.clone()
    other[~kept] = 1e30 * torch.randn(K, generator=torch.Generator().manual_seed(1)).double()
    other.requires_grad_()
    loss = cross_entropy(other, y, active, weight)
    alone = cross_entropy(logits[kept], y[kept], active[kept], weight[kept])
    assert loss.item() == pytest.approx(alone.item(), rel=1e-14)
    (gradient,) = torch.autograd.grad(loss, other)
    assert bool((gradient[~kept] == 0).all())


def test_equal_weights_are_no_weights_whatever_their_size(batch) -> None:
    logits, y, active, weight = batch
    plain = cross_entropy(logits, y, active).item()
    for size in (1e-3, 1.0, 1e3):
        weighted = cross_entropy(logits, y, active, torch.full_like(weight, size))
        assert weighted.item() == pytest.approx(plain, rel=1e-12)


def test_a_batch_without_any_weight_has_loss_and_gradient_0(batch) -> None:
    logits, y, active, weight = batch
    logits.requires_grad_()
    loss = cross_entropy(logits, y, active, torch.zeros_like(weight))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert bool((gradient == 0).all())


def test_weighted_mean_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert weighted_mean(values, None).item() == 3
    assert weighted_mean(values, torch.tensor([1.0, 0.0, 3.0])).item() == 19 / 4


def test_distillation_is_the_sum_written_out_row_by_row() -> None:
    logits, target = torch.randn(2, 3, K, generator=torch.Generator().manual_seed(0)).double()
    classes = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 1]]).bool()
    rows = [[0, 1], range(K), [1, 2, 4]]  # over no class at all it is over every one
    found = distillation(logits, target, classes, 2.0).tolist()
    for b, own in enumerate(rows):
        p, q = (v[b, list(own)].div(2).softmax(0).tolist() for v in (target, logits))
        expected = -math.fsum(x * math.log(y) for x, y in zip(p, q, strict=True))
        assert found[b] == pytest.approx(expected)


def vectors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """theta, anchor and importance, of which two are 0; double precision."""
    generator = torch.Generator().manual_seed(seed)
    theta, anchor = torch.randn(2, P, generator=generator, dtype=torch.float64)
    importance = 10 * torch.rand(P, generator=generator, dtype=torch.float64)
    importance[[1, 4]] = 0
    return theta, anchor, importance


def test_quadratic_has_the_factor_one_half() -> None:
    assert quadratic(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([5.0])).item() == 10


@pytest.mark.parametrize("scalar", [False, True])
def test_quadratic_and_its_gradient(scalar: bool) -> None:
    theta, anchor, importance = vectors()
    importance = importance.sum() if scalar else importance
    theta.requires_grad_()
    value = quadratic(theta, anchor, importance)
    per_parameter = importance.expand(P).tolist()
    terms = zip(theta.tolist(), anchor.tolist(), per_parameter, strict=True)
    assert value.item() == pytest.approx(sum(0.5 * f * (a - b) ** 2 for a, b, f in terms))
    (gradient,) = torch.autograd.grad(value, theta)
    torch.testing.assert_close(gradient, importance * (theta - anchor).detach())


@pytest.mark.parametrize("tensor", [False, True])
def test_pulled_adds_the_gradient_of_the_quadratic(tensor: bool) -> None:
    theta, anchor, importance, grad = torch.rand(4, 5)
    leaf = theta.clone().requires_grad_()
    (3 * quadratic(leaf, anchor, importance)).backward()
    expected = grad + leaf.grad
    strength = torch.tensor(3.0) if tensor else 3.0
    torch.testing.assert_close(pulled(grad, theta, anchor, importance, strength), expected)
    torch.testing.assert_close(grad, expected)  # in place


@pytest.mark.parametrize("step", [1e-3, 0.1, 5.0])
def test_proximal_step_minimises_its_objective(step: float) -> None:
    theta, anchor, importance = vectors()

    def objective(z: Tensor) -> Tensor:
        return 0.5 * (z - theta).square().sum() + step * quadratic(z, anchor, importance)

    size = torch.tensor(step, dtype=torch.float64)
    z = quadratic_proximal(theta, anchor, importance, size).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(z), z)  # zero at the minimum of a convex function
    assert gradient.abs().max().item() < 1e-12 * (1 + step * importance.max().item())
    assert objective(z) < objective(theta)


def test_proximal_step_is_the_identity_where_the_importance_is_0() -> None:
    theta, anchor, importance = vectors()
    z = quadratic_proximal(theta, anchor, importance, torch.tensor(0.1))
    free = importance == 0
    assert torch.equal(z[free], theta[free])
    assert bool((z[~free] != theta[~free]).all())


@pytest.mark.parametrize("importance", [1e12, 1e30])
def test_proximal_step_ends_at_the_anchor_under_a_huge_importance(importance: float) -> None:
    theta, anchor, _ = (v.float() for v in vectors())
    stiff = torch.full_like(theta, importance)
    z = quadratic_proximal(theta, anchor, stiff, torch.tensor(0.1))
    torch.testing.assert_close(z, anchor, rtol=0, atol=1e-6)
    # The explicit step, which it replaces, is of no use there.
    explicit = theta - 0.1 * stiff * (theta - anchor)
    assert explicit.abs().max().item() > 1e9


def test_the_proximal_step_is_finite_at_any_size() -> None:
    theta, anchor = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    importance = torch.tensor([0.0, 1e-30, 1e30])
    for step in (1e30, float("inf")):  # lambda may be larger than float32 can tell
        moved = quadratic_proximal(theta, anchor, importance, torch.tensor(step))
        assert moved[0] == 1.0
        assert moved[2] == 0.0
        assert bool(torch.isfinite(moved).all())
