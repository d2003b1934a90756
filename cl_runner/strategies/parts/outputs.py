"""The output layer: its units, and an output for each class seen so far and no other."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_runner.errors import check
from cl_runner.training.env import Env

# Outputs that grow with the classes.


def check_growing(what: str, env: Env) -> None:
    """Refuse settings in which a class has samples, or is scored, before its task."""
    check(
        env.training.active_classes != "current",
        f"training.active_classes must be all or seen for {what}, whose outputs are the classes "
        "seen, got current",
    )
    check(
        env.stream.boundaries != "fuzzy",
        f"benchmark.boundaries=fuzzy does not go with {what}, for which a class has no output "
        "before its task begins",
    )


def classes_before(t: Tensor | int, env: Env) -> Tensor:
    """The classes of the tasks before task t, [K] bool."""
    order = torch.arange(env.num_tasks, device=env.own_classes.device)[:, None]
    return (env.own_classes & (order < t)).any(0)


def unseen_last(logits: Tensor, seen: Tensor) -> Tensor:
    """Logits [B, K] with those of classes that are not `seen` [K] below all others, in order."""
    lowest = logits.masked_fill(~seen, torch.inf).amin(1, keepdim=True)
    highest = logits.masked_fill(seen, -torch.inf).amax(1, keepdim=True)
    return torch.where(seen, logits, logits - highest + lowest - 1)


# Its units.


def output_units(theta: Tensor, env: Env) -> Tensor:
    """Weights and bias of each class's output unit, [K, D + 1]."""
    rows = theta[every_unit(env)]
    K = env.num_classes
    return torch.cat([rows[:-K].view(K, -1), rows[-K:, None]], 1)


def with_output_units(theta: Tensor, units: Tensor, env: Env) -> Tensor:
    """The parameters theta [P] with these output units [K, D + 1]."""
    rows = torch.cat([units[:, :-1].flatten(), units[:, -1]])
    return theta.masked_scatter(every_unit(env), rows)


def every_unit(env: Env) -> Tensor:
    """Which parameters [P] the output layer has, the biases after the weights."""
    return env.flat.output_mask(torch.ones_like(env.own_classes[0]))
