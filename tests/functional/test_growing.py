"""Subnetworks, sparsity and division of units against plain loops and closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.functional.growing import (
    Layers,
    as_layers,
    as_vector,
    connected,
    drifted,
    duplicate,
    group_threshold,
    linear_init,
    soft_threshold,
    touching,
    within,
    without_input,
)

SIZES = (5, 7, 6, 4)


def network(seed: int, *, density: float = 1.0, sizes: tuple[int, ...] = SIZES) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(b, a, generator=generator)
            * (torch.rand(b, a, generator=generator) < density),
            torch.randn(b, generator=generator),
        )
        for a, b in pairwise(sizes)
    ]


def forward(layers: Layers, x: Tensor) -> Tensor:
    *hidden, (weight, bias) = layers
    for w, b in hidden:
        x = F.relu(F.linear(x, w, b))
    return F.linear(x, weight, bias)


def mask(size: int, *members: int) -> Tensor:
    return torch.tensor([i in members for i in range(size)])


def test_layers_and_vector_are_inverse():
    layers = network(0)
    vector = as_vector(layers)
    parts = vector.split([p.numel() for layer in layers for p in layer])
    shaped = [v.view(p.shape) for v, p in zip(parts, [p for la in layers for p in la], strict=True)]
    for (a, b), (c, d) in zip(as_layers(shaped), layers, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_within_and_touching_are_both_ends_and_either_end():
    units = [mask(5, 0, 3), mask(7, 1, 2, 6), mask(6), mask(4, 2)]
    both, either = [], []
    for below, above in pairwise([u.tolist() for u in units]):
        both += [a and b for a in above for b in below] + above
        either += [a or b for a in above for b in below] + above
    assert within(units).tolist() == both
    assert touching(units).tolist() == either


@pytest.mark.parametrize("seed", range(5))
def test_connected_is_what_a_walk_over_single_edges_reaches(seed):
    layers = network(seed, density=0.2)
    outputs = mask(4, 0, 2)
    reached = {(3, 0), (3, 2)}
    queue = sorted(reached)
    while queue:
        level, unit = queue.pop(0)
        if level == 0:
            continue
        for lower, weight in enumerate(layers[level - 1][0][unit].tolist()):
            if weight != 0 and (level - 1, lower) not in reached:
                reached.add((level - 1, lower))
                queue.append((level - 1, lower))
    units = connected(layers, outputs)
    found = {(level, int(i)) for level, m in enumerate(units) for i in m.nonzero()}
    assert found == reached
    assert not all(bool(m.all()) for m in units[:-1])  # the example has something to leave out


def test_soft_threshold_is_the_proximal_step_with_exact_zeros():
    theta = torch.tensor([-0.5, -0.1, -0.05, 0.0, 0.02, 0.1, 0.3])
    expected = torch.tensor([-0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2])
    z = soft_threshold(theta, torch.tensor(0.1))
    torch.testing.assert_close(z, expected)
    assert (z == 0).tolist() == [False, True, True, True, True, True, False]


def test_group_threshold_shortens_each_unit_by_the_threshold():
    """z = w (1 - threshold / |w|)_+ over a unit's members, bias included; others do not move."""
    (weight, bias), *_ = layers = network(1, sizes=(3, 4))
    weight[3], bias[3] = 0.01, -0.01  # a norm of 0.02, below the threshold
    members = [(torch.ones(4, 3, dtype=torch.bool), mask(4, 0, 1, 3))]
    members[0][0][0, 1] = False
    members[0][0][2] = False
    ((new, new_bias),) = group_threshold(layers, members, torch.tensor(0.3))
    for unit in range(4):
        group = [*(weight[unit, i].item() for i in range(3) if members[0][0][unit, i])]
        group += [bias[unit].item()] if members[0][1][unit] else []
        norm = math.sqrt(sum(v * v for v in group))
        factor = max(0.0, 1 - 0.3 / norm) if norm else 1.0
        for i in range(3):
            scale = factor if members[0][0][unit, i] else 1.0
            assert new[unit, i].item() == pytest.approx(weight[unit, i].item() * scale, rel=1e-5)
        scale = factor if members[0][1][unit] else 1.0
        assert new_bias[unit].item() == pytest.approx(bias[unit].item() * scale, rel=1e-5)
    assert without_input([(new, new_bias)])[0].tolist() == [False, False, False, True]


def test_both_thresholds_together_minimise_the_sparse_group_lasso():
    """No small change of the result lowers 1/2 |z - w|^2 + a |z|_1 + b |z|_2."""
    layers = network(2, sizes=(6, 1))
    w = as_vector(layers)
    a, b = torch.tensor(0.2), torch.tensor(0.4)
    members = [(torch.ones(1, 6, dtype=torch.bool), torch.ones(1, dtype=torch.bool))]
    soft = soft_threshold(w, a)
    z = as_vector(group_threshold([(soft[None, :6], soft[6:])], members, b))

    def value(z: Tensor) -> Tensor:
        return 0.5 * (z - w).square().sum() + a * z.abs().sum() + b * z.norm()

    changes = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0)) * 0.01
    assert all(value(z + change) > value(z) for change in changes)


def test_drifted_ranks_the_units_that_moved_farther_than_sigma():
    old = network(3, sizes=(3, 5))
    new = [(old[0][0].clone(), old[0][1].clone())]
    new[0][0][1] += torch.tensor([0.3, 0.0, 0.4])  # 0.5
    new[0][1][4] -= 0.7  # a bias counts: 0.7
    new[0][0][2, 2] += 0.1
    assert drifted(new, old, 0.2)[0].tolist() == [4, 1]
    assert drifted(new, old, 0.6)[0].tolist() == [4]


