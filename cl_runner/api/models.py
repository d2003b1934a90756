"""`cl.load_model`: the trained network of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from cl_runner.api.runs import Run


def load_model(run: str | Path | Run) -> nn.Module:
    """The network that a run has trained, from its folder, as a module of torch.

    It takes images as the data set has them, uint8 [B, C, H, W], and gives probabilities [B, K].
    Raises UserError if the run did not keep its network (`checkpoint.keep=true`).
    """
    from cl_runner.exporting.load import load_model as load

    return load(run if isinstance(run, str | Path) else run.folder)
