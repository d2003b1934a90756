"""Steps that move some of the parameters and leave the others where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.core import TrainState
from cl_runner.errors import check
from cl_runner.training.env import Env


def check_maskable(name: str, env: Env) -> None:
    """Refuse a network that is more than weights which tasks may mask."""
    check(
        not env.flat.buffers,
        f"strategy={name} needs a model without BatchNorm, whose statistics are shared; "
        "use model=mlp or model=cnn",
    )
    check(
        all(p.requires_grad for p in env.flat.module.parameters()),
        f"strategy={name} masks a model's own weights: it needs adapter=none and model.freeze=[]",
    )


def only(new: TrainState, s: TrainState, free: Tensor) -> TrainState:
    """The state `new`, but of theta only the parameters `free` [P] bool differ from those of s."""
    return new._replace(theta=torch.where(free, new.theta, s.theta.detach()))
