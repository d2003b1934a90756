"""Progressive columns against equation 2 written out; copies against the network they copy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.nn.columns import Columns, Copies
from cl_runner.nn.networks import MLP, build

INPUTS, HIDDEN, OUTPUTS, T = 6, [7, 5], 4, 4


def columns(adapter_size: int | None = None, tasks: int = T, dropout: float = 0.0) -> Columns:
    """A network all of whose parameters, the scalars too, differ."""

    def make() -> Columns:
        mlps = [MLP(INPUTS, HIDDEN, OUTPUTS, "default", dropout) for _ in range(tasks)]
        net = Columns(mlps, adapter_size, 0.1)
        for p in net.parameters():
            p.data = torch.randn_like(p)
        return net.double()

    return build(make, seed=0)


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, 1, 2, 3, generator=generator, dtype=torch.float64)


def equation_2(net: Columns, x: Tensor, column: int) -> Tensor:
    """h_i^k = f(W_i^k h_{i-1}^k + U_i^k relu(V_i^k alpha h_{i-1}^{<k})), column after column."""
    h: list[list[Tensor]] = []  # h[k][i]
    for k in range(column + 1):
        h.append([x.flatten(1)])
        for i in range(3):
            z = h[k][i] @ net.W[i][k].T + net.b[i][k]
            if i > 0 and k > 0:
                lateral = net.adapters[i - 1]
                pairs = [k * (k - 1) // 2 + j for j in range(k)]
                anterior = torch.cat([lateral.alpha[p] * h[j][i] for j, p in enumerate(pairs)], 1)
                V = torch.cat([lateral.V[p] for p in pairs], 1)  # [size, k * n]
                z = z + F.relu(anterior @ V.T + lateral.c[k - 1]) @ lateral.U[k - 1].T
            h[k].append(F.relu(z) if i < 2 else z)
    return h[column][-1]


@pytest.mark.parametrize("adapter_size", [None, 3])
@pytest.mark.parametrize("k", range(T))
def test_columns_compute_equation_2(k: int, adapter_size: int | None) -> None:
    net = columns(adapter_size)
    expected = equation_2(net, inputs(), k)
    torch.testing.assert_close(net(inputs(), k), expected)
    torch.testing.assert_close(net(inputs(), torch.tensor(k)), expected)


def test_adapters_have_the_stated_size_and_no_pair_is_kept_twice() -> None:
    shapes = {name: tuple(p.shape) for name, p in columns().named_parameters() if "adapt" in name}
    pairs = 6
    assert shapes == {
        "adapters.0.alpha": (pairs,),
        "adapters.0.V": (pairs, 7, 7),
        "adapters.0.c": (3, 7),
        "adapters.0.U": (3, 5, 7),
        "adapters.1.alpha": (pairs,),
        "adapters.1.V": (pairs, 5, 5),
        "adapters.1.c": (3, 5),
        "adapters.1.U": (3, 4, 5),
    }
    assert columns(3).adapters[1].V.shape == (pairs, 3, 5)


@pytest.mark.parametrize("k", range(T))
def test_a_column_trains_what_it_owns_and_reads_what_is_before_it(k: int) -> None:
    net = columns()
    owner = net.owners().split([p.numel() for p in net.parameters()])
    net(inputs(), torch.tensor(k)).square().sum().backward()
    for (name, p), own in zip(net.named_parameters(), owner, strict=True):
        assert p.grad is not None
        assert not p.grad.flatten()[own != k].any(), name
        assert p.grad.flatten()[own == k].any() or not (own == k).any(), name
    assert k == 0 or net.adapters[0].alpha.grad.any()  # the laterals are used

    before = net(inputs(), k)
    for moved in range(T):
        changed = columns()
        for p, own in zip(changed.parameters(), owner, strict=True):
            p.data = torch.where((own == moved).view(p.shape), p.data + 0.1, p.data)
        assert torch.equal(changed(inputs(), k), before) == (moved > k)


def test_one_column_is_its_mlp() -> None:
    net = columns(tasks=1)
    mlp = MLP(INPUTS, HIDDEN, OUTPUTS, "default", 0.0).double()
    for layer, W, b in zip(mlp.layers, net.W, net.b, strict=True):
        layer.weight.data, layer.bias.data = W[0].detach(), b[0].detach()
    for column in (0, torch.tensor(0)):
        torch.testing.assert_close(net(inputs(), column), mlp(inputs()))
    assert len(net.adapters) == 0
    assert net.owners().unique().tolist() == [0]


def test_dropout_is_in_the_trained_column_only_and_not_in_evaluation() -> None:
    net, plain = columns(dropout=0.5), columns()
    assert not torch.equal(net(inputs(), 1), plain(inputs(), 1))
    for W in net.W:
        W.data[1] = 0.0  # nothing comes through the column itself, only from the frozen one
    for W in plain.W:
        W.data[1] = 0.0
    net.adapters[0].U.data.zero_()
    plain.adapters[0].U.data.zero_()
    torch.testing.assert_close(net(inputs(), 1), plain(inputs(), 1))
    torch.testing.assert_close(columns(dropout=0.5).eval()(inputs(), 1), columns()(inputs(), 1))


def test_each_sample_goes_through_its_own_copy() -> None:
    mlp = build(lambda: MLP(INPUTS, HIDDEN, OUTPUTS, "default", 0.0), seed=0)
    values = [{n: torch.randn_like(p) for n, p in mlp.named_parameters()} for _ in range(3)]
    start = {n: p.detach().clone() for n, p in mlp.named_parameters()}
    copies = Copies(build(lambda: MLP(INPUTS, HIDDEN, OUTPUTS, "default", 0.0), seed=0), 3)
    for name, p in copies.network.named_parameters():
        assert all(torch.equal(p[t], start[name]) for t in range(3))
        p.data = torch.stack([v[name] for v in values])
    x, task = inputs().float(), torch.tensor([0, 1, 2, 2, 0, 1, 0, 0, 2])
    logits = copies(x, task)
    for b in range(9):
        expected = torch.func.functional_call(mlp, values[int(task[b])], (x[b : b + 1],))
        torch.testing.assert_close(logits[b : b + 1], expected)
        torch.testing.assert_close(copies(x[b : b + 1], int(task[b])), expected)
