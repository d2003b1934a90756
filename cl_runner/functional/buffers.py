"""Replay buffers as fixed-size tensors of rows: which training samples are remembered.

A slot holds a row of the training set (`index`) and the task it was seen in (`task`); an empty slot
has index -1. What a reservoir or a ring holds depends on no network, so that a window of W steps
can be worked out at once. All functions are pure, and those for the training step draw nothing and
never ask the host: their randomness is passed in as uniforms in [0, 1).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Slots = dict[str, Tensor]  # "index" [K], "task" [K], and whatever else is kept per sample, [K, ...]
# (candidates of a bin, k) -> k of them or all, best first
Preference = Callable[[Tensor, int], Tensor]
BITS = 2**24  # of a float32 that was drawn from [0, 1)


def sources(target: Tensor, capacity: int) -> Tensor:
    """Which of a batch's samples each slot takes, [..., K]; -1: none, and it keeps its own.

    target: [..., B] slots that the samples are written to, in order, so that the last one stays;
    `capacity`, K, means nowhere.
    """
    order = torch.arange(target.shape[-1], device=target.device).expand_as(target)
    none = torch.full((*target.shape[:-1], capacity + 1), -1, device=target.device)
    return none.scatter_reduce(-1, target, order, "amax")[..., :-1]


def write(held: Tensor, values: Tensor, source: Tensor) -> Tensor:
    """The slots' contents [K, ...] after slot k took sample `source[k]` of `values` [B, ...]."""
    taken = values.index_select(0, source.clamp_min(0))
    return torch.where((source >= 0).view(-1, *[1] * (held.dim() - 1)), taken, held)


def add(slots: Slots, new: Slots, target: Tensor) -> Slots:
    """The slots after writing a batch of B samples to `target` [B], in order; K means nowhere."""
    source = sources(target, len(slots["index"]))
    return {name: write(held, new[name], source) for name, held in slots.items()}


def course(held: Tensor, values: Tensor, source: Tensor) -> Tensor:
    """The slots' contents before each of W steps and after the last, [W + 1, K].

    held: [K], before the first; in step w slot k takes sample `source`[w, k] of `values`[w], where
    it is not negative. values: [W, B]; source: [W, K].
    """
    W, B = values.shape
    start = torch.arange(W, device=values.device)[:, None] * B
    latest = torch.where(source >= 0, source + start, -1).cummax(0).values
    taken = values.flatten()[latest.clamp_min(0)]
    return torch.cat([held[None], torch.where(latest >= 0, taken, held)])


def below(uniform: Tensor, n: Tensor) -> Tensor:
    """floor(u n), without a rounding, of uniforms u in [0, 1) and whole numbers n below 2^39.

    A float32 that was drawn from [0, 1) is a multiple of 2^-24, so that whole numbers tell it;
    not every device has a float64 that would.
    """
    return (uniform * BITS).long() * n // BITS


def reservoir_targets(seen: Tensor, capacity: int, uniform: Tensor) -> Tensor:
    """Slots [B] that a batch is written to by reservoir sampling; `capacity` means none.

    Item n of the stream (counted from 0) takes slot n while there is room, then slot
    floor(u (n + 1)) if that is one of the K: every item so far is held with probability
    K / (n + 1) (Vitter 1985, algorithm R). seen: 0-d, items before this batch; uniform: [B],
    whose float32 has 24 bits: beyond 2^24 items the probabilities are no longer exact.
    """
    n = seen + torch.arange(len(uniform), device=uniform.device)
    drawn = below(uniform, n + 1)
    return torch.where(n < capacity, n, drawn).clamp_max(capacity)


def ring_targets(counts: Tensor, capacity_per_bin: int, bins: Tensor) -> Tensor:
    """Slots [B] that a batch is written to by one first-in-first-out ring per bin.

    counts: [bins] items seen so far per bin; bins: [B] the items' bins; bin b owns the slots
    b * capacity_per_bin onwards (Chaudhry et al. 2019, arXiv 1902.10486).
    """
    member = bins[:, None] == torch.arange(len(counts), device=bins.device)
    rank = member.cumsum(0).gather(1, bins[:, None])[:, 0] - 1
    return bins * capacity_per_bin + (counts[bins] + rank) % capacity_per_bin


def moving_course(held: Tensor, values: Tensor, source: Tensor) -> Tensor:
    """`course`, where a slot may also take what another held before the step, [W + 1, K].

    source: B + j is what slot j held, which takes samples alone.
    """
    W, B = values.shape
    before = course(held, values, torch.where(source < B, source, -1))[:-1]
    taken = values.gather(1, source.clamp(0, B - 1))
    incoming = torch.where(source < B, taken, before.gather(1, (source - B).clamp_min(0)))
    step = torch.arange(W, device=held.device)[:, None]
    latest = torch.where(source >= 0, step, -1).cummax(0).values
    rows = torch.where(latest >= 0, incoming.gather(0, latest.clamp_min(0)), held)
    return torch.cat([held[None], rows])


