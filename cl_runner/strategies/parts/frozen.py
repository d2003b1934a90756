"""Steps that move some of the parameters and leave the others where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.core import TrainState


def only(new: TrainState, s: TrainState, free: Tensor) -> TrainState:
    """The state `new`, but of theta only the parameters `free` [P] bool differ from those of s."""
    return new._replace(theta=torch.where(free, new.theta, s.theta.detach()))
