"""Replay buffers as fixed-size tensors of rows: which training samples are remembered.

A slot holds a row of the training set (`index`) and the task it was seen in (`task`); an empty slot
has index -1. All functions are pure, and those for the training step draw nothing and never ask the
host: their randomness is passed in as uniforms in [0, 1).
"""

import torch
from torch import Tensor

Slots = dict[str, Tensor]  # "index" [K], "task" [K], and whatever else is kept per sample, [K, ...]


def add(slots: Slots, new: Slots, target: Tensor) -> Slots:
    """The slots after writing a batch of B samples to `target` [B], in order; K means nowhere."""
    capacity = len(slots["index"])
    order = torch.arange(len(target), device=target.device)
    last = torch.full((capacity + 1,), -1, device=target.device)
    last = last.scatter_reduce(0, target.clamp_max(capacity), order, "amax")[:-1]
    written, source = last >= 0, last.clamp_min(0)

    def write(name: str) -> Tensor:
        old, values = slots[name], new[name].index_select(0, source)
        return torch.where(written.view(-1, *[1] * (old.dim() - 1)), values, old)

    return {name: write(name) for name in slots}


def reservoir_targets(seen: Tensor, capacity: int, arrived: Tensor, uniform: Tensor) -> Tensor:
    """Slots [B] that a batch is written to by reservoir sampling; `capacity` means none.

    Item n of the stream (counted from 0) takes slot n while there is room, then slot
    floor(u (n + 1)) if that is one of the K: every item so far is held with probability
    K / (n + 1) (Vitter 1985, algorithm R). seen: 0-d, items before this batch; arrived: [B] bool,
    False for padding, which is not counted; uniform: [B].
    """
    n = seen + arrived.cumsum(0) - 1
    drawn = (uniform.double() * (n + 1)).long().minimum(n)
    slot = torch.where(n < capacity, n, drawn).clamp_max(capacity)
    return torch.where(arrived, slot, capacity)


def ring_targets(
    counts: Tensor, capacity_per_bin: int, bins: Tensor, arrived: Tensor, total: int
) -> Tensor:
    """Slots [B] that a batch is written to by one first-in-first-out ring per bin.

    counts: [bins] items seen so far per bin; bins: [B] the items' bins; bin b owns the slots
    b * capacity_per_bin onwards; `total` means none (Chaudhry et al. 2019, arXiv 1902.10486).
    """
    member = (bins[:, None] == torch.arange(len(counts), device=bins.device)) & arrived[:, None]
    rank = member.cumsum(0).gather(1, bins[:, None])[:, 0] - 1
    slot = bins * capacity_per_bin + (counts[bins] + rank) % capacity_per_bin
    return torch.where(arrived, slot, total)


def draw(index: Tensor, uniform: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`size` filled slots, uniformly and without replacement: (slots [size], filled [size] bool).

    uniform: [K]. Where fewer are filled than asked for, each filled one comes once and the rest is
    marked False.
    """
    order = torch.where(index >= 0, uniform, 2.0).topk(size, largest=False).indices
    return order, index[order] >= 0


def balance(bins: Tensor, filled: Tensor, new_bins: Tensor, generator: torch.Generator) -> Tensor:
    """Which of K slots and n new samples to hold, so that the bins get equal shares.

    bins: [K]; filled: [K] bool; new_bins: [n]. The result, at most K positions in the K slots
    followed by the new samples, has floor(K / bins present) of each bin or all there are, drawn at
    random. (From a bin that has both old and new samples it draws as if all had been there, which
    is uniform only if none was dropped before.) Loops over bins: for the end of a task.
    """
    candidates = torch.cat(
        [filled.nonzero()[:, 0], len(bins) + torch.arange(len(new_bins), device=bins.device)]
    )
    member = torch.cat([bins, new_bins])[candidates]
    present = member.unique()
    share = len(bins) // len(present)
    chosen = []
    for b in present:
        own = candidates[member == b]
        order = torch.randperm(len(own), generator=generator, device=own.device)
        chosen.append(own[order[:share]])
    return torch.cat(chosen)


def refill(slots: Slots, new: Slots, keep: Tensor) -> Slots:
    """The slots holding the samples at positions `keep` of the slots followed by the new ones."""

    def fill(name: str) -> Tensor:
        out = torch.full_like(slots[name], -1 if name == "index" else 0)
        out[: len(keep)] = torch.cat([slots[name], new[name]])[keep]
        return out

    return {name: fill(name) for name in slots}
