"""A network with units in reserve computes what it did without."""

from __future__ import annotations

import torch

from cl_runner.nn.flat import Flat
from cl_runner.nn.growing import hidden_sizes, indices, layers, stamped, units, with_reserve
from cl_runner.nn.networks import MLP


def small_and_large() -> tuple[MLP, MLP]:
    torch.manual_seed(0)
    net = MLP(6, [5, 4], 3, "default", 0.0)
    return net, with_reserve(net, 2)


def test_the_reserve_changes_no_output_and_gets_no_gradient():
    net, large = small_and_large()
    x = torch.randn(10, 6)
    torch.testing.assert_close(large(x), net(x))
    large(x).square().sum().backward()
    first, second, last = (layer.weight.grad for layer in large.layers)
    assert [tuple(g.shape) for g in (first, second, last)] == [(7, 6), (6, 7), (3, 6)]
    assert not first[5:].any() and not second[4:].any()
    assert not second[:, 5:].any() and not last[:, 4:].any()
    assert first[:5].any() and second[:4, :5].any() and last[:, :4].any()


def test_units_and_stamps_are_laid_out_by_hidden_layer():
    _, large = small_and_large()
    flat = Flat(large)
    assert hidden_sizes(flat) == [7, 6]
    assert [tuple(weight.shape) for weight, _ in layers(flat, flat.theta)] == [
        (7, 6),
        (6, 7),
        (3, 6),
    ]
    stamp = torch.tensor([0] * 5 + [9] * 2 + [0] * 4 + [9] * 2)
    free = indices(flat, stamp == 9, 1)
    assert [i.tolist() for i in free] == [[5], [4]]
    new = stamped(flat, stamp, free, 3)
    assert new.tolist() == [0] * 5 + [3, 9] + [0] * 4 + [3, 9]
    assert stamp.tolist() == [0] * 5 + [9] * 2 + [0] * 4 + [9] * 2
    inputs, first, second, outputs = units(flat, new == 3, torch.tensor([True, False, True]))
    assert inputs.all() and len(inputs) == 6
    assert first.nonzero().tolist() == [[5]] and second.nonzero().tolist() == [[4]]
    assert outputs.tolist() == [True, False, True]
