"""ridge: at its weights the gradient of its loss, written down sample by sample, is zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cl_runner.functional.closed_form import add, no_moments, ridge


def test_the_gradient_of_the_loss_is_zero_there():
    x, y, lambda_ = torch.randn(70, 7) + 2, torch.arange(70) % 3, 0.7
    moments = add(no_moments(5, 7, torch.device("cpu"), gram=True), x, y)
    weights, biases = (v[:3].requires_grad_() for v in ridge(moments, lambda_))
    target = F.one_hot(y, 3).double()
    loss = (x.double() @ weights.T + biases - target).square().sum()
    loss = loss + lambda_ * weights.square().sum()
    for gradient in torch.autograd.grad(loss, (weights, biases)):
        assert float(gradient.abs().max()) < 1e-9


def test_classes_without_samples_come_last():
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    moments = add(no_moments(4, 3, torch.device("cpu"), gram=True), x, y)
    weights, biases = ridge(moments, 1.0)
    assert not weights[2:].any() and bool((biases[2:] < -1e29).all())
