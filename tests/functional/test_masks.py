"""Masks of weights: which values they take, and what passes them."""

from __future__ import annotations

import torch

from cl_runner.functional.masks import largest, signed_constants, straight_through


def test_the_value_is_the_hard_ones_and_the_gradient_the_soft_ones():
    soft = torch.tensor([0.3, -1.7e3, 1e-8], requires_grad=True)
    hard = torch.tensor([1.0, 0.0, 1.0])
    value = straight_through(hard, soft.square())
    assert torch.equal(value, hard)
    (gradient,) = torch.autograd.grad(value @ torch.tensor([1.0, 2.0, 3.0]), soft)
    torch.testing.assert_close(gradient, torch.tensor([1.0, 2.0, 3.0]) * 2 * soft.detach())


def test_the_largest_are_a_share_and_their_equals():
    values = torch.tensor([[0.1, 0.4, 0.4], [0.3, 0.0, 0.9]])
    for share, count in ((0.01, 1), (1 / 6, 1), (0.3, 3), (0.5, 3), (0.6, 4), (1.0, 6)):
        chosen = largest(values, share)
        assert int(chosen.sum()) == count and chosen.shape == values.shape
        assert count == 6 or values[chosen].min() >= values[~chosen].max()


def test_weights_have_one_size_in_each_layer_and_the_signs_that_were_drawn():
    layers = [torch.randn(5, 8), torch.randn(5), torch.randn(2, 3, 2, 2)]
    first, bias, last = signed_constants(layers).split([40, 5, 24])
    torch.testing.assert_close(first, layers[0].sign().flatten() * 0.5)
    torch.testing.assert_close(last, layers[2].sign().flatten() * (2 / 12) ** 0.5)
    assert not bias.any()
