"""Replay buffers as fixed-size tensors of rows: which training samples are remembered.

A slot holds a row of the training set (`index`) and the task it was seen in (`task`); an empty slot
has index -1. All functions are pure, and those for the training step draw nothing and never ask the
host: their randomness is passed in as uniforms in [0, 1).
"""

import torch
from torch import Tensor


def _write(slots: Tensor, values: Tensor, target: Tensor) -> Tensor:
    """`slots` [K] with slots[target[i]] = values[i] in order of i; targets >= K are dropped."""
    order = torch.arange(len(target), device=target.device)
    last = torch.full((len(slots) + 1,), -1, device=target.device)
    last = last.scatter_reduce(0, target.clamp_max(len(slots)), order, "amax")[:-1]
    return torch.where(last >= 0, values[last.clamp_min(0)], slots)


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


def add(
    index: Tensor, task: Tensor, new_index: Tensor, new_task: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The buffer (index [K], task [K]) after writing a batch [B] to `target` [B], in order."""
    return _write(index, new_index, target), _write(task, new_task, target)


def draw(index: Tensor, uniform: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`size` filled slots, uniformly and without replacement: (slots [size], filled [size] bool).

    uniform: [K]. Where fewer are filled than asked for, each filled one comes once and the rest is
    marked False.
    """
    order = torch.where(index >= 0, uniform, 2.0).topk(size, largest=False).indices
    return order, index[order] >= 0


def balance(
    index: Tensor,
    task: Tensor,
    bins: Tensor,
    new_index: Tensor,
    new_task: Tensor,
    new_bins: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The buffer refilled so that each bin seen so far holds floor(K / bins) samples, or all.

    Old bins keep a random subset of what they hold, new bins get a random subset of the new
    samples. (A bin with both would be a subset of what was held and all that is new.) Loops over
    bins: for the end of a task, not for the training step.
    """
    held = index >= 0
    rows = torch.cat([index[held], new_index])
    tasks = torch.cat([task[held], new_task])
    member = torch.cat([bins[held], new_bins])
    present = member.unique()
    share = len(index) // len(present)
    chosen = []
    for b in present:
        candidates = (member == b).nonzero()[:, 0]
        order = torch.randperm(len(candidates), generator=generator, device=index.device)
        chosen.append(candidates[order[:share]])
    keep = torch.cat(chosen)
    out_index, out_task = torch.full_like(index, -1), torch.zeros_like(task)
    out_index[: len(keep)], out_task[: len(keep)] = rows[keep], tasks[keep]
    return out_index, out_task