def test_without_input_takes_a_unit_with_nothing_but_a_bias_for_alive():
    weight, bias = torch.zeros(3, 2), torch.tensor([0.0, 1.0, 0.0])
    weight[2, 1] = 1e-9
    assert without_input([(weight, bias)])[0].tolist() == [True, False, False]


def divided(which: str):
    """A network before (old) and after training on a new task, and the two divided.

    Of the hidden layers' 7 and 6 units the last 3 are free, and output 3 is the new task's.
    """
    old, new = network(4), network(5)
    sets = [torch.ones(5, dtype=torch.bool), mask(7, 0, 1, 2, 3), mask(6, 0, 1, 2)]
    used = within([*sets, torch.ones(4, dtype=torch.bool)])
    keep = within([*sets, mask(4, 3)])  # the old tasks' outputs are not trained
    before = as_vector(old) * used
    after = torch.where(keep, as_vector(new), before)

    def shaped(vector: Tensor) -> Layers:
        parts = iter(vector.split([p.numel() for layer in old for p in layer]))
        return [(next(parts).view_as(w), next(parts).view_as(b)) for w, b in old]

    originals = (
        [torch.arange(4), torch.arange(3)] if which == "all" else [mask_index(1), mask_index(2)]
    )
    copies = [torch.arange(4, 7), torch.arange(3, 6)]
    if which == "all":  # all but one unit of the first layer, for which there is no room
        after = torch.where(within_unit(3), before, after)
        originals[0] = torch.arange(3)
    copies = [c[: len(i)] for c, i in zip(copies, originals, strict=True)]
    recent = [mask(5), mask(7, *copies[0].tolist()), mask(6, *copies[1].tolist()), mask(4, 3)]
    old, trained = shaped(before), shaped(after)
    return old, trained, duplicate(trained, old, originals, copies, recent), originals, copies


def mask_index(unit: int) -> Tensor:
    return torch.tensor([unit])


def within_unit(unit: int) -> Tensor:
    """The incoming parameters of one unit of the first layer."""
    blank = [(torch.zeros(b, a), torch.zeros(b)) for a, b in pairwise(SIZES)]
    blank[0][0][unit], blank[0][1][unit] = 1, 1
    return as_vector(blank).bool()


def test_an_original_gets_its_old_weights_back_and_its_copy_the_new_ones():
    old, trained, result, _, _ = divided("some")
    for n, (i, copy) in enumerate([(1, 4), (2, 3)]):
        assert torch.equal(result[n][0][i], old[n][0][i])
        assert torch.equal(result[n][1][i], old[n][1][i])
        assert torch.equal(result[n][1][copy], trained[n][1][i])
    assert torch.equal(result[0][0][4], trained[0][0][1])
    expected = trained[1][0][2].clone()  # fed by the copy of the unit that was divided below
    expected[4], expected[1] = expected[1].clone(), 0.0
    assert torch.equal(result[1][0][3], expected)


def test_a_division_of_all_that_drifted_restores_the_old_function_and_keeps_the_new():
    old, trained, result, originals, copies = divided("all")
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    hidden = [mask(7, *range(4)), mask(6, *range(3))]
    every = torch.ones(4, dtype=torch.bool)
    early = as_layers_of(within([torch.ones(5, dtype=torch.bool), *hidden, every]), result)
    past = [(w * m, b * n) for (w, b), (m, n) in zip(result, early, strict=True)]
    assert torch.equal(forward(past, x)[:, :3], forward(old, x)[:, :3])
    torch.testing.assert_close(forward(result, x)[:, 3], forward(trained, x)[:, 3])
    assert not torch.allclose(forward(old, x)[:, 3], forward(trained, x)[:, 3])
    assert [len(i) for i in originals] == [len(c) for c in copies] == [3, 3]


def as_layers_of(vector: Tensor, like: Layers) -> Layers:
    parts = iter(vector.split([p.numel() for layer in like for p in layer]))
    return [(next(parts).view_as(w), next(parts).view_as(b)) for w, b in like]


def test_what_does_not_fit_together_is_refused():
    layers, some = network(0), [torch.tensor([0])]
    members = [(w.bool(), b.bool()) for w, b in layers]
    for mistake in (
        lambda: as_layers(layers[0] + layers[1][:1]),
        lambda: group_threshold(layers, members[:2], torch.tensor(0.1)),
        lambda: drifted(layers, layers[:2], 0.1),
        lambda: duplicate(layers, layers, some, [], []),
        lambda: duplicate(layers, [layers[0][:1]], some, some, []),
    ):
        with pytest.raises(ValueError, match="zip"):
            mistake()


def test_a_copy_feeds_the_recent_units_two_levels_up_from_its_input():
    sizes, none = (2, 3, 3, 3, 2), torch.empty(0, dtype=torch.int64)
    layers, old = network(0, sizes=sizes), network(1, sizes=sizes)
    originals, copies = [mask_index(0), none, none], [mask_index(2), none, none]
    recent = [mask(2), mask(3, 2), mask(3, 1), mask(3), mask(2)]
    weight = duplicate(layers, old, originals, copies, recent)[1][0]
    fed = layers[1][0][:, 0]
    assert weight[:, 2].tolist() == [0, fed[1], 0]
    assert weight[:, 0].tolist() == [fed[0], 0, fed[2]]


def test_new_units_are_drawn_by_the_generator_alone():
    def draw(seed: int) -> Tensor:
        return as_vector(linear_init(network(0), torch.Generator().manual_seed(seed)))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_new_units_start_as_nn_linear_does():
    ((weight, bias),) = linear_init(
        [(torch.empty(400, 100), torch.empty(400))], torch.Generator().manual_seed(0)
    )
    for parameter in (weight, bias):
        assert parameter.abs().max() <= 0.1
        assert parameter.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)
