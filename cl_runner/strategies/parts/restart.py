"""New weights at the beginning of a task."""

from __future__ import annotations

import torch

from cl_runner.core import Task, TrainState
from cl_runner.training.env import Env


def restarted(
    s: TrainState, task: Task, env: Env, *, shrink: float = 0.0, perturb: float = 1.0
) -> TrainState:
    """The state with theta <- shrink theta + perturb theta', theta' initialised anew.

    Each task draws by a seed of its own. The optimizer and the BatchNorm statistics start anew.
    Before the first task nothing changes: the run's initial weights are new.
    """
    if task.index == 0:
        return s
    with env.meter.suspended():
        network = env.network(task.index)
    fresh = torch.cat([p.detach().flatten() for p in network.parameters() if p.requires_grad])
    buffers = dict(network.named_buffers())
    for name, value in s.buffers.items():
        value.copy_(buffers[name])  # in place: they are the live network's own
    return env.restart(s, s.theta.detach() * shrink + fresh * perturb)
