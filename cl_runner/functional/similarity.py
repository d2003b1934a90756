"""How alike two sets of features of the same samples are."""

from __future__ import annotations

from torch import Tensor


def centred_gram(x: Tensor) -> Tensor:
    """The inner products [n, n] of features x [n, d], each feature with mean 0; float64."""
    x = x.double()
    x = x - x.mean(0)
    return x @ x.T


def cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features, in [0, 1], from their Gram matrices.

    <A, B> / (|A| |B|), Kornblith et al. 2019, arXiv 1905.00414, eq. 4; 1: they differ by a rotation
    and a scale. a, b: `centred_gram` of the same samples. NaN where features do not vary.
    """
    return float((a * b).sum() / (a.norm() * b.norm()))
