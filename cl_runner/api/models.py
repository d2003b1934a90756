"""`cl.load_model`: the trained network of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from cl_runner.api.runs import Run


def load_model(
    run: str | Path | Run, *, task: int | str | None = None, plugins: Sequence[str] = ()
) -> nn.Module:
    """The network that a run has trained, from its folder alone, as a module of torch.

    It takes images as the data set has them, uint8 [B, C, H, W], and gives probabilities [B, K].

    Args:
        run: a run, or its folder.
        task: of a task-incremental run, which one: its number from 1, or its name.
        plugins: the packages of yours that the run was made with; only those are imported.

    Raises:
        UserError: the run is not complete or did not keep its network (`checkpoint.keep=true`).
    """
    from cl_runner.exporting import load  # torch

    folder = run if isinstance(run, str | Path) else run.folder
    return load.load_model(folder, task=task, plugins=plugins)
