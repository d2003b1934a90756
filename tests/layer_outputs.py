"""What the layers of a network answer, for tests of those that hold it still."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_runner.training.env import Env


def layer_outputs(env: Env, theta: Tensor, t: int) -> dict[str, Tensor]:
    """What each layer answers to a task's training samples, by its name."""
    seen: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda _m, _x, out, name=name: seen.update({name: out}))
        for name, layer in env.flat.module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    batch = env.gather(env.stream[t].train, t, torch.tensor(t))
    with torch.no_grad():
        env.net(theta.detach().clone(), batch.x, batch.task)
    for handle in handles:
        handle.remove()
    return seen
