"""Small runs for what Python offers."""

from __future__ import annotations

from pathlib import Path

import pytest

import cl_runner as cl

SMALL = (
    "benchmark=split_digits",
    "benchmark.num_tasks=2",
    "benchmark.train_samples=60",
    "training.iterations=4",
    "training.batch_size=8",
    "model.hidden_sizes=[8]",
    "device=cpu",
    "threads=1",
    "verbose=false",
)


@pytest.fixture(scope="session")
def small(data_root: Path) -> tuple[str, ...]:
    """What is typed for a run of a moment."""
    return (*SMALL, f"data.root={data_root}")


@pytest.fixture(scope="session")
def four(small, tmp_path_factory) -> Path:
    """The folder of naive and er on two seeds each, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("four")
    for strategy in ("naive", "er"):
        for seed in (0, 1):
            cl.run(*small, strategy=strategy, seed=seed, out=folder / f"{strategy}{seed}")
    return folder
