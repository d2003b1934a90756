"""Projections against a general solver, Gram-Schmidt by hand and the paper's SVD."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor, nn

from cl_runner.core import Batch, TrainState
from cl_runner.functional.projection import (
    grow_projector,
    layer_inputs,
    new_directions,
    project_cone,
    project_half_space,
    project_out,
)
from cl_runner.strategies.parts import gradients
from cl_runner.strategies.parts.gradients import input_grams, logit_gradients

P = 9


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest(g: Tensor, G: Tensor) -> Tensor:
    """argmin_z |z - g|^2 with G z >= 0: the primal problem, by a general solver."""
    start = (G.sum(0) * 10).numpy()
    result = minimize(
        lambda z: ((z - g.numpy()) ** 2).sum() / 2,
        start,
        jac=lambda z: z - g.numpy(),
        method="SLSQP",
        constraints=LinearConstraint(G.numpy(), 0, np.inf),
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success, result.message
    return torch.from_numpy(result.x)


def conflict(t: int, seed: int) -> tuple[Tensor, Tensor]:
    """A gradient [P] that conflicts with each of t references [t, P]."""
    G = normal(t, P, seed=seed)
    g = normal(P, seed=100 + seed)
    return g - torch.linalg.pinv(G) @ (G @ g + normal(t, seed=200 + seed).abs()), G


def test_half_space_is_equation_11_where_the_gradients_conflict():
    g, r = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0])
    assert torch.equal(project_half_space(g, r), torch.tensor([0.0, 2.0]))
    g, G = conflict(1, 3)
    projected = project_half_space(g, G[0])
    torch.testing.assert_close(projected, g - (g @ G[0]) / (G[0] @ G[0]) * G[0])
    assert float(projected @ G[0]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(projected, nearest(g, G), rtol=1e-6, atol=1e-6)


def test_half_space_changes_nothing_where_they_agree_or_there_is_no_reference():
    g = normal(P)
    assert torch.equal(project_half_space(g, 2 * g + 0.1), g)
    assert torch.equal(project_half_space(g, torch.zeros(P, dtype=g.dtype)), g)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("t", [1, 2, 5])
def test_cone_is_the_nearest_vector_that_satisfies_all_constraints(t, seed):
    g, G = conflict(t, seed)
    assert bool((G @ g < 0).all())
    z = project_cone(g, list(G), 0.0)
    assert bool((G @ z >= -1e-10).all())
    torch.testing.assert_close(z, nearest(g, G), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_margin_bounds_the_dual_variables_from_below(seed):
    """The authors' dual problem, 1/2 v^T G G^T v + v^T G g over v >= margin, by another solver."""
    g, G = conflict(3, seed)
    gram, linear = (G @ G.T).numpy(), (G @ g).numpy()
    dual = minimize(
        lambda v: v @ gram @ v / 2 + v @ linear,
        np.ones(3),
        jac=lambda v: gram @ v + linear,
        bounds=[(0.5, None)] * 3,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-12},
    )
    z = project_cone(g, list(G), 0.5)
    torch.testing.assert_close(z, g + torch.from_numpy(dual.x) @ G, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z, nearest(g + 0.5 * G.sum(0), G), rtol=1e-5, atol=1e-5)
    assert bool((G @ z >= -1e-10).all())


def test_one_violated_constraint_is_enough_and_none_changes_nothing():
    g = normal(P)
    G = torch.stack([g + normal(P, seed=1) * 0.1, g])
    assert torch.equal(project_cone(g, list(G), 0.5), g)
    assert torch.equal(project_cone(g, [], 0.5), g)
    assert not torch.equal(project_cone(g, [*G, -g + normal(P, seed=2)], 0.0), g)


def test_a_product_of_zero_or_a_small_one_is_no_conflict():
    g, margin = torch.tensor([1.0, 0.0]), 0.5
    for reference in ([0.0, 1.0], [0.1, 1.0]):
        assert torch.equal(project_cone(g, [torch.tensor(reference)], margin), g)


def test_cone_of_repeated_and_vanishing_references():
    g, G = conflict(2, 1)
    expected = project_cone(g, list(G), 0.0)
    z = project_cone(g, [G[0], G[1], G[0], 3 * G[1], torch.zeros_like(g)], 0.0)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(project_cone(g, [-g], 0.0), torch.zeros_like(g))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["gradient", "reference"])
def test_cone_of_what_is_not_finite_is_not_finite(bad, where):
    """So that the run says where it diverged; the solver's own complaint names nothing."""
    g, G = conflict(2, 1)
    (g if where == "gradient" else G[1])[0] = bad
    assert bool(project_cone(g, list(G), 0.5).isnan().all())


