"""Numbers of few bits, whose products add up without an error, in any order, on any machine.

The positive numbers of a row are `rounded` to whole multiples, 1 to 127, of a power of two of its
own, `unit`: its largest keeps 7 bits. Negative ones become 0.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BITS = 7
LARGEST = 2**BITS - 1
EXACT = 2**24 // LARGEST**2  # so many products of such numbers add up exactly in float32
PANEL = 256  # rows of a Gram matrix that are summed at once


def unit(x: Tensor) -> Tensor:
    """What the last bit of each row of x [B, d] is worth, [B, 1]."""
    top = x.detach().amax(1, keepdim=True).clamp_min(1e-30)
    return torch.exp2(top.log2().floor() - (BITS - 1))


def rounded(x: Tensor) -> Tensor:
    """relu(x) of x [B, d], each row in its own unit; nan in a row with nan or infinity."""
    own = unit(x)
    return (x * (1 / own)).round_().clamp_(0, LARGEST).mul_(own)


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
    """The product of a [m, k] and b [k, n], int8 of 0 to 127, without an error; k below 2^17.

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
