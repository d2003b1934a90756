"""The statistics against scipy, published tables and counting by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cl_runner.compare.statistics import (
    Paired,
    holm,
    improvement_interval,
    interquartile_mean,
    iqm_interval,
    paired_test,
    performance_profile,
    probability_of_improvement,
    profile_intervals,
    rank,
)

A = [0.81, 0.84, 0.79, 0.88, 0.83, 0.90, 0.86]
B = [0.80, 0.80, 0.80, 0.81, 0.78, 0.84, 0.83]
FRACTIONS = st.floats(0, 1).map(lambda v: round(v, 3))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_seeds_get_a_paired_t_test(n: int) -> None:
    found, expected = paired_test(A[:n], B[:n]), stats.ttest_rel(A[:n], B[:n])
    assert found.test == "paired t"
    assert found.p == pytest.approx(expected.pvalue)
    assert found.effect == pytest.approx(expected.statistic / math.sqrt(n))  # d = t / sqrt(n)


@pytest.mark.parametrize("n", [6, 7])
def test_six_seeds_get_wilcoxons_test(n: int) -> None:
    """The exact p-value, by enumerating the signs of all differences."""
    found = paired_test(A[:n], B[:n])
    assert found.test == "Wilcoxon signed-rank"
    d = np.round(np.subtract(A[:n], B[:n]), 12)
    ranks = stats.rankdata(np.abs(d))
    plus = ranks[d > 0].sum()
    sums = [np.dot(s, ranks) for s in itertools.product([0, 1], repeat=n)]
    extreme = max(plus, ranks.sum() - plus)
    exact = np.mean([max(s, ranks.sum() - s) >= extreme for s in sums])
    assert found.p == pytest.approx(exact)
    assert found.effect == pytest.approx((2 * plus - ranks.sum()) / ranks.sum())


def test_the_limit_is_where_wilcoxon_can_reach_the_level() -> None:
    for n, reaches in [(5, False), (6, True)]:
        assert (stats.wilcoxon(np.arange(1, n + 1)).pvalue < 0.05) is np.bool_(reaches)


def test_what_cannot_be_tested_is_said() -> None:
    assert paired_test([0.5], [0.4]) == Paired(n=1, test="no test: too few shared seeds")
    assert paired_test([], []).n == 0
    same = paired_test([0.2] * 7, [0.2] * 7)
    assert (same.test, same.p, same.differs) == ("equal in every seed", 1.0, False)
    constant = paired_test([0.3, 0.4, 0.5], [0.2, 0.3, 0.4])  # a p of 0 would be nonsense
    assert constant.p is None and "one difference" in constant.test
    assert constant.difference == pytest.approx(0.1)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=2, max_size=9))
def test_a_test_is_antisymmetric_and_blind_to_the_order_of_seeds(pairs) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    one, other = paired_test(a, b), paired_test(b, a)
    assert (one.p is None) == (other.p is None)
    if one.p is not None:
        assert one.p == pytest.approx(other.p)
        assert 0 <= one.p <= 1
    if one.effect is not None:
        assert one.effect == pytest.approx(-other.effect)
    back = paired_test(a[::-1], b[::-1])
    assert back.test == one.test
    assert back.p == (None if one.p is None else pytest.approx(one.p))


def test_holm_by_hand() -> None:
    # sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (below the one before), 0.04
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1))
def test_holm_lies_between_the_raw_and_bonferronis(p: list[float]) -> None:
    for raw, adjusted in zip(p, holm(p), strict=True):
        assert raw <= adjusted <= min(1.0, len(p) * raw)


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_has_the_published_constants(k: int, q: float) -> None:
    """The tabulated q_0.05 of the Nemenyi test."""
    N = 8
    found = rank({f"m{i}": list(np.linspace(0, 1, N) + i) for i in range(k)})
    assert found.critical_difference == pytest.approx(
        q * math.sqrt(k * (k + 1) / (6 * N)), abs=2e-3
    )


def test_ranks_by_hand() -> None:
    found = rank({"a": [0.9, 0.5, 0.7], "b": [0.8, 0.5, 0.9], "c": [0.1, 0.2, 0.3]})
    # a: 1, 1.5 (a tie), 2; b: 2, 1.5, 1; c: 3, 3, 3
    assert found.ranks == {"a": 1.5, "b": 1.5, "c": 3.0}
    expected = stats.friedmanchisquare([0.9, 0.5, 0.7], [0.8, 0.5, 0.9], [0.1, 0.2, 0.3])
    assert found.friedman_p == pytest.approx(expected.pvalue)
    assert rank({"a": [1, 1], "b": [1, 1], "c": [1, 1]}).friedman_p == 1.0
    assert rank({"a": [1, 1], "b": [0, 1]}).friedman_p is None


def test_the_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    assert interquartile_mean([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]]) == 3.5


def test_probability_of_improvement_by_counting() -> None:
    # First stream: 2 > 1, 2 = 2, 3 > 1, 3 > 2: 3.5 of 4. Second: 0 of 1.
    assert probability_of_improvement([[2, 3], [0]], [[1, 2], [5]]) == (3.5 / 4 + 0) / 2


def test_bootstrap_intervals_agree_with_scipy_and_repeat() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 40).tolist()
    low, high = iqm_interval([values])
    theirs = stats.bootstrap(
        (values,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.006)
    assert (low, high) == iqm_interval([values])
    assert improvement_interval([[2, 3]], [[0, 1]]) == (1.0, 1.0)
    low, high = improvement_interval([values[:20]], [values[20:]])
    assert low < probability_of_improvement([values[:20]], [values[20:]]) < high


def test_the_bootstrap_is_stratified() -> None:
    """Runs of different streams never stand in for each other."""
    assert iqm_interval([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]]) == pytest.approx((0.5, 0.5))


# Performance profiles.


def test_a_performance_profile_by_counting() -> None:
    """Streams count the same, whatever their number of runs."""
    strata = [[0.2, 0.4, 0.4, 0.9], [0.5]]
    found = performance_profile(strata, [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0])
    expected = [1, 1, (3 / 4 + 1) / 2, (3 / 4 + 1) / 2, (1 / 4 + 1) / 2, 1 / 8, 0]
    assert found == pytest.approx(expected)


@given(st.lists(st.lists(FRACTIONS, min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_area_below_a_profile_is_the_mean_score(strata: list[list[float]]) -> None:
    """integral of P(X >= tau) over [0, 1] = E[X], here on the grid of thousandths exactly."""
    tau = (np.arange(1000) + 0.5) / 1000
    area = performance_profile(strata, tau.tolist()).mean()
    assert area == pytest.approx(np.mean([np.mean(s) for s in strata]))


def test_profile_intervals_are_binomial_for_one_stream() -> None:
    """A resampled share of n runs is a binomial count: its percentiles are scipy's."""
    n, reached = 40, 26
    values = [1.0] * reached + [0.0] * (n - reached)
    found = profile_intervals([values], [0.5])
    assert found is not None
    expected = stats.binom.ppf([0.025, 0.975], n, reached / n) / n
    assert found[0] == pytest.approx(tuple(expected), abs=1.01 / n)
    several = profile_intervals([values, [1.0, 1.0]], [0.0, 0.5, 2.0])
    assert several is not None
    assert several[0] == (1.0, 1.0) and several[2] == (0.0, 0.0)
    assert several[1] == pytest.approx(tuple((expected + 1) / 2), abs=1.01 / n)


def test_one_run_per_stream_has_no_bootstrap_interval() -> None:
    single = [[0.3], [0.8]]
    assert iqm_interval(single) is None
    assert improvement_interval(single, [[0.2], [0.9]]) is None
    assert profile_intervals(single, [0.5]) is None
    assert improvement_interval(single, [[0.2, 0.4], [0.9]]) is not None