def gram_schmidt(vectors: Tensor, basis: Tensor) -> Tensor:
    rows = [b for b in basis if b.any()]
    new = []
    for v in vectors:
        u = v - sum((v @ b) * b for b in rows + new)
        if u.norm() > 1e-8:
            new.append(u / u.norm())
    return torch.stack(new)


def test_new_directions_span_what_gram_schmidt_adds():
    first = torch.cat([new_directions(normal(2, P), []), torch.zeros(2, P).double()])
    second = new_directions(normal(1, P, seed=3), [first])
    basis = torch.cat([first, second])
    vectors = normal(4, P, seed=1)
    vectors[2] = 2 * vectors[0] - vectors[1]  # nothing new
    vectors[3] = 5 * basis[1]  # nothing new
    new = new_directions(vectors, [first, second])
    assert new.shape == vectors.shape
    kept = new[new.norm(dim=1) > 0.5]
    assert len(kept) == 2
    assert int(new.any(1).sum()) == 2  # the others are exactly 0
    torch.testing.assert_close(kept @ kept.T, torch.eye(2).double())
    torch.testing.assert_close(kept @ basis.T, torch.zeros(2, 5).double(), rtol=0, atol=1e-12)
    expected = gram_schmidt(vectors, basis)
    torch.testing.assert_close(kept.T @ kept, expected.T @ expected)


@pytest.mark.parametrize("size", [1e-8, 1e8])
def test_what_is_new_does_not_depend_on_the_size_of_the_vectors(size):
    vectors = normal(3, P)
    vectors[2] = vectors[0] + vectors[1]
    new = new_directions(size * vectors, [])
    assert int(new.any(1).sum()) == 2
    torch.testing.assert_close(new.T @ new, torch.linalg.pinv(vectors) @ vectors)


def test_vectors_of_zeros_add_no_direction():
    assert not new_directions(torch.zeros(2, P), []).any()


def test_new_directions_are_orthogonal_in_single_precision_however_little_is_new():
    basis = new_directions(normal(20, 500).float(), [])
    for nearly in (normal(1, 500, seed=1), 100 * normal(20, 20, seed=1) @ basis.double()):
        vectors = nearly + 0.02 * normal(20, 500, seed=2)
        rows = torch.cat([basis, new_directions(vectors.float(), [basis])])
        torch.testing.assert_close(rows @ rows.T, torch.eye(40), rtol=0, atol=5e-6)


def test_what_is_projected_out_is_orthogonal_to_the_basis():
    basis = torch.cat([new_directions(normal(3, P), []), torch.zeros(2, P).double()])
    g = normal(P, seed=1)
    z = project_out(g, basis)
    torch.testing.assert_close(basis @ z, torch.zeros(5).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z + basis.T @ (basis @ g), g)


def columns(d: int, n: int, seed: int) -> Tensor:
    """Inputs R [d, n] whose singular values decay."""
    return (normal(d, n, seed=seed).T * 0.5 ** torch.arange(d)).T


def by_svd(M: Tensor, R: Tensor, threshold: float) -> Tensor:
    """Equations 8 and 9 of the paper, word for word: M with its new columns."""
    R_proj = M @ M.T @ R
    R_hat = R - R_proj
    U, _, _ = torch.linalg.svd(R_hat)
    for k in range(len(R) + 1):
        R_k = U[:, :k] @ U[:, :k].T @ R_hat
        if R_k.square().sum() + R_proj.square().sum() >= threshold * R.square().sum():
            return torch.cat([M, U[:, :k]], 1)
    raise AssertionError


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_the_projector_grows_as_the_paper_has_it(threshold):
    M, projector = torch.zeros(8, 0).double(), torch.zeros(8, 8).double()
    ranks = []
    for seed in range(3):
        R = columns(8, 30, seed)[torch.randperm(8, generator=torch.Generator().manual_seed(seed))]
        M = by_svd(M, R, threshold)
        projector = grow_projector(projector, R @ R.T, threshold)
        torch.testing.assert_close(projector, M @ M.T)
        ranks.append(M.shape[1])
    assert ranks == sorted(ranks) and 0 < ranks[0] < 8


