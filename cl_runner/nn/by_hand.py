"""An MLP whose backward pass is written out, so that its gradient comes as one vector.

It computes what autograd computes, by the same matrix products, without a node per operation and
without joining the layers' gradients afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cl_runner.nn.networks import MLP


def applies_to(module: object) -> bool:
    """Whether a network's backward pass is written out here: a plain MLP's is."""
    if type(module) is not MLP or module.dropout:
        return False
    return all(p.requires_grad and p.dtype == torch.float32 for p in module.parameters())


def logits(theta: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """A plain MLP's logits [B, K] for x [B, ...]; the gradient flows to theta [P], not to x.

    parameters: the layers' weights and biases in turn, views of theta.
    """
    result: Tensor = Backpropagation.apply(theta, x, parameters)  # type: ignore[no-untyped-call]
    return result


class Backpropagation(torch.autograd.Function):
    """`logits`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """A product and a ReLU per layer; of the last one, a product."""
        inputs = [x.flatten(1)]
        weights, biases = parameters[::2], parameters[1::2]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(torch.addmm(bias, inputs[-1], weight.t()).relu_())
        ctx.weights, ctx.inputs, ctx.like = weights, inputs, theta
        return torch.addmm(biases[-1], inputs[-1], weights[-1].t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None]:
        """From the last layer to the first, each gradient written to its place."""
        gradient = torch.empty_like(ctx.like)
        end = len(gradient)
        for i in reversed(range(len(ctx.weights))):
            weight, given = ctx.weights[i], ctx.inputs[i]
            middle, begin = end - len(weight), end - len(weight) - weight.numel()
            torch.sum(delta, 0, out=gradient[middle:end])
            torch.mm(delta.t(), given, out=gradient[begin:middle].view_as(weight))
            if i:
                delta = torch.ops.aten.threshold_backward(delta.mm(weight), given, 0)
            end = begin
        return gradient, None, None
