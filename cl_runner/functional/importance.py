"""Importances of parameters, from the gradients of single samples.

The diagonal of the Fisher information, F_p = E_x E_{y ~ rule} (d log p(y | x) / d theta_p)^2, and
the output sensitivity of MAS. Squaring the gradient of a batch's mean is a different quantity,
which shrinks with the batch; it is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from cl_runner.core import Batch
from cl_runner.functional.losses import mask_logits

Size = Callable[[Tensor], Tensor]  # elementwise and multiplicative: torch.square or torch.abs
Forward = Callable[[Batch], Tensor]  # logits [B, K]
Cotangents = Callable[[Tensor, Batch], Sequence[Tensor]]  # from logits [B, K], each [B, K]
Product = Callable[[Tensor, Tensor], Tensor]
LABEL_RULES = ("exact", "sampled", "true", "predicted")
FACTOR_BYTES = 2**28  # of unfolded inputs, or of whole gradients of single samples, at once
BLOCK_BYTES = 2**22  # of one layer's gradients of single samples: more of them leave the cache


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
    if rule == "exact":  # classes that are active for no sample have p = 0 throughout
        shown = classes if active is None else classes[active.any(0)]
        return [p[:, c, None].sqrt() * ((classes == c).to(p) - p) for c in shown.tolist()]
    if rule == "sampled":
        mass = p.cumsum(1)  # its end, 1 but for rounding, stays above uniform * end
        label = (mass <= uniform[:, None] * mass[:, -1:]).sum(1)
    elif rule == "predicted":
        label = p.argmax(1)
    else:
        label = y
    return [(classes == label[:, None]).to(p) - p]


def linear_factor(_: nn.Linear, a: Tensor) -> Tensor:
    """Inputs a [B, I], at the one position that there is: [B, I, 1]."""
    return a[..., None]


def conv2d_factor(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """The patches of a [B, C, H, W] under the kernel at its L positions: [B, C * kh * kw, L]."""
    assert isinstance(layer.padding, tuple)  # see has_rule
    return F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


def batchnorm_factor(layer: nn.BatchNorm1d | nn.BatchNorm2d, a: Tensor) -> Tensor:
    """(a - running mean) / sqrt(running variance + eps) of a [B, C, ...], as [B, C, L]."""
    values = F.batch_norm(a, layer.running_mean, layer.running_var, eps=layer.eps)
    return values.reshape(*values.shape[:2], -1)


def outer(delta: Tensor, factor: Tensor) -> Tensor:
    """sum_l delta_ol factor_il for each sample: [B, O, L], [B, I, L] -> [B, O, I]."""
    return delta @ factor.mT


def inner(delta: Tensor, factor: Tensor) -> Tensor:
    """sum_l delta_cl factor_cl for each sample: [B, C, L] twice -> [B, C]."""
    return (delta * factor).sum(2)


# A sample's gradient is product(delta, factor(layer, input)) for the weight and sum_l delta_l for
# the bias, delta [B, O, L] being the derivative with respect to the layer's output.
RULES: dict[type[nn.Module], tuple[Callable[[Any, Tensor], Tensor], Product]] = {
    nn.Linear: (linear_factor, outer),
    nn.Conv2d: (conv2d_factor, outer),
    nn.BatchNorm1d: (batchnorm_factor, inner),
    nn.BatchNorm2d: (batchnorm_factor, inner),
}


class Use(NamedTuple):
    """One use of a layer in a forward pass."""

    layer: nn.Module
    output: GradientEdge  # not the tensor, which an activation in place may overwrite
    factor: Tensor  # [B, I, L]


def has_rule(layer: nn.Module) -> bool:
    """Whether RULES hold for this layer."""
    if isinstance(layer, nn.Conv2d) and not (
        layer.groups == 1 and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)
    ):
        return False
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and (
        layer.training or layer.running_mean is None
    ):
        return False
    return type(layer) in RULES  # a subclass may compute something else


def ruled_layers(module: nn.Module) -> list[nn.Module]:
    """The layers that hold the trainable parameters; none, unless each is in one under RULES."""
    trainable = {id(p) for p in module.parameters() if p.requires_grad}
    held = [
        (m, id(p))
        for m in module.modules()
        if has_rule(m)
        for p in (m.weight, m.bias)
        if id(p) in trainable
    ]
    each_once = sorted(p for _, p in held) == sorted(trainable)
    return list(dict.fromkeys(m for m, _ in held)) if each_once else []


def traced(layers: list[nn.Module], forward: Forward, batch: Batch) -> tuple[Tensor, list[Use]]:
    """forward(batch), with its graph, and each use that it makes of the layers."""
    uses: list[Use] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        factor, _ = RULES[type(layer)]
        uses.append(Use(layer, get_gradient_edge(output), factor(layer, inputs[0].detach())))

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with torch.enable_grad():
            return forward(batch), uses
    finally:
        for handle in handles:
            handle.remove()


def add_sizes(
    sums: dict[int, Tensor], layer: nn.Module, delta: Tensor, factor: Tensor, size: Size
) -> None:
    """sums[id(p)] += sum_n size(gradient_n of p) for the layer's p; [B, O, L] and [B, I, L]."""
    _, product = RULES[type(layer)]
    if (weight := sums.get(id(layer.weight))) is not None:
        block = max(1, BLOCK_BYTES // weight.nbytes)
        for d, f in zip(delta.split(block), factor.split(block), strict=True):
            sizes = size(product(d, f))
            total = sizes[0] if len(sizes) == 1 else sizes.sum(0)  # the sum of one would copy it
            weight += total.view_as(weight)
    if (bias := sums.get(id(layer.bias))) is not None:
        bias += size(delta.sum(2)).sum(0)


def add_product(sums: dict[int, Tensor], layer: nn.Module, delta: Tensor, factor: Tensor) -> None:
    """Add sum_n delta_n factor_n^T to the weight's sums, and sum_n delta_n to the bias's.

    The sizes of a layer that was used at one position: delta [B, O], factor [B, I]. A weight that
    is a vector, BatchNorm's, has one factor for each output.
    """
    if (weight := sums.get(id(layer.weight))) is not None:
        if weight.dim() > 1:
            matrix = weight.view(len(weight), -1)
            torch.addmm(matrix, delta.T, factor, out=matrix)
        else:
            weight += (delta * factor).sum(0)
    if (bias := sums.get(id(layer.bias))) is not None:
        bias += delta.sum(0)


def derivatives(logits: Tensor, uses: list[Use], g: Tensor) -> Sequence[Tensor | None]:
    """Those of <g, f> with respect to the outputs of layers; None where f does not depend on it."""
    outputs = [use.output for use in uses]
    return torch.autograd.grad(logits, outputs, g, retain_graph=True, allow_unused=True)


def add_gradient_sizes(
    sums: dict[int, Tensor],
    layers: list[nn.Module],
    forward: Forward,
    batch: Batch,
    cotangents_of: Cotangents,
    size: Size,
) -> None:
    """sums[id(p)] += sum_n sum_c size(d <g_nc, f(x_n)> / d p) for the parameters p of the layers.

    The backward passes go to the layers' outputs only. With a single position the weight's gradient
    is delta_n a_n^T, and size(delta_n a_n^T) = size(delta_n) size(a_n)^T: no sample's gradient is
    ever formed, the sum over n is one matrix product, and the vectors g_c share it.
    """
    logits, uses = traced(layers, forward, batch)
    single: dict[nn.Module, Tensor] = {}  # sum_c size(delta) [B, O, 1], of one position
    for g in cotangents_of(logits.detach(), batch):
        for (layer, _, factor), d in zip(uses, derivatives(logits, uses, g), strict=True):
            if d is None:
                continue
            delta = d.reshape(*d.shape[:2], -1)  # [B, O, L]
            if factor.shape[2] > 1:
                add_sizes(sums, layer, delta, factor, size)
            elif layer in single:
                single[layer] += size(delta)
            else:
                single[layer] = size(delta)
    for layer, _, factor in uses:
        if layer in single:
            add_product(sums, layer, single[layer][..., 0], size(factor[..., 0]))


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


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of `size` samples, but at least one; the last part may be smaller."""
    step, (*fields, noise, _) = max(1, size), batch
    for at in range(0, len(batch.x), step):
        rows = slice(at, at + step)
        parts = [None if v is None else v[rows] for v in fields]
        yield Batch._make([*parts, {name: u[rows] for name, u in noise.items()}, {}])


def fisher_overlap(a: Tensor, b: Tensor) -> float | None:
    """How far two tasks need the same weights: 1 - d^2 in [0, 1], for Fisher diagonals a, b [P].

    Kirkpatrick et al. 2017 (arXiv 1612.00796, section 4.3): with both normalised to unit trace,
    d^2 = 1/2 tr(A + B - 2 (A B)^(1/2)), the Frechet distance, which for diagonals leaves
    1 - d^2 = sum_p sqrt(a_p b_p). None where one of them is all zero.
    """
    a, b = a.double(), b.double()
    if not (a.any() and b.any()):
        return None
    return float(((a / a.sum()) * (b / b.sum())).sqrt().sum())
