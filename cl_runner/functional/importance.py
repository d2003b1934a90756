"""Importances of parameters, from the gradients of single samples.

The diagonal of the Fisher information, F_p = E_x E_{y ~ rule} (d log p(y | x) / d theta_p)^2, and
the output sensitivity of MAS. Squaring the gradient of a batch's mean is a different quantity,
which shrinks with the batch; it is not offered.
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

Size = Callable[[Tensor], Tensor]  # elementwise and multiplicative: torch.square or torch.abs
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


def gradient_sizes(
    module: nn.Module,
    forward: Callable[[], Tensor],
    per_sample: Callable[[Tensor], Tensor],
    cotangents_of: Callable[[Tensor], Sequence[Tensor]],
    size: Size,
) -> Tensor:
    """sum_n sum_c size(d <g_nc, f(x_n)> / d theta) for a batch, as one vector [P].

    `forward()` is the logits [B, K] of the batch through `module`, `cotangents_of(logits)` the
    vectors g_c [B, K]. Where each parameter belongs to a Linear layer that is used once, no
    sample's gradient is ever formed: size(delta a) = size(delta) size(a), so that
    sum_n size(delta_n a_n^T) is one matrix product per layer, and the classes c share it. For other
    networks `per_sample(g)` must give sum_n size(d <g_n, f(x_n)> / d theta), [P], from the samples'
    own gradients.
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
            delta.add_(size(d))
    sizes: dict[int, Tensor] = {}
    for (layer, a, _), delta in zip(records, deltas, strict=True):
        sizes[id(layer.weight)] = delta.T @ size(a)
        if layer.bias is not None:
            sizes[id(layer.bias)] = delta.sum(0)
    return torch.cat([sizes[id(p)].flatten() for p in trainable])


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


def mean_gradient_sizes(
    s: TrainState,
    task: Task,
    env: Env,
    cotangents_of: Callable[[Tensor, Batch], Sequence[Tensor]],
    size: Size,
    samples: int | None,
) -> Tensor:
    """Mean over a task's training samples of sum_c size(d <g_c, f(x)> / d theta), as [P].

    `cotangents_of(logits, batch)` gives the vectors g_c [B, K]. `samples` asks for a random subset.
    Dropout is off and BatchNorm uses its running statistics.
    """

    def add(total: Tensor, batch: Batch) -> Tensor:
        def per_sample(g: Tensor) -> Tensor:
            def score(theta: Tensor, x: Tensor, task: Tensor, g: Tensor) -> Tensor:
                return (env.net(theta, x[None], task[None]) * g).sum()

            gradients = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0, 0, 0))
            theta = s.theta.detach()
            chunk = max(1, 2**26 // theta.numel())  # at most 256 MiB of gradients at once
            parts = zip(batch.x.split(chunk), batch.task.split(chunk), g.split(chunk), strict=True)
            return torch.stack([size(gradients(theta, *part)).sum(0) for part in parts]).sum(0)

        return total + gradient_sizes(
            env.flat.module,
            lambda: env.net(s.theta, batch.x, batch.task),
            per_sample,
            lambda logits: cotangents_of(logits, batch),
            size,
        )

    total = torch.zeros_like(s.theta, requires_grad=False)
    total, count = env.fold(add, total, s, task, samples=samples)
    return total / count


def fisher_diagonal(
    s: TrainState, task: Task, env: Env, *, labels: str, samples: int | None
) -> Tensor:
    """F [P]: mean over a task's training samples (or `samples` of them) of squared scores.

    labels: one of LABEL_RULES. The classes are those active in training.
    """

    def scores(logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        return score_cotangents(logits, batch.y, batch.active, labels, batch.noise["label"])

    return mean_gradient_sizes(s, task, env, scores, torch.square, samples)


def output_sensitivity(s: TrainState, task: Task, env: Env, *, samples: int | None) -> Tensor:
    """Omega [P]: mean over samples of |d |f(x)|^2 / d theta|, of the outputs active in training.

    Aljundi et al. 2018, arXiv 1711.09601, eq. 2 and section 4.1: needs no labels.
    """

    def outputs(logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        return [2 * (logits if batch.active is None else logits * batch.active)]

    return mean_gradient_sizes(s, task, env, outputs, torch.abs, samples)
