"""Linear classifiers in closed form, from sums over samples: counts, class sums and a Gram matrix.

What the samples x [B, d] of K classes leave is the moments "count" [K], "sum" [K, d] and "gram"
[d, d], sum_n x_n x_n^T, all float64. They add up, so the order in which samples and tasks come does
not matter, and the solutions are those of all samples at once. A solution is weights [K, d] and
biases [K], float64, of the scores W x + b. Classes without samples come last, by UNSEEN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.functional.fixed_point import PANEL, add_products

Moments = dict[str, Tensor]
Solution = tuple[Tensor, Tensor]
UNSEEN = -1e30  # the score of a class that no sample has shown


def no_moments(num_classes: int, d: int, device: torch.device, *, gram: bool) -> Moments:
    """The moments of no samples, with or without the Gram matrix."""
    shapes = {"count": (num_classes,), "sum": (num_classes, d)} | ({"gram": (d, d)} if gram else {})
    return {
        name: torch.zeros(shape, dtype=torch.float64, device=device)
        for name, shape in shapes.items()
    }


def add(moments: Moments, x: Tensor, y: Tensor) -> Moments:
    """The moments after samples x [B, d] of classes y [B]; those given are overwritten.

    Of the Gram matrix, which is symmetric, little more than the lower triangle is computed, and
    what stands above it means nothing.
    """
    x, member = x.double(), members(moments, y)
    moments["count"] += member.sum(1)
    moments["sum"] += member.double() @ x
    if "gram" in moments:
        for first in range(0, x.shape[1], PANEL):
            last = first + PANEL
            panel = moments["gram"][first:last, :last]
            torch.addmm(panel, x[:, first:last].T, x[:, :last], out=panel)  # addmm_ is not counted
    return moments


def add_whole(moments: Moments, numbers: Tensor, units: Tensor, y: Tensor) -> Moments:
    """`add` for rounded samples, in whole numbers (`fixed_point.whole`): without an error."""
    member = members(moments, y)
    moments["count"] += member.sum(1)
    add_products(moments["sum"], moments.get("gram"), member, numbers, units)
    return moments


def members(moments: Moments, y: Tensor) -> Tensor:
    """Whether a sample is of a class, [K, B]."""
    return y == torch.arange(len(moments["count"]), device=y.device)[:, None]


def nearest_mean(moments: Moments) -> Solution:
    """Scores that are highest for the class whose mean is nearest: -|x - m_c|^2 / 2, + |x|^2 / 2.

    Mensink et al. 2013, IEEE TPAMI 35(11), as a linear classifier.
    """
    means = means_of(moments)
    return last_where_unseen(moments, means, -means.square().sum(1) / 2)


def discriminant(moments: Moments, shrinkage: float) -> Solution:
    """Linear discriminant analysis with equal priors: Lambda m_c, and -m_c^T Lambda m_c / 2.

    Lambda = ((1 - shrinkage) S + shrinkage I)^-1, where S is the scatter within the classes divided
    by the number of samples. Raises ArithmeticError if there is none.
    """
    covariance = scatter_within(moments).mul_((1 - shrinkage) / moments["count"].sum())
    covariance.diagonal().add_(shrinkage)
    means = means_of(moments)
    weights = solved(covariance, means.T).T
    return last_where_unseen(moments, weights, -(means * weights).sum(1) / 2)


def ridge(moments: Moments, lambda_: float) -> Solution:
    """The W and b of min sum_n |W x_n + b - onehot(y_n)|^2 + lambda |W|^2; b is not penalised.

    Raises ArithmeticError if there are several.
    """
    count, total = moments["count"], moments["count"].sum()
    mean = moments["sum"].sum(0) / total
    matrix = scatter(moments)
    matrix.diagonal().add_(lambda_)
    weights = solved(matrix, (moments["sum"] - count[:, None] * mean).T).T
    return last_where_unseen(moments, weights, count / total - weights @ mean)


def scatter(moments: Moments) -> Tensor:
    """sum_n (x_n - m)(x_n - m)^T [d, d], m the mean of all; its lower triangle."""
    total = moments["sum"].sum(0)
    return torch.addr(moments["gram"], total, total / moments["count"].sum(), alpha=-1)


def scatter_within(moments: Moments) -> Tensor:
    """sum_n (x_n - m_y)(x_n - m_y)^T [d, d], m_y the mean of a sample's class; lower triangle."""
    return torch.addmm(moments["gram"], moments["sum"].T, means_of(moments), alpha=-1)


def means_of(moments: Moments) -> Tensor:
    """The classes' means [K, d]; 0 for a class without samples."""
    return moments["sum"] / moments["count"].clamp_min(1)[:, None]


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """X [d, K] with matrix X = right, from a positive matrix's lower triangle [d, d].

    Raises ArithmeticError if it is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise ArithmeticError("the matrix is not positive definite")
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    out: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return out


def is_singular(matrix: Tensor) -> bool:
    """Whether a symmetric matrix, by its lower triangle, has no inverse in float64."""
    values = torch.linalg.eigvalsh(matrix)  # in ascending order
    smallest = values[-1] * len(values) * torch.finfo(values.dtype).eps
    return bool(values[0] <= smallest)


def last_where_unseen(moments: Moments, weights: Tensor, biases: Tensor) -> Solution:
    """A solution in which classes without samples have no weights and the bias UNSEEN."""
    seen = moments["count"] > 0
    return weights * seen[:, None], torch.where(seen, biases, UNSEEN)
