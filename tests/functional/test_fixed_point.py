"""Fixed point: what is rounded, sums without an error, both ways to multiply."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from cl_runner.functional import fixed_point
from cl_runner.functional.fixed_point import add_products, product, projected, rounded, unit, whole


def rows(n: int, d: int) -> torch.Tensor:
    """Numbers of both signs, of rows whose lengths differ a thousandfold."""
    return torch.randn(n, d) * torch.logspace(-2, 1, n)[:, None]


@pytest.mark.parametrize("count", [1, 3, 200])
def test_the_unit_is_a_power_of_two_that_leaves_seven_bits(count):
    """Of powers of two and of what lies just above, in vectors of any length."""
    powers = torch.tensor([2.0**k for k in range(-95, 105)])
    for top in (powers, torch.nextafter(powers, 2 * powers)):
        own = torch.cat([unit(part[:, None]) for part in top.split(count)])
        assert own[:, 0].tolist() == [2.0 ** (k - 6) for k in range(-95, 105)]


def test_what_is_rounded_is_whole_and_near_and_stays():
    own, near = unit(x := rows(50, 90)), rounded(x)
    x = x.relu()
    numbers, units = whole(near)
    assert torch.equal(numbers * units[:, None], near) and torch.equal(units, own[:, 0])
    assert int(numbers.min()) == 0 and int(numbers.max()) <= 127
    assert bool((numbers.amax(1) >= 64).all())
    cut = x > 127 * own
    assert bool(((near - x).abs() <= own / 2)[~cut].all())
    assert bool((near == 127 * own)[cut].all())
    assert torch.equal(rounded(near), near)


def test_a_projection_is_exact_but_for_the_bits_of_its_inputs():
    """Bit for bit the same alone, in a batch, in a stack, and without products of whole numbers."""
    x, last = rows(30, 500), 0.0123
    weights = torch.randint(-127, 128, (9, 500)) * last
    out, own = projected(x, weights, last), unit(x.abs(), 13)
    bits = (x / own).round() * own
    assert bool((bits.abs() < 8193 * own).all())
    exact = bits.double() @ (weights.double() / last).round().T * last
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=1e-9)
    most = own / 2 * weights.abs().sum(1) + 1e-5
    assert bool(((out - x @ weights.T).abs() <= most).all())
    assert torch.equal(torch.cat([projected(row[None], weights, last) for row in x]), out)
    stack = torch.stack([weights, weights.flip(0)])
    outs = torch.vmap(lambda own: projected(x, own, last))(stack)
    assert torch.equal(outs[0], out) and torch.equal(outs[1], out.flip(1))
    fixed_point.multiplies_integers.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(torch, "_int_mm")
        assert torch.equal(projected(x, weights, last), out)
    fixed_point.multiplies_integers.cache_clear()


def test_nothing_stays_nothing_and_what_is_not_finite_is_seen():
    assert torch.equal(rounded(torch.zeros(2, 3)), torch.zeros(2, 3))
    for bad in (torch.inf, torch.nan):
        x = torch.tensor([[1.0, bad]])
        assert bool(rounded(x).isnan().any())
        assert bool(rounded(projected(x, torch.ones(3, 2), 1.0)).isnan().any())


def test_sums_have_no_error(monkeypatch):
    """Against fractions, in panels, and in any order: bit for bit."""
    monkeypatch.setattr(fixed_point, "PANEL", 4)
    x, member = rounded(rows(40, 10)), torch.arange(40) % 3 == torch.arange(3)[:, None]

    def added(order: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
        sums, gram = (torch.zeros(n, 10, dtype=torch.float64) for n in (3, 10))
        for part in order.split([*sizes]):
            add_products(sums, gram, member[:, part], *whole(x[part]))
        return sums, gram.tril()

    sums, gram = added(torch.arange(40), 1, 17, 22)
    exact = [[Fraction(v) for v in row] for row in x.tolist()]
    for i in range(10):
        for c in range(3):
            assert Fraction(float(sums[c, i])) == sum(row[i] for row in exact[c::3])
        for j in range(i + 1):
            assert Fraction(float(gram[i, j])) == sum(row[i] * row[j] for row in exact)
    for one, other in zip((sums, gram), added(torch.randperm(40), 40), strict=True):
        assert torch.equal(one, other)


def test_a_row_that_is_not_finite_is_seen_in_the_sums():
    numbers, units = whole(rounded(torch.tensor([[1.0, 2.0], [1.0, torch.inf]])))
    sums, gram = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    add_products(sums, gram, torch.ones(1, 2, dtype=torch.bool), numbers, units)
    assert bool(sums.isnan().all()) and bool(gram.isnan().all())


@pytest.mark.parametrize("k", [1, 5, 1040, 3000])
def test_both_ways_to_multiply_are_exact(monkeypatch, k):
    """Whole numbers, and float32 in parts; of the largest numbers, too."""
    assert fixed_point.EXACT * 127**2 <= 2**24
    random = torch.randint(-127, 128, (7, k), dtype=torch.int8)
    for a in (random, torch.full_like(random, 127)):
        expected = a.long() @ a.long().T
        for integers in {False, fixed_point.multiplies_integers()}:
            monkeypatch.setattr(fixed_point, "multiplies_integers", lambda of=integers: of)
            assert torch.equal(product(a, a.T.contiguous()).long(), expected)
            assert torch.equal(product(a[:1], a[:1].T.contiguous()).long(), expected[:1, :1])


def test_a_processor_that_overflows_does_not_multiply_integers(monkeypatch):
    fixed_point.multiplies_integers.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.short() @ b.short()).int())
    assert not fixed_point.multiplies_integers()
    monkeypatch.delattr(torch, "_int_mm")
    fixed_point.multiplies_integers.cache_clear()
    assert not fixed_point.multiplies_integers()
    fixed_point.multiplies_integers.cache_clear()
