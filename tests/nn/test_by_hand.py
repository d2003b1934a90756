"""The backward pass of an MLP that is written out, against autograd's."""

import pytest
import torch
import torch.nn.functional as F

from cl_runner.nn import by_hand
from cl_runner.nn.flat import Flat
from cl_runner.nn.networks import CNN, MLP

SIZES = [[], [6], [7, 5], [9, 4, 8]]


def flat_of(sizes, outputs=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Flat(MLP(16, sizes, outputs, "default", 0.0))


def batch(seed=1, size=8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 1, 4, 4, generator=generator)
    return x, torch.randint(3, (size,), generator=generator)


@pytest.mark.parametrize("sizes", SIZES)
def test_gradient_and_logits_are_those_of_autograd(sizes):
    flat, (x, y) = flat_of(sizes), batch()
    logits = flat.module(x)
    loss = F.cross_entropy(logits, y)
    parts = torch.autograd.grad(loss, flat.parameters)
    with flat.descent():
        ours = flat.call(flat.theta, x, 0)
        assert type(ours.grad_fn).__name__ == "BackpropagationBackward"
        F.cross_entropy(ours, y).backward()
    assert torch.equal(ours, logits)
    expected = torch.cat([part.flatten() for part in parts])
    torch.testing.assert_close(flat.gradient(), expected, rtol=1e-5, atol=1e-7)
    assert flat.gradient().abs().max() > 0


@pytest.mark.parametrize("passes", [2, 3])
def test_the_gradients_of_several_passes_add_up(passes):
    flat = flat_of([7, 5])
    batches = [batch(seed) for seed in range(passes)]
    expected = sum(
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(F.cross_entropy(flat.module(x), y), flat.parameters)
            ]
        )
        for x, y in batches
    )
    with flat.descent():
        sum(F.cross_entropy(flat.call(flat.theta, x, 0), y) for x, y in batches).backward()
    torch.testing.assert_close(flat.gradient(), expected, rtol=1e-5, atol=1e-7)


def test_it_is_a_derivative_of_second_order_nowhere():
    """Whoever differentiates twice must be told, not given a wrong number."""
    flat, (x, _) = flat_of([6]), batch()
    with flat.descent():
        (grad,) = torch.autograd.grad(
            flat.call(flat.theta, x, 0).square().sum(), flat.theta, create_graph=True
        )
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


def test_outside_a_step_the_gradient_flows_to_the_parameters_and_to_the_inputs():
    flat, (x, _) = flat_of([6]), batch()
    x.requires_grad_()
    flat.call(flat.theta, x, 0).sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is not None for p in flat.parameters)


def test_in_a_step_inputs_that_ask_for_a_gradient_get_it():
    flat, (x, _) = flat_of([6]), batch()
    x.requires_grad_()
    with flat.descent():
        flat.call(flat.theta, x, 0).sum().backward()
    assert x.grad.abs().max() > 0
    assert flat.gradient().abs().max() > 0


def test_it_applies_to_a_plain_mlp_alone():
    class Own(MLP):
        def forward(self, x, task=None, first=0, last=None):
            return super().forward(2 * x, task, first, last)

    assert by_hand.applies_to(MLP(4, [3], 2, "default", 0.0))
    assert not by_hand.applies_to(MLP(4, [3], 2, "default", 0.5))
    assert not by_hand.applies_to(Own(4, [3], 2, "default", 0.0))
    assert not by_hand.applies_to(CNN((1, 4, 4), [3], 5, 3))
    frozen = MLP(4, [3], 2, "default", 0.0)
    frozen.layers[0].weight.requires_grad_(False)
    assert not by_hand.applies_to(frozen)
