"""Which strategy can be trained on which boundaries between tasks."""

from __future__ import annotations

from cl_runner.config.schema import Config
from cl_runner.errors import check
from cl_runner.strategies.base import Strategy


def check_boundaries(config: Config, strategy: Strategy) -> None:
    """Raise UserError for a strategy that the stream's boundaries are not for."""
    boundaries = config.benchmark.boundaries
    check(
        boundaries == "sharp" or type(strategy).training_set is Strategy.training_set,
        f"benchmark.boundaries={boundaries} does not go with strategy={strategy.name}, which "
        "chooses the samples that it trains on: use benchmark.boundaries=sharp",
    )
    if config.training.boundaries == "none":
        reason = strategy.needs_borders(config.scenario)
        check(
            not reason,
            f"training.boundaries=none does not go with strategy={strategy.name}: {reason}",
        )
