"""Naive fine-tuning: each task is trained on as if it were the only one. The lower bound."""

from __future__ import annotations

from dataclasses import dataclass

from cl_runner.strategies.base import Strategy


@dataclass(frozen=True, kw_only=True)
class Naive(Strategy):
    """Trains on each task's data alone, and does nothing against forgetting: the lower bound.

    These are the defaults of every strategy's methods, unchanged.
    """
