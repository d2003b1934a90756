"""Projections of a gradient [P] onto what earlier tasks allow, and the subspaces that they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState

if TYPE_CHECKING:
    from cl_runner.env import Env

CHUNK = 2**26  # elements of single samples' gradients at once: 256 MiB
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
    """What GEM steps along: g [P] if its dot products with all references g_k [P] are >= 0.

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


def logit_gradients(s: TrainState, task: Task, env: Env, *, number: int, every: bool) -> Tensor:
    """Gradients [at most `number`, P] of single samples' logits, random samples of a task.

    Of each sample's true class; or, if `every`, of every class active in training, and of as many
    samples as then fit into `number`.
    """
    active = env.active(torch.full_like(s.t, task.index).view(1), s.t)
    classes = torch.arange(env.num_classes, device=env.device)
    classes = classes if active is None else classes[active[0]]

    def logit(theta: Tensor, x: Tensor, task: Tensor, c: Tensor) -> Tensor:
        return env.net(theta, x[None], task[None])[0].gather(0, c[None])[0]

    gradients = torch.func.vmap(torch.func.grad(logit), in_dims=(None, 0, 0, 0))
    chunk = max(1, CHUNK // s.theta.numel())

    def collect(rows: list[Tensor], batch: Batch) -> list[Tensor]:
        c = classes.expand(len(batch.y), -1) if every else batch.y[:, None]
        n = torch.arange(len(c), device=c.device)[:, None].expand_as(c).flatten()
        for part, label in zip(n.split(chunk), c.flatten().split(chunk), strict=True):
            rows.append(gradients(s.theta.detach(), batch.x[part], batch.task[part], label))
        return rows

    samples = number // len(classes) if every else number
    none: list[Tensor] = []
    rows, _ = env.fold(collect, none, s, task, samples=samples)
    return torch.cat(rows)


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


def input_grams(
    s: TrainState, task: Task, env: Env, layers: Mapping[str, nn.Module], *, samples: int
) -> dict[str, Tensor]:
    """R R^T [d, d] float64 of each layer's inputs R [d, n], on random samples of a task."""
    grams: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = layer_inputs(layer, inputs[0]).double()
            grams[name] = grams[name] + x.T @ x if name in grams else x.T @ x

        return layers[name].register_forward_pre_hook(add)

    def look(_: None, batch: Batch) -> None:
        env.net(s.theta, batch.x, batch.task)

    handles = [watch(name) for name in layers]
    try:
        with torch.no_grad():
            env.fold(look, None, s, task, samples=samples)
    finally:
        for handle in handles:
            handle.remove()
    return grams


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
