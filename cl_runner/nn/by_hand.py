"""An MLP whose backward pass is written out, so that its gradient comes as one vector.

It computes what autograd computes, by the same matrix products, without a node per operation and
without joining the layers' gradients afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors
from torch.autograd.function import once_differentiable
from torch.nn import Linear

from cl_runner.nn.kernels import by_size
from cl_runner.nn.networks import MLP
from cl_runner.nn.on_features import OnFeatures


def applies_to(module: object) -> bool:
    """Whether a network's backward pass is written out here: a plain MLP's is.

    So is that of an output layer alone, on features in the place of what lies below it.
    """
    if isinstance(module, OnFeatures):
        return one_layer(module)
    if type(module) is not MLP or module.dropout.p or len(module.norms):
        return False
    plain = all(type(layer) is Linear for layer in module.layers)
    return plain and all(p.requires_grad and p.dtype == torch.float32 for p in module.parameters())


def one_layer(module: OnFeatures) -> bool:
    """Whether all that is trained is one nn.Linear with a bias, and its inputs are vectors."""
    trained = [p for p in module.parameters() if p.requires_grad]
    last = module.stages()[module.left_out :]
    if len(last) != 1 or type(last[0]) is not Linear or len(module.shape) != 1:
        return False
    own = [last[0].weight, last[0].bias]
    return [id(p) for p in trained] == [id(p) for p in own] and own[0].dtype == torch.float32


def logits(theta: Tensor, x: Tensor, parameters: Sequence[Tensor], threads: int | None) -> Tensor:
    """A plain MLP's logits [B, K] for x [B, ...]; the gradient flows to theta [P], not to x.

    parameters: the layers' weights and biases in turn, views of theta. threads: of the CPU, for
    products that are large enough; None: as they are (see `nn.kernels`).
    """
    result: Tensor = Backpropagation.apply(  # type: ignore[no-untyped-call]
        theta, x, parameters, threads
    )
    return result


class Backpropagation(torch.autograd.Function):
    """`logits`, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, theta: Tensor, x: Tensor, parameters: Sequence[Tensor], threads: int | None
    ) -> Tensor:
        """A product and a ReLU per layer; of the last one, a product."""
        inputs = [x.flatten(1)]
        ctx.inputs, ctx.parameters, ctx.like, ctx.threads = inputs, parameters, theta, threads
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            with by_size(len(x) * weight.numel(), threads):
                output = torch.addmm(bias, inputs[-1], weight.t())
            if 2 * len(inputs) < len(parameters):
                inputs.append(output.relu_())
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None, None]:
        """From the last layer to the first, each gradient written to its place."""
        gradient = torch.empty_like(ctx.like)
        parts = _unflatten_dense_tensors(gradient, ctx.parameters)
        for i in reversed(range(len(ctx.inputs))):
            weight, given = ctx.parameters[2 * i], ctx.inputs[i]
            torch.sum(delta, 0, out=parts[2 * i + 1])
            with by_size(len(given) * weight.numel(), ctx.threads):
                torch.mm(delta.t(), given, out=parts[2 * i])
                above = delta.mm(weight) if i else None
            if above is not None:
                delta = torch.ops.aten.threshold_backward(above, given, 0)
        return gradient, None, None, None
