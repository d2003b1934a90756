"""Numbers of few bits, whose products add up without an error, in any order, on any machine.

A row is `rounded` to whole multiples of a power of two of its own, its unit: of what is positive,
1 to 127, so that the largest keeps 7 bits. `projected` rounds inputs to 13 bits and a sign.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

BITS, INPUT_BITS = 7, 13
LARGEST = 2**BITS - 1
EXACT = 2**24 // LARGEST**2  # so many products of such numbers add up exactly in float32
PANEL = 256  # rows of a Gram matrix that are summed at once


def unit(x: Tensor, bits: int = BITS) -> Tensor:
    """The value of a row's last bit [B, 1], x [B, d], if its largest number has so many bits."""
    top = x.detach().amax(1, keepdim=True).clamp_min(1e-30)
    return torch.exp2(top.log2().floor() - (bits - 1))


def projected(x: Tensor, weights: Tensor, last: float) -> Tensor:
    """The product of x [B, d] and weights^T [u, d], whole multiples of `last`, -127 to 127.

    Each row of x is rounded to 13 bits of its largest number. What remains is exact but for the
    last step to float32: the result is the same in any batch, on any processor.
    """
    own = unit(x.abs(), INPUT_BITS)
    numbers = (x * (1 / own)).round_()
    high = (numbers * (1 / 128)).round_()  # -64 to 64, and so is what is left
    low = numbers.sub_(high, alpha=128)
    columns = (weights * (1 / last)).round_().clamp(-LARGEST, LARGEST).to(torch.int8).T
    out: Tensor = products(high.to(torch.int8), low.to(torch.int8), columns)
    return out.mul_(own * last)


def products(high: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """The product of 128 high + low [m, k] and b [k, n], all int8, in float32."""
    out: Tensor = PRODUCTS(high, low, b)
    return out


def _products(high: Tensor, low: Tensor, b: Tensor) -> Tensor:
    return product(low, b).float().add_(product(high, b).float(), alpha=128)


def _shape(high: Tensor, _low: Tensor, b: Tensor) -> Tensor:
    return high.new_empty((high.shape[0], b.shape[1]), dtype=torch.float32)


def _stacked(info: Any, in_dims: tuple[int | None, ...], *own: Tensor) -> tuple[Tensor, int]:
    each = [
        [x if axis is None else x.select(axis, i) for x, axis in zip(own, in_dims, strict=True)]
        for i in range(info.batch_size)
    ]
    return torch.stack([products(*one) for one in each]), 0


# An operator of its own, because torch.vmap and torch.compile cannot look into it. Defined in this
# way its first call does not load the compiler, which takes seconds, as torch.library.custom_op's.
LIBRARY = torch.library.Library("cl_runner", "DEF")
LIBRARY.define("products(Tensor high, Tensor low, Tensor b) -> Tensor")
LIBRARY.impl("products", _products, "CompositeExplicitAutograd")
torch.library.register_fake("cl_runner::products", _shape, lib=LIBRARY)
torch.library.register_vmap("cl_runner::products", _stacked, lib=LIBRARY)
PRODUCTS = torch.ops.cl_runner.products


def rounded(x: Tensor) -> Tensor:
    """relu(x) of x [B, d], each row in its own unit; nan in a row with nan or infinity."""
    own = unit(x)
    return (x * (1 / own)).round_().clamp(0, LARGEST).mul_(own)


def whole(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded x [B, d] as whole numbers, int8 [B, d], and the unit of each row [B]."""
    own = unit(x)
    return (x * (1 / own)).to(torch.int8), own[:, 0]


def add_products(
    sums: Tensor, gram: Tensor | None, member: Tensor, numbers: Tensor, units: Tensor
) -> None:
    """Add member x to sums [K, d], and x^T x to the lower triangle of gram [d, d], in place.

    member [K, B] is 0 or 1, the rows x [B, d] as `whole` has them; sums and gram are float64. Exact
    as long as they stay below 2^53 of the smallest unit, and its square; nan for a unit of nan.
    """
    for size in units.unique().tolist():  # two or three, where rows are of about one length
        own = units == size
        rows = numbers[own]
        sums.add_(product(member[:, own].to(torch.int8), rows), alpha=size)
        if gram is None:
            continue
        columns = rows.T.contiguous()
        for first in range(0, len(columns), PANEL):
            last = first + PANEL
            part = product(columns[first:last], rows[:, :last])
            gram[first:last, :last].add_(part, alpha=size**2)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of a [m, k] and b [k, n], int8 of -127 to 127, without an error; k below 2^17.

    torch's product of int8 goes wrong with one row or column: it misreads the strides.
    """
    if a.device.type == "cpu" and min(*a.shape, *b.shape) > 1 and multiplies_integers():
        integers: Tensor = torch._int_mm(a, b)
        return integers
    out = torch.zeros(len(a), b.shape[1], dtype=torch.float64, device=a.device)
    for p, q in zip(a.split(EXACT, 1), b.split(EXACT), strict=True):
        out += p.float() @ q.float()
    return out


@cache
def multiplies_integers() -> bool:
    """Whether this processor's integer products are right; old ones overflow between 16 bits."""
    if not hasattr(torch, "_int_mm"):
        return False
    a = torch.full((PANEL, PANEL), LARGEST, dtype=torch.int8)
    return bool((torch._int_mm(a, a) == PANEL * LARGEST**2).all())
