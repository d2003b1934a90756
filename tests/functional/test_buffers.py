"""Buffers against the item-by-item algorithms, a deque, and exact or tested probabilities."""

from __future__ import annotations

from collections import Counter, deque
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare
from torch import Tensor

from cl_runner.functional import buffers

steady = settings(max_examples=80, deadline=None, derandomize=True, database=None)
RARE = 1e-4  # a fixed seed, so a test that passes once passes for ever; wrong code is far below


def empty(capacity: int) -> tuple[Tensor, Tensor]:
    return torch.full((capacity,), -1), torch.zeros(capacity, dtype=torch.int64)


def algorithm_r(items: list[int], uniforms: list[float], capacity: int) -> list[int]:
    """Vitter 1985, one item after the other."""
    slots = [-1] * capacity
    for n, (item, u) in enumerate(zip(items, uniforms, strict=True)):
        slot = n if n < capacity else int(u * (n + 1))
        if slot < capacity:
            slots[slot] = item
    return slots


def add(
    index: Tensor, task: Tensor, rows: Tensor, tasks: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """`buffers.add` for a buffer of rows and tasks alone."""
    slots = buffers.add({"index": index, "task": task}, {"index": rows, "task": tasks}, target)
    return slots["index"], slots["task"]


def balance(
    index: Tensor,
    task: Tensor,
    bins: Tensor,
    rows: Tensor,
    tasks: Tensor,
    new_bins: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """`buffers.balance` and `buffers.refill` for a buffer of rows and tasks alone."""
    keep = buffers.balance(bins, index >= 0, new_bins, buffers.shuffled(generator))
    old = {"index": index, "task": task}
    chosen = buffers.arrivals(old, keep)
    slots = buffers.refill(old, {"index": rows[chosen], "task": tasks[chosen]}, keep)
    return slots["index"], slots["task"]


@steady
@given(
    capacity=st.integers(1, 12),
    batches=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_batched_reservoir_is_algorithm_r(capacity: int, batches: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    (index, task), seen = empty(capacity), torch.tensor(0)
    items: list[int] = []
    uniforms: list[float] = []
    for size in batches:
        uniform = torch.rand(size, generator=generator)
        batch = len(items) + torch.arange(size)
        target = buffers.reservoir_targets(seen, capacity, uniform)
        index, task = add(index, task, batch, batch + 1000, target)
        seen = seen + size
        items += batch.tolist()
        uniforms += uniform.tolist()
    expected = algorithm_r(items, uniforms, capacity)
    assert index.tolist() == expected
    assert task.tolist() == [item + 1000 if item >= 0 else 0 for item in expected]


@pytest.mark.parametrize("capacity", [1, 3, 8])
@pytest.mark.parametrize("n", [0, 2, 3, 8, 9, 50, 1000])
def test_item_n_is_kept_with_probability_capacity_over_n_plus_1(n: int, capacity: int) -> None:
    # One uniform from each of n + 1 equal parts of [0, 1): `capacity` of them keep the item.
    # Counting one item too few keeps the first item after the buffer is full with certainty.
    uniform = (torch.arange(n + 1) + 0.5) / (n + 1)
    targets = [
        buffers.reservoir_targets(torch.tensor(n), capacity, u[None]).item() for u in uniform
    ]
    kept = [target for target in targets if target < capacity]
    if n < capacity:
        assert set(targets) == {n}
    else:
        assert sorted(kept) == list(range(capacity))  # each slot once


def test_every_item_is_held_with_the_same_probability() -> None:
    capacity, items, trials = 5, 20, 4000
    generator = torch.Generator().manual_seed(0)
    held = torch.zeros(items)
    number = torch.arange(items)
    for uniform in torch.rand(trials, items, generator=generator):
        index, task = empty(capacity)
        for at in (0, 10):
            part = slice(at, at + 10)
            target = buffers.reservoir_targets(torch.tensor(at), capacity, uniform[part])
            index, task = add(index, task, number[part], number[part], target)
        held[index] += 1
    assert held.sum() == trials * capacity
    # The counts have the covariance of draws without replacement, hence the factors.
    p = capacity / items
    statistic = ((held - trials * p) ** 2).sum() / (trials * p * (1 - p)) * (items - 1) / items
    assert chi2.sf(statistic.item(), items - 1) > RARE
    assert abs(held[0] - trials * p) < 4 * (trials * p * (1 - p)) ** 0.5
    assert abs(held[-1] - trials * p) < 4 * (trials * p * (1 - p)) ** 0.5


def test_the_largest_uniform_stays_within_the_stream() -> None:
    uniform = torch.tensor([1 - 2**-24])  # the largest float32 below 1
    for seen in (5, 2**24, 2**31):
        target = buffers.reservoir_targets(torch.tensor(seen), 5, uniform)
        assert target.item() == 5


@steady
@given(
    num_bins=st.integers(1, 4),
    per_bin=st.integers(1, 4),
    spare=st.integers(0, 3),
    batches=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), max_size=5),
)
def test_rings_are_deques(
    num_bins: int, per_bin: int, spare: int, batches: list[list[int]]
) -> None:
    total = num_bins * per_bin + spare  # the spare places belong to no bin
    (index, task), counts = empty(total), torch.zeros(num_bins, dtype=torch.int64)
    model = [deque[int](maxlen=per_bin) for _ in range(num_bins)]
    item = 0
    for batch in batches:
        bins = torch.tensor([b % num_bins for b in batch])
        rows = item + torch.arange(len(batch))
        item += len(batch)
        target = buffers.ring_targets(counts, per_bin, bins)
        index, task = add(index, task, rows, rows + 1000, target)
        counts = counts.scatter_add(0, bins, torch.ones_like(bins))
        for row, b in zip(rows.tolist(), bins.tolist(), strict=True):
            model[b].append(row)
        for b, ring in enumerate(model):
            held = index[b * per_bin : (b + 1) * per_bin]
            assert sorted(held[held >= 0].tolist()) == list(ring)
        assert index[num_bins * per_bin :].tolist() == [-1] * spare
    assert task.tolist() == [row + 1000 if row >= 0 else 0 for row in index.tolist()]


def test_adding_changes_no_argument() -> None:
    index, task = empty(3)
    target = buffers.reservoir_targets(torch.tensor(0), 3, torch.rand(2))
    new, _ = add(index, task, torch.tensor([7, 8]), torch.tensor([1, 1]), target)
    assert new.tolist() == [7, 8, -1]
    assert index.tolist() == [-1, -1, -1]
    assert task.tolist() == [0, 0, 0]


def test_whatever_is_kept_per_sample_is_written_with_it() -> None:
    slots = {"index": torch.full((4,), -1), "logits": torch.zeros(4, 2, 3)}
    new = {"index": torch.tensor([7, 8]), "logits": torch.arange(1.0, 13.0).view(2, 2, 3)}
    written = buffers.add(slots, new, torch.tensor([2, 0]))
    assert written["index"].tolist() == [8, -1, 7, -1]
    assert torch.equal(written["logits"][[2, 0]], new["logits"])
    assert not written["logits"][[1, 3]].any()


@pytest.mark.parametrize("policy", ["reservoir", "ring"])
@pytest.mark.parametrize("seen", [0, 3, 40])
def test_the_course_of_a_window_is_that_of_its_steps_one_after_another(policy, seen) -> None:
    """Slots that are written twice in a step, in several steps, and in none."""
    W, B, K, generator = 9, 5, 6, torch.Generator().manual_seed(seen)
    uniform = torch.rand(W, B, generator=generator)
    bins = torch.randint(2, (W, B), generator=generator)
    rows = torch.arange(100, 100 + W * B).view(W, B)
    counts = torch.tensor([seen // 2, seen - seen // 2])
    held = torch.where(torch.arange(K) < seen, torch.arange(K), -1)

    def targets(w: slice) -> Tensor:
        if policy == "ring":
            before = counts + torch.stack([(bins[: w.start] == b).sum() for b in (0, 1)])
            return buffers.ring_targets(before, K // 2, bins[w].flatten())
        before = torch.tensor(seen + w.start * B)
        return buffers.reservoir_targets(before, K, uniform[w].flatten())

    source = buffers.sources(targets(slice(0, W)).view(W, B), K)
    course = buffers.course(held, rows, source)
    assert course.shape == (W + 1, K)
    slots = {"index": held}
    for w in range(W):
        assert torch.equal(course[w], slots["index"])
        slots = buffers.add(slots, {"index": rows[w]}, targets(slice(w, w + 1)))
        assert torch.equal(course[w + 1], buffers.write(course[w], rows[w], source[w]))
    assert torch.equal(course[W], slots["index"])
    assert not torch.equal(course[0], course[W])


def test_a_ring_is_filled_from_its_first_place() -> None:
    bins = torch.tensor([0, 1, 0, 0, 0])
    targets = buffers.ring_targets(torch.tensor([0, 0]), 3, bins)
    assert targets.tolist() == [0, 3, 1, 2, 0]
    assert buffers.ring_targets(torch.tensor([2, 4]), 3, bins).tolist() == [2, 4, 0, 1, 2]


def test_what_a_training_step_calls_stays_on_its_arguments_device() -> None:
    index = torch.zeros(3, dtype=torch.int64, device="meta")
    uniform = torch.zeros(2, device="meta")
    slots, new = {"index": index}, {"index": index[:2]}
    for target in (
        buffers.reservoir_targets(index[0], 3, uniform),
        buffers.ring_targets(index, 1, index[:2]),
    ):
        assert buffers.add(slots, new, target)["index"].device == index.device
    source = buffers.sources(index[None, :2], 3)
    assert buffers.course(index, index[None, :2], source).device == index.device
    drawn, filled = buffers.draw(index >= 0, torch.zeros(3, device="meta"), 2)
    assert drawn.device == filled.device == index.device


def test_drawn_slots_are_filled_distinct_and_uniform() -> None:
    index = torch.tensor([4, -1, 9, 9, -1, 0, 2])  # five filled slots
    filled_slots = [0, 2, 3, 5, 6]
    pairs: Counter[tuple[int, ...]] = Counter()
    for uniform in torch.rand(4000, len(index), generator=torch.Generator().manual_seed(0)):
        slots, filled = buffers.draw(index >= 0, uniform, 2)
        assert bool(filled.all())
        pairs[tuple(sorted(slots.tolist()))] += 1
    assert set(pairs) == set(combinations(filled_slots, 2))  # without replacement, none is left out
    assert chisquare(list(pairs.values())).pvalue > RARE


@pytest.mark.parametrize("filled_slots", [[], [3], [0, 2, 4]])
def test_a_buffer_with_fewer_than_asked_gives_each_of_them_once(filled_slots: list[int]) -> None:
    index = torch.full((6,), -1)
    index[filled_slots] = 5
    slots, filled = buffers.draw(index >= 0, torch.rand(6, generator=torch.Generator()), 4)
    assert len(slots) == 4
    assert sorted(slots[filled].tolist()) == filled_slots


def refill(
    held: dict[int, int], new: dict[int, int], capacity: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, set[int]]:
    """The buffer and its rows' bins after `balance`, from numbers of rows by bin.

    Rows of bin b are 100 b, 100 b + 1, ... and show task b + 10. Also returns all candidates.
    """

    def rows(numbers: dict[int, int]) -> Tensor:
        return torch.tensor(
            [100 * b + i for b, number in numbers.items() for i in range(number)],
            dtype=torch.int64,
        )

    old, arriving = rows(held), rows(new)
    index, task = empty(capacity)
    index[: len(old)], task[: len(old)] = old, old // 100 + 10
    index, task = index.flip(0), task.flip(0)  # the empty slots come first
    bins = index.clamp_min(0) // 100
    generator = torch.Generator().manual_seed(seed)
    new_bins = arriving // 100
    index, task = balance(index, task, bins, arriving, new_bins + 10, new_bins, generator)
    return index, task, index[index >= 0] // 100, {*old.tolist(), *arriving.tolist()}


@pytest.mark.parametrize(
    ("held", "new", "capacity", "shares"),
    [
        ({}, {0: 30, 1: 30}, 10, {0: 5, 1: 5}),
        ({0: 5, 1: 5}, {2: 30}, 10, {0: 3, 1: 3, 2: 3}),  # floor(10 / 3), one place stays free
        ({0: 2, 1: 5}, {2: 30, 3: 1}, 12, {0: 2, 1: 3, 2: 3, 3: 1}),  # a bin may have too few
        ({1: 2}, {0: 30}, 2, {0: 1, 1: 1}),
    ],
)
def test_balance_gives_equal_shares(
    held: dict[int, int], new: dict[int, int], capacity: int, shares: dict[int, int]
) -> None:
    index, task, bins, candidates = refill(held, new, capacity)
    kept = index[index >= 0].tolist()
    assert len(index) == len(task) == capacity
    assert Counter(bins.tolist()) == Counter(shares)
    assert len(set(kept)) == len(kept)
    assert set(kept) <= candidates
    assert task[index >= 0].tolist() == [row // 100 + 10 for row in kept]  # rows keep their task


@pytest.mark.parametrize(
    ("held", "new", "counts"),
    [
        ({}, {0: 9, 1: 2}, {0: 3, 1: 2}),
        ({0: 3, 1: 2}, {2: 9}, {0: 3, 1: 2, 2: 3}),
        ({0: 3, 1: 2}, {1: 9, 2: 1}, {0: 3, 1: 3, 2: 1}),
    ],
)
def test_a_given_share_does_not_shrink_as_bins_come(held, new, counts):
    old = torch.tensor([b for b, n in held.items() for _ in range(n)], dtype=torch.int64)
    bins = torch.zeros(12, dtype=torch.int64)
    bins[: len(old)] = old
    filled = torch.arange(12) < len(old)
    arriving = torch.tensor([b for b, n in new.items() for _ in range(n)])
    generator = torch.Generator().manual_seed(0)
    keep = buffers.balance(bins, filled, arriving, buffers.shuffled(generator), 3)
    assert len(keep.unique()) == len(keep)
    assert Counter(torch.cat([bins, arriving])[keep].tolist()) == counts


def test_balance_draws_by_its_generator_alone() -> None:
    first, again, other = (refill({}, {0: 30, 1: 30}, 10, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_after_any_number_of_refills_every_sample_of_a_bin_is_held_equally_often() -> None:
    capacity, size, trials = 12, 9, 1500
    held = torch.zeros(3, size)
    for seed in range(trials):
        index, task = empty(capacity)
        for b in range(3):  # shares 12, 6, 4
            rows = size * b + torch.arange(size)
            bins = torch.full_like(rows, b)
            old = index.clamp_min(0) // size
            generator = torch.Generator().manual_seed(3 * seed + b)
            index, task = balance(index, task, old, rows, bins, bins, generator)
        held.view(-1)[index[index >= 0]] += 1
    assert held.sum(1).tolist() == [4 * trials] * 3
    p = 4 / size
    statistics = ((held - trials * p) ** 2).sum(1) / (trials * p * (1 - p)) * (size - 1) / size
    assert bool((torch.from_numpy(chi2.sf(statistics.numpy(), size - 1)) > RARE).all())


def test_slots_that_stay_empty_have_index_minus_1_and_zeros_else() -> None:
    slots = {"index": torch.tensor([4, 5, 6]), "task": torch.tensor([1, 2, 3])}
    nothing = {name: torch.zeros(0, dtype=torch.int64) for name in slots}
    filled = buffers.refill(slots, nothing, torch.tensor([1]))
    assert {name: value.tolist() for name, value in filled.items()} == {
        "index": [5, -1, -1],
        "task": [2, 0, 0],
    }


def greedy_by_hand(
    capacity: int, held: list[tuple[int, int]], arriving: list[tuple[int, int]], draws: list
) -> list[tuple[int, int]]:
    """GDumb's sampler with one list of (sample, bin) and nothing else kept; `draws` in [0, 1)^2."""
    memory = list(held)
    for (sample, b), (u, v) in zip(arriving, draws, strict=True):
        counts = Counter(bin_ for _, bin_ in memory)
        if b in counts and counts[b] >= capacity / len(counts):
            continue
        if len(memory) == capacity:
            largest = [c for c in counts if counts[c] == max(counts.values())]
            victims = [item for item in memory if item[1] == largest[int(u * len(largest))]]
            memory.remove(victims[int(v * len(victims))])
        memory.append((sample, b))
    return memory


def pass_greedy(slots: buffers.Slots, rows: Tensor, of_row, seed: int) -> buffers.Slots:
    """The slots after rows have passed the sampler; `of_row` gives their bins."""
    generator = torch.Generator().manual_seed(seed)
    old = of_row(slots["index"].clamp_min(0))
    keep = buffers.greedy(old, slots["index"] >= 0, of_row(rows), generator)
    chosen = buffers.arrivals(slots, keep)
    new = {"index": rows[chosen], "task": rows[chosen] + 1000}
    return buffers.refill(slots, new, keep)


@steady
@given(
    capacity=st.integers(3, 14),
    tasks=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=4),
    shared=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_greedy_sampler_item_by_item(
    capacity: int, tasks: list[list[int]], shared: bool, seed: int
) -> None:
    bins = torch.tensor([b + (0 if shared else 3 * t) for t, own in enumerate(tasks) for b in own])
    index, task = empty(max(capacity, len(bins.unique())))  # a place for each
    slots, first = {"index": index, "task": task}, 0
    for own in tasks:
        rows = first + torch.arange(len(own))
        first += len(own)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(rows), generator=generator)
        draws = torch.rand(len(rows), 2, generator=generator, dtype=torch.float64).tolist()
        held = [(int(i), int(bins[i])) for i in slots["index"] if i >= 0]
        arriving = [(int(i), int(bins[i])) for i in rows[order]]
        expected = greedy_by_hand(len(index), held, arriving, draws)
        slots = pass_greedy(slots, rows, lambda r: bins[r], seed)
        kept = slots["index"][slots["index"] >= 0]
        assert sorted(kept.tolist()) == sorted(i for i, _ in expected)
        assert torch.equal(slots["task"][: len(kept)], kept + 1000)


@pytest.mark.parametrize("capacity", [12, 25, 31])
def test_the_greedy_sampler_fills_the_buffer_and_balances_it_within_one(capacity: int) -> None:
    index, task = empty(capacity)
    slots = {"index": index, "task": task}
    for seed, (before, bins) in enumerate([(0, 2), (2, 4), (4, 7), (7, 10)]):
        rows = torch.arange(100 * before, 100 * bins)  # 100 samples of each new bin
        slots = pass_greedy(slots, rows, lambda r: r // 100, seed)
        counts = Counter((slots["index"] // 100).tolist())
        assert -1 not in counts and len(counts) == bins
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.slow
def test_the_greedy_sampler_holds_every_sample_of_a_bin_equally_often() -> None:
    capacity, size, trials = 12, 9, 1500
    held = torch.zeros(3, size)
    for seed in range(trials):
        index, task = empty(capacity)
        slots = {"index": index, "task": task}
        for b in range(3):
            rows = size * b + torch.arange(size)
            slots = pass_greedy(slots, rows, lambda r: r // size, 3 * seed + b)
        held.view(-1)[slots["index"][slots["index"] >= 0]] += 1
    assert held.sum(1).tolist() == [4 * trials] * 3
    p = 4 / size
    statistics = ((held - trials * p) ** 2).sum(1) / (trials * p * (1 - p)) * (size - 1) / size
    assert bool((torch.from_numpy(chi2.sf(statistics.numpy(), size - 1)) > RARE).all())


@pytest.mark.parametrize(("batch", "ring"), [(5, 3), (3, 7), (4, 4), (1, 2)])
def test_dual_is_a_ring_whose_drops_enter_a_reservoir_of_each_class(batch, ring) -> None:
    """Item by item in plain Python, with what is held of each moving along; in two windows."""
    bins, cap, W, generator = 3, 2, 11, torch.Generator().manual_seed(batch)
    K = ring + bins * cap
    held = torch.full((K,), -1)
    own = torch.zeros(K, dtype=torch.int64)  # of each slot, its bin
    kept = torch.full((K,), -1.0)  # written by the steps, one after another
    counts, item = torch.zeros(bins, dtype=torch.int64), 0
    latest: deque[tuple[int, int]] = deque()
    rest: list[list[int]] = [[] for _ in range(bins)]
    dropped = [0] * bins
    for _ in range(2):
        b = torch.randint(bins, (W, batch), generator=generator)
        u = torch.rand(W, batch, generator=generator)
        rows = item + torch.arange(W * batch).view(W, batch)
        item += W * batch
        source = buffers.dual_sources(counts, own[:ring], b, cap, u)
        course = buffers.moving_course(held, rows, source)
        of_bins = buffers.moving_course(own, b, source)
        for w in range(W):
            for row, new, v in zip(rows[w].tolist(), b[w].tolist(), u[w].tolist(), strict=True):
                latest.append((row, new))
                if len(latest) <= ring:
                    continue
                old, c = latest.popleft()
                n, dropped[c] = dropped[c], dropped[c] + 1
                place = n if n < cap else min(int(v * (n + 1)), n)
                if n < cap:
                    rest[c].append(old)
                elif place < cap:
                    rest[c][place] = old
            kept = buffers.write(kept, torch.cat([rows[w].float(), kept]), source[w])
            now = course[w + 1]
            assert sorted(r for r in now[:ring].tolist() if r >= 0) == [r for r, _ in latest]
            for c in range(bins):
                places = now[ring + c * cap : ring + (c + 1) * cap].tolist()
                assert [r for r in places if r >= 0] == rest[c]
            assert torch.equal(kept.long(), now)
        held, own = course[-1], of_bins[-1]
        counts = counts + torch.bincount(b.flatten(), minlength=bins)
