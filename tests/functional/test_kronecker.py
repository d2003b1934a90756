"""Kronecker factors: against the whole Fisher matrix, and the closed forms against numerics."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from cl_runner.core import Batch
from cl_runner.functional.importance import score_cotangents
from cl_runner.functional.kronecker import (
    Factors,
    add_factors,
    add_gram,
    merged,
    mirrored,
    product,
    proximal,
    spectrum,
)

B, INPUTS, OUTPUTS = 7, 4, 3


def kron(factors: Factors) -> Tensor:
    """A (x) G, on vec(D) with the columns of D [O, I] one under another."""
    return torch.kron(factors.inputs, factors.outputs)


def vec(D: Tensor) -> Tensor:
    return D.T.flatten()


def draw(*sizes: int, rank: int = 2) -> Factors:
    """Random factors, of less than full rank."""
    roots = (torch.randn(n, rank, dtype=torch.float64) for n in sizes)
    return Factors(*(root @ root.T for root in roots))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("d", [1, 2, 5, 8, 9, 30])
def test_gram_matrices_add_up_to_the_whole_products(d: int) -> None:
    sums = torch.zeros(d, d, dtype=torch.float64)
    rows, more = torch.randn(2, 6, d, dtype=torch.float64)
    add_gram(sums, rows)
    add_gram(sums, more, 0.5)
    torch.testing.assert_close(mirrored(sums), rows.T @ rows + 0.5 * more.T @ more)


def batch_of(x: Tensor, y: Tensor) -> Batch:
    zero = torch.zeros_like(y)
    return Batch(x, y, zero, None, None, zero, {"label": torch.rand(len(y))}, {})


def factors_of(layers: list[nn.Module], net: nn.Module, batch: Batch, rule: str) -> list[Factors]:
    sums = {}
    for layer in layers:
        inputs = layer.weight[0].numel() + (layer.bias is not None)
        sums[layer] = Factors(*(torch.zeros(n, n).double() for n in (inputs, len(layer.weight))))

    def scores(logits: Tensor, batch: Batch) -> list[Tensor]:
        return score_cotangents(logits, batch.y, batch.active, rule, batch.noise["label"])

    add_factors(sums, layers, lambda b: net(b.x), batch, scores)
    return [Factors(*(mirrored(f) / len(batch.y) for f in sums[layer])) for layer in layers]


def fisher_of(layer: nn.Module, net: nn.Module, batch: Batch, rule: str) -> Tensor:
    """The layer's whole block of the Fisher information, sample by sample and class by class."""
    total = 0.0
    for x, y in zip(batch.x, batch.y, strict=True):
        log_p = net(x[None]).log_softmax(1)[0]
        classes = range(len(log_p)) if rule == "exact" else [int(y)]
        for c in classes:
            own = [p for p in (layer.weight, layer.bias) if p is not None]
            grads = torch.autograd.grad(log_p[c], own, retain_graph=True)
            D = torch.cat([g.flatten(1) if g.dim() > 1 else g[:, None] for g in grads], 1)
            share = log_p[c].exp().detach() if rule == "exact" else 1.0
            total = total + share * torch.outer(vec(D), vec(D))
    return total / len(batch.y)


@pytest.mark.parametrize("rule", ["exact", "true"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_exact_for_one_sample(rule: str, bias: bool) -> None:
    layer = nn.Linear(INPUTS, OUTPUTS, bias=bias).double()
    batch = batch_of(torch.randn(1, INPUTS).double(), torch.tensor([1]))
    (found,) = factors_of([layer], layer, batch, rule)
    torch.testing.assert_close(kron(found), fisher_of(layer, layer, batch, rule))


def test_a_linear_layer_is_exact_where_its_derivatives_do_not_depend_on_its_inputs() -> None:
    """With weights 0 every sample has the same probabilities: E aa (x) dd = E aa (x) E dd."""
    layer = nn.Linear(INPUTS, OUTPUTS).double()
    nn.init.zeros_(layer.weight)
    batch = batch_of(torch.randn(B, INPUTS).double(), torch.arange(B) % OUTPUTS)
    (found,) = factors_of([layer], layer, batch, "exact")
    torch.testing.assert_close(kron(found), fisher_of(layer, layer, batch, "exact"))
    nn.init.normal_(layer.weight)  # and elsewhere it is an approximation
    (found,) = factors_of([layer], layer, batch, "exact")
    whole = fisher_of(layer, layer, batch, "exact")
    assert float((kron(found) - whole).norm()) > 0.05 * float(whole.norm())


def test_every_layer_of_a_network_has_its_own() -> None:
    net = nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, OUTPUTS)).double()
    batch = batch_of(torch.randn(1, INPUTS).double(), torch.tensor([2]))
    layers = [net[0], net[2]]
    for layer, found in zip(layers, factors_of(layers, net, batch, "exact"), strict=True):
        # One sample has one input, so the layer's block is a a^T (x) E d d^T.
        torch.testing.assert_close(kron(found), fisher_of(layer, net, batch, "exact"))


