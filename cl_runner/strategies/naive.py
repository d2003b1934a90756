"""Naive fine-tuning: each task is trained on as if it were the only one. The lower bound."""

from __future__ import annotations

from dataclasses import dataclass

from cl_runner.strategies.base import Strategy


@dataclass(frozen=True, kw_only=True)
class Naive(Strategy):
    """The base class, unchanged."""
