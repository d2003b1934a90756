"""Optimizers as pure functions on one flat vector; they compute what torch.optim's namesakes do.

The slots live in a dict of tensors, the learning rate among them, so that they are saved, stacked
and swept like everything else that a run consists of.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cl_runner.config.schema import SGD, Adam, Optimizer

Slots = dict[str, Tensor]


def init(config: Optimizer, theta: Tensor) -> Slots:
    """The slots before the first step: `lr` 0-d, and what the optimizer accumulates, [P] each."""
    zeros = torch.zeros_like(theta, requires_grad=False)
    slots: Slots = {"lr": torch.tensor(config.lr, device=theta.device)}
    if isinstance(config, SGD) and config.momentum:
        slots["momentum"] = zeros
    if isinstance(config, Adam):
        slots |= {"m": zeros, "v": zeros.clone(), "steps": torch.zeros((), device=theta.device)}
    return slots


def update(
    config: Optimizer, theta: Tensor, grad: Tensor, slots: Slots, *, spent: bool = False
) -> tuple[Tensor, Slots]:
    """One step: (new theta [P], new slots); no tensor that was passed in is changed.

    But `grad`, where it is `spent`: its memory may become theta's, so that a step moves less.
    The gradient is clipped before weight decay is added to it, as by torch's clip_grad_value_ and,
    after that, clip_grad_norm_.
    """
    if config.clip_value is not None:
        grad = grad.clamp(-config.clip_value, config.clip_value)
    if config.clip_norm is not None:
        grad = shortened(grad, config.clip_norm)
    decoupled = config.name == "adamw"
    if config.weight_decay and not decoupled:
        grad = torch.add(grad, theta, alpha=config.weight_decay)
    if isinstance(config, Adam):
        return _adam(config, theta, grad, slots, config.weight_decay if decoupled else 0.0)
    assert isinstance(config, SGD)
    if config.momentum:
        velocity = torch.add(grad, slots["momentum"], alpha=config.momentum)
        slots = slots | {"momentum": velocity}
        grad = torch.add(grad, velocity, alpha=config.momentum) if config.nesterov else velocity
    plain = spent and not config.momentum and not config.weight_decay
    return torch.addcmul(theta, grad, slots["lr"], value=-1, out=grad if plain else None), slots


def shortened(grad: Tensor, length: float) -> Tensor:
    """A gradient [P] that is brought down to a length where it is longer, by clip_grad_norm_."""
    short: Tensor = grad * (length / (grad.norm() + 1e-6)).clamp_max(1)
    return short


def _adam(
    config: Adam, theta: Tensor, grad: Tensor, slots: Slots, decay: float
) -> tuple[Tensor, Slots]:
    """Kingma & Ba 2015, arXiv 1412.6980, algorithm 1; decay as Loshchilov & Hutter 2019."""
    beta1, beta2 = config.betas
    lr, steps = slots["lr"], slots["steps"] + 1
    m = torch.lerp(slots["m"], grad, 1 - beta1)
    v = torch.addcmul(torch.mul(slots["v"], beta2), grad, grad, value=1 - beta2)
    size = lr / _bias(beta1, steps)
    denominator = v.sqrt().div_(_bias(beta2, steps).sqrt()).add_(config.eps)
    if decay:
        theta = theta * (1 - lr * decay)
    theta = torch.addcmul(theta, m.div(denominator), size, value=-1)
    return theta, {"lr": lr, "m": m, "v": v, "steps": steps}


def _bias(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^steps, without the cancellation that costs three of seven digits at step 1."""
    return -torch.expm1(steps * math.log(beta)) if beta else torch.ones_like(steps)


def step_size(config: Optimizer, slots: Slots) -> Tensor:
    """How far a step moves theta per unit of a gradient that stays as it is: 0-d, or [P] for Adam.

    SGD: lr / (1 - momentum). Adam: lr / (sqrt(v) + eps), v corrected for its start at 0.
    """
    if isinstance(config, Adam):
        v = slots["v"] / _bias(config.betas[1], slots["steps"])
        return slots["lr"] / (v.sqrt_() + config.eps)
    assert isinstance(config, SGD)
    return slots["lr"] / (1 - config.momentum) if config.momentum else slots["lr"]


def rate_factor(config: Optimizer, progress: float) -> float:
    """The schedule's factor on the learning rate at `progress` in [0, 1) through a task.

    `cosine` with n cycles: warm restarts (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5, with
    T_mult = 2); n cycles of 1, 2, 4, ... parts of the 2^n - 1 that the task has.
    """
    if config.schedule == "cosine":
        at = progress * (2**config.cycles - 1)
        length = 2 ** math.floor(math.log2(1 + at))  # of this cycle, which begins at length - 1
        least = config.min_lr / config.lr
        share = (at - (length - 1)) / length
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * share))
    return float(config.decay ** sum(progress >= m for m in config.milestones))