def test_a_convolution_sums_the_inputs_and_averages_the_derivatives_over_positions() -> None:
    """Where one kernel's width of input is all there is, it is a linear layer, and exact."""
    net = nn.Sequential(nn.Conv2d(2, OUTPUTS, 2), nn.Flatten()).double()
    batch = batch_of(torch.randn(1, 2, 2, 2).double(), torch.tensor([1]))
    (found,) = factors_of([net[0]], net, batch, "exact")
    torch.testing.assert_close(kron(found), fisher_of(net[0], net, batch, "exact"))
    wide = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten()).double()  # 2 positions
    x = torch.randn(1, 1, 2, 3).double()
    (found,) = factors_of([wide[0]], wide, batch_of(x, torch.tensor([0])), "true")
    patches = [torch.cat([x[0, 0, :, i : i + 2].flatten(), torch.ones(1)]) for i in range(2)]
    A = sum(torch.outer(a, a) for a in patches)
    p = wide(x).softmax(1)[0].detach()
    d = (torch.eye(4)[0] - p).view(2, 2)  # [channels, positions]
    torch.testing.assert_close(found.inputs, A)
    torch.testing.assert_close(found.outputs, d @ d.T / 2)


# The sum over tasks.


def merged_all(terms: list[Factors]) -> Factors:
    total = Factors(*(torch.zeros_like(f) for f in terms[0]))
    for term in terms:
        total = merged(total, term)
    return total


def partial_traces(K: Tensor) -> tuple[Tensor, Tensor]:
    blocks = K.view(INPUTS, OUTPUTS, INPUTS, OUTPUTS)
    return torch.einsum("ioko->ik", blocks), torch.einsum("ioip->op", blocks)


def test_the_sum_of_products_is_the_product_with_its_partial_traces_in_any_order() -> None:
    terms = [draw(INPUTS, OUTPUTS) for _ in range(3)]
    whole = sum(kron(term) for term in terms)
    for order in permutations(terms):
        found = kron(merged_all(list(order)))
        for one, other in zip(partial_traces(found), partial_traces(whole), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("same", [0, 1])
def test_it_is_exact_where_one_side_is_the_same_in_all_tasks(same: int) -> None:
    first, second = draw(INPUTS, OUTPUTS), draw(INPUTS, OUTPUTS)
    second = Factors(*(2 * first[i] if i == same else second[i] for i in range(2)))
    torch.testing.assert_close(kron(merged_all([first, second])), kron(first) + kron(second))


def test_what_is_old_counts_gamma_times() -> None:
    old, new = merged_all([draw(INPUTS, OUTPUTS)]), draw(INPUTS, OUTPUTS)
    expected = merged_all([Factors(old.inputs, 0.3 * old.outputs), new])
    for one, other in zip(merged(old, new, 0.3), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_nothing_and_nothing_is_nothing() -> None:
    none = Factors(torch.zeros(INPUTS, INPUTS), torch.zeros(OUTPUTS, OUTPUTS))
    assert not any(f.any() for f in merged(none, none))


# The quadratic form.


def test_the_product_is_the_matrix_times_the_vector() -> None:
    of, D = draw(INPUTS, OUTPUTS), torch.randn(OUTPUTS, INPUTS, dtype=torch.float64)
    torch.testing.assert_close(vec(product(of, D)), kron(of) @ vec(D))


@pytest.mark.parametrize("step", [0.01, 1.0, 1e8])
def test_the_proximal_step_solves_its_linear_system(step: float) -> None:
    of, D = draw(INPUTS, OUTPUTS), torch.randn(OUTPUTS, INPUTS, dtype=torch.float64)
    Z = proximal(D, spectrum(of), torch.tensor(step, dtype=torch.float64))
    expected = torch.linalg.solve(torch.eye(INPUTS * OUTPUTS).double() + step * kron(of), vec(D))
    torch.testing.assert_close(vec(Z), expected, rtol=1e-5, atol=1e-5)
