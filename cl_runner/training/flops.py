"""Floating-point operations (FLOPs): those of matrix products and convolutions.

By the formulas of torch's own counter: a product of [m, k] and [k, n] has 2 m k n, also that of
whole numbers. Elementwise operations, sorting and matrix decompositions count nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cl_runner.functional.fixed_point import PRODUCTS

T = TypeVar("T")
K = TypeVar("K")
VECTORS = dict.fromkeys((torch.ops.aten.mv, torch.ops.aten.dot), lambda a, *_, **__: 2 * a.numel())
INTEGERS = {
    getattr(torch.ops.aten, "_int_mm", None): flop_registry[torch.ops.aten.mm],
    PRODUCTS: lambda high, _, b, **__: 2 * 2 * high.numel() * b.shape[1],
}


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *options: Any, **_: Any) -> int:
    """Those of a convolution for each gradient that is asked for, of the inputs and the weights.

    Torch's formula takes grouped convolutions, as those of stacked runs are, for whole ones.
    """
    transposed, wanted = options[-4], options[-1]
    places = (x if transposed else grad)[:, 0].numel()
    products: int = weight.numel() * places * sum(wanted[:2])
    return 2 * products


CONVOLUTIONS = {torch.ops.aten.convolution_backward: convolution_backward}
FORMULAS = flop_registry | VECTORS | INTEGERS | CONVOLUTIONS


def remembered(
    known: dict[K, int], key: K, function: Callable[..., T], *args: Any
) -> tuple[T, int]:
    """function(*args) and its FLOPs, which are counted unless they are known for the key."""
    if key in known:
        return function(*args), known[key]
    with FlopCounter() as counter:
        result = function(*args)
    known[key] = counter.flops
    return result, counter.flops


class FlopCounter(TorchDispatchMode):
    """What torch's FlopCounterMode counts, by its formulas, and products with vectors.

    Theirs keeps a table of modules besides, and its first use takes a second: it loads torch's
    compiler, as every such mode does unless it says, as here, that it need not be skipped there.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := FORMULAS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out
