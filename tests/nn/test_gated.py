"""Gated networks against forward passes written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.errors import UserError
from cl_runner.nn.gated import Attention, Gated, chain, hidden_units
from cl_runner.nn.networks import CNN, MLP, ResNet

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TASK = torch.tensor([0, 1, 2, 2, 1, 0])


def networks() -> dict[str, MLP | CNN]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return {"mlp": MLP(64, [5, 7], 4, "default", 0.0), "cnn": CNN((1, 8, 8), [3, 4], 7, 4)}


def table(units: int) -> Tensor:
    return torch.rand(3, units, generator=torch.Generator().manual_seed(2))


def by_hand(net: MLP | CNN, gates: Tensor, x: Tensor) -> Tensor:
    """One sample's logits; the gates of a convolution multiply its channels before the pooling."""
    if isinstance(net, MLP):
        one, two, three = net.layers
        h = gates[:5] * F.relu(one(x.flatten()))
        h = gates[5:] * F.relu(two(h))
        return three(h)
    one, two = net.convolutions
    h = F.max_pool2d(gates[:3, None, None] * F.relu(one(x)), 2)
    h = F.max_pool2d(gates[3:7, None, None] * F.relu(two(h)), 2)
    return net.output(gates[7:] * F.relu(net.hidden(h.flatten())))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_each_sample_passes_through_its_own_tasks_gates(name: str) -> None:
    net = networks()[name]
    units = hidden_units(net, (1, 8, 8))
    assert units == {"mlp": [5, 7], "cnn": [3, 4, 7]}[name]
    gates = table(sum(units))
    expected = torch.stack([by_hand(net, gates[t], x) for x, t in zip(X, TASK, strict=True)])
    torch.testing.assert_close(Gated(net, units, gates)(X, TASK), expected)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_attention_is_the_sigmoid_of_the_scaled_table(name: str) -> None:
    net = networks()[name]
    units = hidden_units(net, (1, 8, 8))
    e = table(sum(units)) - 0.5
    attention = Attention(net, units, e, scale=10.0)
    for scale, how in ((10.0, {}), (3.0, {"scale": torch.tensor(3.0)})):
        expected = Gated(net, units, 1 / (1 + (-scale * e).exp()))(X, TASK)
        torch.testing.assert_close(attention(X, TASK, **how), expected)


def test_only_attention_is_trained() -> None:
    net = networks()["mlp"]
    assert not Gated(net, [5, 7], table(12)).table.requires_grad
    assert Attention(net, [5, 7], table(12), 1.0).table.requires_grad


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_pass_cut_in_two_is_the_whole(name: str) -> None:
    net = networks()[name]
    units = hidden_units(net, (1, 8, 8))
    gated = Gated(net, units, table(sum(units)))
    for cut in (1, 2, -1):
        halves = gated(gated(X, TASK, last=cut), TASK, first=cut)
        assert torch.equal(halves, gated(X, TASK))


def test_a_network_that_is_no_plain_chain_is_refused() -> None:
    with pytest.raises(UserError, match=r"strategy=hat .* use model=mlp or model=cnn"):
        chain(ResNet(1, (1, 1), 2, 3, "projection"), "hat")
