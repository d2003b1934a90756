"""Of a step, only the free parameters' part is taken."""

from __future__ import annotations

import torch

from cl_runner.core import TrainState
from cl_runner.strategies.parts.frozen import only


def test_only_the_free_parameters_move_and_all_else_is_the_steps() -> None:
    zero = torch.tensor(0)
    theta = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    s = TrainState(theta, {}, {"lr": zero}, {"steps": zero}, zero)
    new = s._replace(theta=torch.tensor([4.0, 5.0, 6.0]), memory={"steps": zero + 1})
    after = only(new, s, torch.tensor([True, False, True]))
    assert after.theta.tolist() == [4.0, 2.0, 6.0]
    assert not after.theta.requires_grad
    assert after._replace(theta=new.theta) == new
