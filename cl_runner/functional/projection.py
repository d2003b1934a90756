"""Projections of a gradient [P] onto what earlier tasks allow, and the subspaces that they need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RANK_TOLERANCE = 1e-5  # a direction this much shorter than all vectors together is rounding
ENERGY_TOLERANCE = 1e-10  # likewise, of squared lengths


def project_half_space(g: Tensor, reference: Tensor) -> Tensor:
    """The vector nearest to g [P] whose dot product with `reference` [P] is not negative.

    g - (g . r / r . r) r where g . r < 0, else g (Chaudhry et al. 2019, arXiv 1812.00420, eq. 11).
    g is returned where r = 0.
    """
    violation = (g * reference).sum().clamp_max(0)
    length = reference.square().sum().clamp_min(torch.finfo(g.dtype).tiny)
    return g - violation / length * reference


def project_cone(g: Tensor, references: Sequence[Tensor], margin: float) -> Tensor:
    """The direction of GEM's step: g [P] if its dot products with all references g_k [P] are >= 0.

    Otherwise, of the vectors for which they are, the one nearest to g + margin sum_k g_k. That is
    g + G^T v, with the references as the rows of G and v the minimum of the dual problem
    1/2 v^T G G^T v + v^T G g over v_k >= margin. With v = margin + u it is a problem of
    non-negative least squares, min over u >= 0 of |G^T u + g + margin sum_k g_k|, which scipy
    solves exactly (Lawson & Hanson 1974), on the host: of G^T = Q R only R and Q^T (...) go there.
    NaN throughout where a product is not finite, for then there is no such vector.
    """
    if not references:
        return g
    G = torch.stack(list(references))
    products = G @ g
    if not bool(products.isfinite().all()):
        return torch.full_like(g, torch.nan)
    if bool((products >= 0).all()):
        return g
    from scipy.optimize import nnls

    Q, R = torch.linalg.qr(G.T.double())  # [P, t], [t, t]
    target = -Q.T @ (g + margin * G.sum(0)).double()
    u, _ = nnls(R.cpu().numpy(), target.cpu().numpy(), maxiter=100 * len(G))
    v = torch.from_numpy(u).to(G) + margin
    return g + v @ G


def project_out(g: Tensor, basis: Tensor) -> Tensor:
    """The part of g [..., P] orthogonal to the orthonormal rows of basis [m, P]; rows may be 0."""
    return g - (g @ basis.T) @ basis


def new_directions(vectors: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Orthonormal rows [n, P] that span what `vectors` [n, P] add to `bases` [m, P].

    What Gram-Schmidt gives, up to a rotation: where the vectors add fewer than n directions the
    other rows are 0. The second projection removes what rounding left of the bases.
    """
    rest = vectors
    for basis in bases:
        rest = project_out(rest, basis)
    Q, R = torch.linalg.qr(rest.T)
    W, length, _ = torch.linalg.svd(R)
    kept = length > RANK_TOLERANCE * vectors.square().sum().sqrt()
    new: Tensor = (Q @ W * kept).T
    for basis in bases:
        new = project_out(new, basis)
    return new


def grow_projector(projector: Tensor, gram: Tensor, threshold: float) -> Tensor:
    """The projector M M^T [d, d] after the fewest new directions that explain enough.

    gram: [d, d] float64, R R^T of a layer's inputs R [d, n]. The new columns of M are the leading
    left singular vectors of R - M M^T R, the first k for which what the old columns explain and
    what the k new ones explain is together at least `threshold` of |R|_F^2 (Saha et al. 2021,
    arXiv 2103.09762, eq. 8 and 9). k may be 0.
    """
    old = projector.double()
    rest = torch.eye(len(old), dtype=old.dtype, device=old.device) - old
    energy, directions = torch.linalg.eigh(rest @ gram @ rest)  # squared singular values
    energy, directions = energy.flip(0).clamp_min(0), directions.flip(1)
    total = gram.trace()
    before = total - energy.sum() + energy.cumsum(0) - energy  # explained without direction k
    new = (before < threshold * total) & (energy > ENERGY_TOLERANCE * total)
    U = directions * new
    grown: Tensor = old + U @ U.T
    return grown.to(projector.dtype)


def shrink_projector(projector: Tensor, gram: Tensor, alpha: float) -> Tensor:
    """P [d, d] after inputs R [d, n] of which gram = R R^T: (P^-1 + gram / alpha)^-1.

    What recursive least squares gives, one input after another in any order: P <- P - k k^T /
    (alpha + x^T k) with k = P x (Zeng et al. 2019, arXiv 1810.01256). From P = I it is
    alpha (alpha I + R R^T)^-1: 0 in directions whose inputs are large beside alpha, I in others.
    In double precision, and with no inverse of P, which may be nearly singular.
    """
    values, U = torch.linalg.eigh(projector.double())
    root = U * values.clamp_min(0).sqrt() @ U.T
    inner = torch.eye(len(root), dtype=root.dtype, device=root.device) + root @ gram @ root / alpha
    new: Tensor = root @ torch.linalg.solve(inner, root)
    return ((new + new.T) / 2).to(projector.dtype)


def outside_null_space(gram: Tensor, share: float | None, multiple: float | None) -> Tensor:
    """The projector [d, d] onto all but the singular vectors of gram [d, d] that hardly count.

    These are, by `share`, the smallest ones whose values have at most this share of all; or those
    with values up to `multiple` times the smallest (Wang et al. 2021, arXiv 2103.07113, eq. 7 and
    algorithm 2). Values that are rounding count as 0.
    """
    values, directions = torch.linalg.eigh(gram.double())  # ascending
    values = values * (values > ENERGY_TOLERANCE * gram.trace())
    if share is not None:
        kept = values.cumsum(0) > share * values.sum()
    else:
        assert multiple is not None
        kept = values > multiple * values[0]
    U = directions * kept
    projector: Tensor = U @ U.T
    return projector


def layer_inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """The vectors [n, d] that a layer multiplies with its weight, seen as a matrix [outputs, d].

    Of a convolution these are its patches (Saha et al. 2021, arXiv 2103.09762).
    """
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    assert isinstance(layer, nn.Conv2d)
    assert layer.groups == 1
    assert not isinstance(layer.padding, str)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)
