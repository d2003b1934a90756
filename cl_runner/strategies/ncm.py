"""Nearest class mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cl_runner.functional.closed_form import Moments, Solution, nearest_mean
from cl_runner.strategies.parts.closed_form import ClosedForm


@dataclass(frozen=True, kw_only=True)
class NCM(ClosedForm):
    """The class whose mean of features is nearest: argmin_c |f(x) - m_c| (Mensink et al. 2013).

    "Distance-based image classification: generalizing to new classes at near-zero cost", IEEE
    TPAMI 35(11). With the plain Euclidean distance, without their learnt metric; features keep
    their length, where iCaRL's have length 1. In domain-incremental learning a class has one mean
    of all tasks.
    """

    gram: ClassVar[bool] = False

    def solution(self, moments: Moments) -> Solution:
        return nearest_mean(moments)
