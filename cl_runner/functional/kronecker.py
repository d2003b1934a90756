"""A layer's curvature as one Kronecker product: its factors, and their sum over tasks.

Of a layer with weights W [O, I], its bias as one more column, the Fisher information is close to
A (x) G: A = E a a^T [I, I] of its inputs a, a 1 appended for the bias, and G = E d d^T [O, O] of
the derivatives d of the log probability with respect to its outputs (Martens & Grosse 2015, arXiv
1503.05671). As a quadratic form, vec(D)^T (A (x) G) vec(D) = tr(D^T G D A).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_runner.core import Batch
from cl_runner.functional.importance import Cotangents, Forward, derivatives, traced

BLOCKS = 4  # of columns, in each of which a Gram matrix is computed down to its diagonal


class Factors(NamedTuple):
    """A (x) G."""

    inputs: Tensor  # A [I, I]
    outputs: Tensor  # G [O, O]


def add_gram(upper: Tensor, rows: Tensor, weight: float = 1.0) -> None:
    """Add weight rows^T rows, of rows [n, d], to the upper triangle of a matrix [d, d], in place.

    In blocks of columns it takes 5 of 8 of the whole product's multiplications; what stands below
    the diagonal afterwards is of no meaning.
    """
    d = rows.shape[1]
    size = max(1, -(-d // BLOCKS))
    for at in range(0, d, size):
        own, left = upper[: at + size, at : at + size], rows[:, : at + size].T
        torch.addmm(own, left, rows[:, at : at + size], alpha=weight, out=own)  # counted, with out


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle [d, d]."""
    return upper.triu() + upper.triu(1).T


def rows(x: Tensor) -> Tensor:
    """The vectors [B * L, d] of x [B, d, L]."""
    return x.mT.flatten(0, 1)


def add_factors(
    sums: Mapping[nn.Module, Factors],
    layers: list[nn.Module],
    forward: Forward,
    batch: Batch,
    cotangents_of: Cotangents,
) -> None:
    """Add each sample's a a^T to A and its sum_c d_c d_c^T to G, to their upper triangles alone.

    d_c: the derivative of <g_c, f(x)>, by the vectors g_c [B, K] that cotangents_of(logits, batch)
    gives. Of a convolution's L positions A takes the sum and G the mean (Grosse & Martens 2016,
    arXiv 1602.01407, where they are taken to be alike and independent of each other).
    """
    logits, uses = traced(layers, forward, batch)
    for layer, _, factor in uses:
        a, A = rows(factor), sums[layer].inputs
        width = a.shape[1]
        add_gram(A[:width, :width], a)
        if layer.bias is not None:  # a 1 appended to each
            A[:width, width] += a.sum(0)
            A[width, width] += len(a)
    for g in cotangents_of(logits.detach(), batch):
        for (layer, _, factor), d in zip(uses, derivatives(logits, uses, g), strict=True):
            if d is not None:
                delta = rows(d.reshape(*d.shape[:2], -1))
                add_gram(sums[layer].outputs, delta, 1 / factor.shape[2])


def merged(old: Factors, new: Factors, gamma: float = 1.0) -> Factors:
    """One product in the place of gamma old + new, which is none; its A has trace 1, or is 0.

    It is the one whose partial traces, over either side, are those of the sum. So it does not
    depend on the order of the tasks, and is exact where they have the same A, or the same G, up to
    a factor.
    """
    length = new.inputs.trace()
    weight, total = length * new.outputs.trace(), gamma * old.outputs.trace()
    tiny = torch.finfo(length.dtype).tiny
    share = weight / (weight + total).clamp_min(tiny)
    A = torch.lerp(old.inputs, new.inputs / length.clamp_min(tiny), share)
    return Factors(A, gamma * old.outputs + length * new.outputs)


def product(factors: Factors, D: Tensor) -> Tensor:
    """(A (x) G) vec(D), as a matrix: G D A [O, I]."""
    return factors.outputs @ D @ factors.inputs


class Spectrum(NamedTuple):
    """The eigenvectors, as columns, and eigenvalues of A and of G."""

    input_vectors: Tensor  # [I, I]
    input_values: Tensor  # [I]
    output_vectors: Tensor  # [O, O]
    output_values: Tensor  # [O]


def spectrum(factors: Factors) -> Spectrum:
    """What `proximal` needs of a product. In double precision: what is left below 0 is rounding."""
    parts: list[Tensor] = []
    for matrix in factors:
        values, vectors = torch.linalg.eigh(matrix.double())
        parts += [vectors.to(matrix.dtype), values.clamp_min(0).to(matrix.dtype)]
    return Spectrum(*parts)


def proximal(D: Tensor, of: Spectrum, step: Tensor) -> Tensor:
    """argmin_Z 1/2 |Z - D|^2 + step / 2 vec(Z)^T (A (x) G) vec(Z): (1 + step A (x) G)^-1 vec(D).

    In the basis of the eigenvectors it is a division by 1 + step times the eigenvalue.
    """
    U, V = of.output_vectors, of.input_vectors
    stiff = step * of.output_values[:, None] * of.input_values
    return U @ ((U.T @ D @ V) / (1 + stiff)) @ V.T
