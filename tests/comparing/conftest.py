"""Folders as cl-run leaves them, without running it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from cl_runner.results import files
from cl_runner.results.matrices import metric_columns, write_matrices

FIXED = {"parameters": 100, "parameter_bytes": 400, "buffer_bytes": None, "memory_bytes": 0}


def matrix(acc: float, learned: float = 0.9, T: int = 3) -> np.ndarray:
    """A matrix with a given ACC and learning accuracy; every task is learned equally well."""
    R = np.full((T + 1, T), 0.1)
    for j in range(T):
        R[j + 1 :, j] = learned
    R[T, : T - 1] = (acc * T - learned) / (T - 1)
    return R


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """run_folder(acc, strategy="er", seed=1, **columns) -> a complete run's folder."""
    return maker(tmp_path)


@pytest.fixture(scope="module")
def shared_run_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same for all tests of a module, which must leave the folders as they are."""
    return maker(tmp_path_factory.mktemp("shared"))


def maker(root: Path) -> Callable[..., Path]:
    """What makes run folders in `root/runs`."""

    def make(
        acc: float | np.ndarray = 0.5,
        *,
        folder: str | None = None,
        strategy: str = "er",
        benchmark: str = "toy",
        scenario: str = "domain",
        seed: int = 0,
        status: str = "complete",
        samples: int = 60,
        versions: dict[str, str] | None = None,
        **settings: object,
    ) -> Path:
        R = matrix(acc) if isinstance(acc, float) else acc
        keys = {key.replace("__", "."): value for key, value in settings.items()}
        flat = {
            "benchmark.num_tasks": R.shape[1],
            "benchmark.seed": seed,
            "model.width": 8,
            "optimizer.lr": 0.1,
            "training.epochs": 1,
            **keys,
        }
        label = "-".join([benchmark, scenario, strategy, str(seed), *map(str, keys.values())])
        out = root / "runs" / (folder or re.sub(r"[^\w =.-]", "_", label))
        out.mkdir(parents=True)
        measured = {("test", scenario): R}
        if scenario == "class":
            measured["test", "task"] = np.minimum(R + 0.1, 1)
        row = {
            "status": status,
            "benchmark": benchmark,
            "scenario": scenario,
            "strategy": strategy,
            "seed": seed,
            **metric_columns(measured, scenario),
            "seconds": 1.5,
            "samples": samples,
            **FIXED,
            "model": "mlp",
            "optimizer": "sgd",
            **flat,
            "cl_runner_version": "1",
            "commit": "abc",
            **(versions or {}),
        }
        files.write_rows(out / "summary.csv", [row])
        write_matrices(out, measured, scenario)
        names = ("benchmark", "strategy", "model", "optimizer")
        tree: dict[str, object] = {"seed": seed, "scenario": scenario}
        tree |= {name: {"name": row[name]} for name in names} | {"training": {}}
        for key, value in flat.items():
            group, _, name = key.partition(".")
            tree.setdefault(group, {})[name] = value  # type: ignore[index]
        (out / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        return out

    return make
