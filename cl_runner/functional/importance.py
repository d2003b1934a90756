"""The diagonal of the Fisher information, from the gradients of single samples.

F_p = E_x E_{y ~ rule} (d log p(y | x) / d theta_p)^2. Squaring the gradient of a batch's mean is a
different quantity, which shrinks with the batch; it is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState
from cl_runner.functional.losses import mask_logits

if TYPE_CHECKING:
    from cl_runner.env import Env

LABEL_RULES = ("exact", "sampled", "true", "predicted")


def score_cotangents(
    logits: Tensor, y: Tensor, active: Tensor | None, rule: str, uniform: Tensor
) -> list[Tensor]:
    """Gradients [B, K] of log p(label | x) with respect to the logits, one per label considered.

    rule: `true` the data's labels y; `predicted` the most probable class; `sampled` one class drawn
    from the model's distribution with `uniform` [B]; `exact` every class, each gradient times
    sqrt(p), so that the sum of squares is the expectation over the model's distribution.
    """
    p = torch.softmax(mask_logits(logits, active), 1)
    classes = torch.arange(p.shape[1], device=p.device)
    if rule == "exact":
        return [p[:, c, None].sqrt() * ((classes == c).to(p) - p) for c in range(p.shape[1])]
    if rule == "sampled":
        mass = p.cumsum(1)  # its end, 1 but for rounding, stays above uniform * end
        label = (mass <= uniform[:, None] * mass[:, -1:]).sum(1)
    elif rule == "predicted":
        label = p.argmax(1)
    else:
        label = y
    return [(classes == label[:, None]).to(p) - p]


def squared_gradient_sum(
    module: nn.Module,
    forward: Callable[[], Tensor],
    per_sample: Callable[[Tensor], Tensor],
    cotangents_of: Callable[[Tensor], Sequence[Tensor]],
) -> Tensor:
    """sum_n sum_c (d <g_nc, f(x_n)> / d theta)^2 for a batch, as one vector [P].

    `forward()` is the logits [B, K] of the batch through `module`, `cotangents_of(logits)` the
    vectors g_c [B, K]. Where each parameter belongs to a Linear layer that is used once, no
    sample's gradient is ever formed: sum_n (delta_n a_n^T)^2 = (delta^2)^T (a^2), elementwise
    squares, is one matrix product per layer, and the classes c share it. For other networks
    `per_sample(g)` must give sum_n (d <g_n, f(x_n)> / d theta)^2, [P], from the samples' own
    gradients.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    layers = [m for m in linear if any(p.requires_grad for p in m.parameters())]
    owned = [id(p) for m in layers for p in m.parameters() if p.requires_grad]
    records: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        records.append((layer, inputs[0].detach(), output))

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with torch.enable_grad():
            logits = forward()
    finally:
        for handle in handles:
            handle.remove()
    cotangents = cotangents_of(logits.detach())
    dense = (
        sorted(owned) == sorted(id(p) for p in trainable)  # each in one layer, none shared
        and len(records) == len({id(layer) for layer, _, _ in records}) == len(layers)
        and all(a.dim() == 2 for _, a, _ in records)
    )
    if not dense:
        return torch.stack([per_sample(g) for g in cotangents]).sum(0)

    outputs = [z for _, _, z in records]
    deltas = [torch.zeros_like(z) for z in outputs]
    for g in cotangents:
        for delta, d in zip(
            deltas, torch.autograd.grad(logits, outputs, g, retain_graph=True), strict=True
        ):
            delta.addcmul_(d, d)
    squares: dict[int, Tensor] = {}
    for (layer, a, _), delta in zip(records, deltas, strict=True):
        squares[id(layer.weight)] = delta.T @ a.square()
        if layer.bias is not None:
            squares[id(layer.bias)] = delta.sum(0)
    return torch.cat([squares[id(p)].flatten() for p in trainable])


def merge_quadratics(
    anchor: Tensor, importance: Tensor, new_anchor: Tensor, new_importance: Tensor
) -> Tensor:
    """The anchor m of the sum of two quadratic penalties, all [P].

    a (theta - m1)^2 + b (theta - m2)^2 = (a + b) (theta - m)^2 + const with
    m = (a m1 + b m2) / (a + b): a penalty per task at the cost and memory of one.
    """
    total = importance + new_importance
    share = torch.where(total > 0, new_importance / total, torch.ones_like(total))
    return torch.lerp(anchor, new_anchor, share)


def fisher_diagonal(
    s: TrainState, task: Task, env: Env, *, labels: str, samples: int | None
) -> Tensor:
    """F [P]: mean over a task's training samples (or `samples` of them) of squared gradients.

    labels: one of LABEL_RULES. The classes are those active in training; dropout is off and
    BatchNorm uses its running statistics.
    """

    def add(total: Tensor, batch: Batch) -> Tensor:
        def squares(g: Tensor) -> Tensor:
            def score(theta: Tensor, x: Tensor, task: Tensor, g: Tensor) -> Tensor:
                return (env.net(theta, x[None], task[None]) * g).sum()

            per_sample = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0, 0, 0))
            theta = s.theta.detach()
            chunk = max(1, 2**26 // theta.numel())  # at most 256 MiB of gradients at once
            parts = zip(batch.x.split(chunk), batch.task.split(chunk), g.split(chunk), strict=True)
            return torch.stack([per_sample(theta, *part).square().sum(0) for part in parts]).sum(0)

        return total + squared_gradient_sum(
            env.flat.module,
            lambda: env.net(s.theta, batch.x, batch.task),
            squares,
            lambda logits: score_cotangents(
                logits, batch.y, batch.active, labels, batch.noise["label"]
            ),
        )

    total = torch.zeros_like(s.theta, requires_grad=False)
    total, count = env.fold(add, total, s, task, samples=samples)
    return total / count
