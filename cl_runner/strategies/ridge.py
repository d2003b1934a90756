"""Ridge regression on random features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cl_runner.errors import check
from cl_runner.functional.closed_form import Moments, Solution, ridge, scatter
from cl_runner.strategies.parts.closed_form import ClosedForm


@dataclass(frozen=True, kw_only=True)
class Ridge(ClosedForm):
    """argmin_{W, b} sum_n |W h(x_n) + b - onehot(y_n)|^2 + lambda |W|^2, over all samples so far.

    h is `features` random ReLU units of the inputs or of a network's features. ACIL (Zhuang et al.
    2022, arXiv 2205.14922) and RanPAC (McDonnell et al. 2023, arXiv 2307.02251) do this on the
    features of a pretrained network. ACIL updates the inverse of the Gram matrix by rank, which
    gives the same weights; RanPAC keeps the Gram matrix, as here. They have no bias at the output;
    here it is free, so that the system is that of centred features. RanPAC chooses lambda for each
    task anew on a fifth of its samples; here it is the run's. RanPAC first adapts its network to
    the first task; that would be a run of its own and model.weights.
    """

    features: int = 2048
    lambda_: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")

    def solution(self, moments: Moments) -> Solution:
        return ridge(moments, self.lambda_)

    def unregularised(self) -> str:
        return "" if self.lambda_ else "strategy.lambda=0"

    def system(self, moments: Moments) -> Tensor:
        return scatter(moments)
