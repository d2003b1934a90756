"""What runs must leave: what others of the same configuration do, and what is not trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cl_runner.results.columns import reproducible
from cl_runner.results.files import read_rows
from cl_runner.running.tasks import initial_state, train_task


def outcome(out: Path) -> dict[str, object]:
    """All CSV files of a run: bytes, but of two of them the cells that can be reproduced."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in sorted(out.glob("*.csv"))}
    for name in ("summary.csv", "costs.csv"):
        rows = read_rows(out / name)
        # Somebody may commit to the checkout while the tests run.
        kept = [[k for k in row if reproducible(k) and k != "commit"] for row in rows]
        files[name] = [[(k, row[k]) for k in names] for row, names in zip(rows, kept, strict=True)]
    return files


def train_the_rest(prepared: Callable[..., tuple], *overrides: str) -> None:
    """Train on all tasks a network of which a part is not trained, which must stay as it is."""
    _, strategy, env = prepared(*overrides)
    stay = [p for p in env.flat.module.parameters() if not p.requires_grad]
    before = [p.clone() for p in stay]
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    assert stay and all(map(torch.equal, stay, before))
