"""What a step costs, known before a run from one step on its first samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from cl_runner.core import TrainState
from cl_runner.strategies.base import Strategy
from cl_runner.training import optim
from cl_runner.training.batches import Source
from cl_runner.training.env import Env
from cl_runner.training.fit import plan
from cl_runner.training.flops import FlopCounter

COSTLY = 10  # times the FLOPs of naive's step: what is more is told


def step_flops(strategy: Strategy, env: Env) -> tuple[int, int]:
    """FLOPs of a step in the first task, and of a step that only fits its batch.

    The latter is naive's on the network that is asked: of a scholar, its classifier. Nothing of the
    run is changed: the step is taken from a copy of theta.
    """
    task, theta = env.stream[0], env.flat.theta.detach().clone()
    t = torch.zeros((), dtype=torch.int64, device=env.device)
    s = TrainState(theta, {}, optim.init(env.optimizer, theta), strategy.init(theta, env), t)
    (batch,) = Source(env, s, 0, *task.samples(), strategy).epoch(0, 1)
    plain = env.grad_and_value(lambda *args: Strategy.loss(strategy, *args))
    with torch.no_grad():
        own = counted(strategy.step, s, batch, env)
        return own, counted(plain, theta, s, batch, env)


def counted(function: Callable[..., Any], *args: Any) -> int:
    """The FLOPs of a call."""
    counter = FlopCounter()
    with counter:
        function(*args)
    return counter.flops


def costs(strategy: Strategy, env: Env, lower: str, *, always: bool = False) -> Iterator[str]:
    """What the run's steps will cost, in a line, where that is more than ten times naive's.

    lower: the keys that change it. always: also where it is less.
    """
    own, naive = step_flops(strategy, env)
    if always or own > COSTLY * naive:
        steps = sum(plan(len(task.train), env.training).steps for task in env.stream)
        yield (
            f"strategy={strategy.name} takes {steps:,} steps of {own:.2g} FLOPs each, "
            f"{steps * own:.2g} in all, {own / naive:.1f} times naive's; {lower} make it cheaper"
        )