def dual_sources(
    counts: Tensor, short_bins: Tensor, bins: Tensor, capacity_per_bin: int, uniform: Tensor
) -> Tensor:
    """Which sample each slot takes in each of W steps, [W, S + L], of a short and a long memory.

    The first S slots are a ring of the latest items, item n in slot n mod S. What it drops is
    offered to the long memory: of each bin's items that were dropped so far it holds
    `capacity_per_bin`, all with equal probability (`reservoir_targets`), in slots S + b *
    capacity_per_bin onwards. A slot takes sample i of the step's batch (i), what slot j of the ring
    held (B + j), or nothing (-1). counts: [bins] items seen so far per bin; short_bins: [S] those
    of the ring's items, by slot; bins: [W, B] those of the coming ones; uniform: [W, B].
    """
    (W, B), S, seen = bins.shape, len(short_bins), counts.sum()
    number = seen + torch.arange(W * B, device=bins.device)
    short = sources((number % S).view(W, B), S)
    age = (seen + torch.arange(S, device=bins.device)) % S  # the ring's slots, the oldest first
    own = torch.cat([short_bins[age], bins.flatten()])[: W * B]  # of the items that are dropped
    there = number >= S
    held = torch.arange(S, device=bins.device) < seen
    inside = torch.zeros_like(counts).scatter_add(0, short_bins, held.to(counts.dtype))
    member = (own[:, None] == torch.arange(len(counts), device=bins.device)) & there[:, None]
    n = (counts - inside)[own] + member.cumsum(0).gather(1, own[:, None])[:, 0] - 1
    drawn = below(uniform.flatten(), n + 1)
    place = torch.where(n < capacity_per_bin, n, drawn)
    room = len(counts) * capacity_per_bin
    target = torch.where(there & (place < capacity_per_bin), own * capacity_per_bin + place, room)
    dropped = sources(target.view(W, B), room)  # i: the i-th that is dropped in the step
    first = (seen + torch.arange(W, device=bins.device) * B)[:, None]  # as many items before a step
    moved = torch.where(dropped < S, B + (first + dropped) % S, dropped - S)
    return torch.cat([short, torch.where(dropped < 0, -1, moved)], 1)


def draw(held: Tensor, uniform: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`size` slots of those `held`, uniformly and without replacement: (slots, whether it is held).

    held: [..., K] bool; uniform: [..., K]; both results [..., size]. Where fewer are held than
    asked for, each of them comes once and the rest is marked False.
    """
    slots = torch.where(held, uniform, 2.0).topk(size, largest=False).indices
    return slots, held.gather(-1, slots)


def shuffled(generator: torch.Generator) -> Preference:
    """Ranks at random."""

    def some(candidates: Tensor, k: int) -> Tensor:
        order = torch.randperm(len(candidates), generator=generator, device=candidates.device)
        return candidates[order[:k]]

    return some


def balance(
    bins: Tensor, filled: Tensor, new_bins: Tensor, best: Preference, share: int | None = None
) -> Tensor:
    """Which of K slots and n new samples to hold, so that the bins get equal shares.

    bins: [K]; filled: [K] bool; new_bins: [n]. The result, at most K positions in the K slots
    followed by the new samples, has `share` of each bin or all there are, the `best`. Without a
    share it is floor(K / bins present), which shrinks as bins come; with one, K must be enough for
    all of them. (From a bin that has both old and new samples `shuffled` draws as if all had been
    there, which is uniform only if none was dropped before.) Loops over bins: for the end of a
    task.
    """
    candidates = torch.cat(
        [filled.nonzero()[:, 0], len(bins) + torch.arange(len(new_bins), device=bins.device)]
    )
    member = torch.cat([bins, new_bins])[candidates]
    present = member.unique()
    share = len(bins) // len(present) if share is None else share
    return torch.cat([best(candidates[member == b], share) for b in present])


def greedy(bins: Tensor, filled: Tensor, new_bins: Tensor, generator: torch.Generator) -> Tensor:
    """Which of K slots and n new samples are held after these have come one by one, in any order.

    The greedy balancing sampler of GDumb (Prabhu et al. 2020): a sample enters if its bin is new or
    holds less than K / (bins present); where there is no room, a random sample of the largest bin
    makes way, of a random one of these. bins: [K]; filled: [K] bool; new_bins: [n]; the result as
    that of `balance`. The generator is the CPU's. Loops over samples: for the end of a task.
    """
    held: dict[int, list[int]] = {}
    for slot, b in enumerate(bins.where(filled, -1).tolist()):
        if b >= 0:
            held.setdefault(b, []).append(slot)
    size = sum(len(own) for own in held.values())
    order = torch.randperm(len(new_bins), generator=generator)
    uniforms = torch.rand(len(new_bins), 2, generator=generator, dtype=torch.float64)
    arriving = zip(order.tolist(), new_bins.cpu()[order].tolist(), uniforms.tolist(), strict=True)
    for i, b, (u, v) in arriving:
        if b in held and len(held[b]) * len(held) >= len(bins):
            continue
        if size == len(bins):
            most = max(len(own) for own in held.values())
            largest = [own for own in held.values() if len(own) == most]
            largest[int(u * len(largest))].pop(int(v * most))
            size -= 1
        held.setdefault(b, []).append(len(bins) + i)
        size += 1
    return torch.tensor([i for own in held.values() for i in own], device=bins.device)


def arrivals(slots: Slots, keep: Tensor) -> Tensor:
    """Which of the new samples are among the positions `keep`, in its order."""
    capacity = len(slots["index"])
    return keep[keep >= capacity] - capacity


def refill(slots: Slots, new: Slots, keep: Tensor) -> Slots:
    """The slots holding the samples at positions `keep` of the slots followed by the new ones.

    new: what is held of the new samples that are kept, in the order of `arrivals`.
    """
    held = keep < len(slots["index"])

    def fill(name: str) -> Tensor:
        out = torch.full_like(slots[name], -1 if name == "index" else 0)
        kept = out[: len(keep)]
        kept[held] = slots[name][keep[held]]
        kept[~held] = new[name]
        return out

    return {name: fill(name) for name in slots}
