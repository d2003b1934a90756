"""Streaming linear discriminant analysis: SLDA."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cl_runner.errors import check
from cl_runner.functional.closed_form import Moments, Solution, discriminant, scatter_within
from cl_runner.strategies.parts.closed_form import ClosedForm


@dataclass(frozen=True, kw_only=True)
class SLDA(ClosedForm):
    """argmax_c m_c^T Lambda f(x) - m_c^T Lambda m_c / 2 (Hayes & Kanan 2020, arXiv 1909.01520).

    m_c is a class's mean, Lambda = ((1 - shrinkage) S + shrinkage I)^-1, S the covariance of the
    features within the classes, shared by all. The paper updates S sample by sample, by
    t / (t + 1) (f - m_y)(f - m_y)^T with m_y the mean before the sample and t the number of all
    samples, which depends on their order, takes a class's first sample as if its mean were 0, and
    is for a start from a base of data (whose S its code shrinks by OAS); here S is exact, that of
    all samples at once. Lambda is computed once a task, not at each prediction, by Cholesky, where
    the code takes a pseudo-inverse.

    With features > 0 it is like RanDumb (Prabhu et al. 2024, arXiv 2402.08823), which takes random
    Fourier features where these are random ReLU units.
    """

    shrinkage: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            0 <= self.shrinkage <= 1,
            f"strategy.shrinkage must lie in [0, 1], got {self.shrinkage}",
        )

    def solution(self, moments: Moments) -> Solution:
        return discriminant(moments, self.shrinkage)

    def unregularised(self) -> str:
        return "" if self.shrinkage else "strategy.shrinkage=0"

    def system(self, moments: Moments) -> Tensor:
        return scatter_within(moments)