def test_what_the_old_basis_explains_counts():
    R = columns(8, 30, 0)
    projector = grow_projector(torch.zeros(8, 8).double(), R @ R.T, 0.99)
    again = grow_projector(projector, R @ R.T, 0.99)
    torch.testing.assert_close(again, projector)
    whole = grow_projector(projector, R @ R.T, 1.0)
    torch.testing.assert_close(whole, torch.eye(8).double())


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_projector_does_not_depend_on_the_size_of_the_inputs(size):
    R, zero = columns(8, 30, 0), torch.zeros(8, 8).double()
    grown = grow_projector(zero, size * R @ R.T, 0.9)
    torch.testing.assert_close(grown, grow_projector(zero, R @ R.T, 0.9))
    assert grown.any()


def test_no_direction_is_added_once_the_threshold_is_reached():
    grown = grow_projector(torch.zeros(2, 2), torch.diag(torch.tensor([3.0, 1])).double(), 0.75)
    assert torch.equal(grown, torch.diag(torch.tensor([1.0, 0])))


def test_the_projector_stays_on_its_device():
    projector = torch.zeros(3, 3, device="meta")
    assert grow_projector(projector, projector.double(), 0.9).device == projector.device


def test_inputs_that_are_all_zero_add_nothing():
    zero = torch.zeros(4, 4).double()
    assert not grow_projector(zero, zero, 1.0).any()


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(3, 4), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, (2, 3), 2, dilation=(1, 2))],
)
def test_a_layer_is_its_weight_times_its_inputs(layer):
    x = normal(5, 3) if isinstance(layer, nn.Linear) else normal(5, 3, 8, 9)
    layer = layer.double()
    product = F.linear(layer_inputs(layer, x), layer.weight.flatten(1), layer.bias)
    output = layer(x)
    expected = output if output.dim() == 2 else output.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(product, expected)


T, D, K = 2, 4, 3
TASK = SimpleNamespace(index=1)


def linear(active: Tensor | None = None) -> tuple[TrainState, Tensor, Tensor, SimpleNamespace]:
    """Six samples [6, D], their classes, and linear networks theta [T, D, K], one for each task."""
    x, y = normal(6, D), torch.arange(6) % K

    def fold(function, total, of, task, *, samples):
        assert of is s
        for rows in torch.arange(samples).split(4):
            tasks = torch.full_like(rows, task.index)
            total = function(total, Batch(x[rows], y[rows], tasks, None, None, rows, {}, {}))
        return total, samples

    def active_of(task: Tensor, t: Tensor) -> Tensor | None:
        assert (task.tolist(), t.item()) == ([1], 1)
        return None if active is None else active[None]

    def net(theta: Tensor, x: Tensor, task: Tensor) -> Tensor:
        return torch.einsum("bd,bdk->bk", x, theta.view(T, D, K)[task])

    s = TrainState(normal(T * D * K, seed=1), {}, {}, {}, torch.tensor(1))
    device = torch.device("cpu")
    return (
        s,
        x,
        y,
        SimpleNamespace(active=active_of, device=device, fold=fold, net=net, num_classes=K),
    )


@pytest.mark.parametrize("active", [None, torch.tensor([True, False, True])])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("chunk", [1, 2 * T * D * K, 2**26])
def test_the_gradients_of_a_linear_networks_logits(monkeypatch, chunk, every, active):
    monkeypatch.setattr(gradients, "CHUNK", chunk)
    s, x, y, env = linear(active)
    classes = range(K) if active is None else [0, 2]
    number = 5 if every else 6  # of every class, as many samples as fit: 1 of three, 2 of two
    expected = [
        gradient_of(x[n], c)
        for n in range(number // len(classes) if every else number)
        for c in (classes if every else [int(y[n])])
    ]
    found = logit_gradients(s, TASK, env, number=number, every=every)
    torch.testing.assert_close(found, torch.stack(expected))


def gradient_of(x: Tensor, c: int) -> Tensor:
    """The gradient [T * D * K] of logit c of the second network at x."""
    gradient = torch.zeros(T, D, K).double()
    gradient[1, :, c] = x
    return gradient.flatten()


def test_grams_are_sums_over_all_batches_and_the_layers_are_left_as_they_were():
    s, x, _, env = linear()
    layers = {"a": nn.Linear(D, D).double(), "b": nn.Linear(D, 1).double()}

    def net(theta: Tensor, x: Tensor, task: Tensor) -> Tensor:
        return layers["b"](layers["a"](x * task[:, None] * theta[0]))

    env.net = net
    grams = input_grams(s, TASK, env, layers, samples=5)
    first = x[:5] * s.theta[0]
    second = layers["a"](first)
    torch.testing.assert_close(grams, {"a": first.T @ first, "b": (second.T @ second).detach()})
    assert not any(layer._forward_pre_hooks for layer in layers.values())
