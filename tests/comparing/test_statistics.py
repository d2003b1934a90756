"""The statistics against scipy, published tables and counting by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cl_runner.comparing.statistics import (
    Paired,
    holm,
    improvement_interval,
    interquartile_mean,
    iqm_interval,
    paired_test,
    paired_tests,
    performance_profile,
    probability_of_improvement,
    profile_intervals,
    rank,
    seeds_to_see,
    share_of_signs,
)

A = [0.81, 0.84, 0.79, 0.88, 0.83, 0.90, 0.86]
B = [0.80, 0.80, 0.80, 0.81, 0.78, 0.84, 0.83]
FRACTIONS = st.floats(0, 1).map(lambda v: round(v, 3))


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_few_seeds_get_a_paired_t_test(n: int) -> None:
    found, expected = paired_test(A[:n], B[:n]), stats.ttest_rel(A[:n], B[:n])
    assert found.test == "paired t"
    assert found.p == pytest.approx(expected.pvalue)
    assert found.effect == pytest.approx(expected.statistic / math.sqrt(n))  # d = t / sqrt(n)


@pytest.mark.parametrize("n", [9, 10])
def test_more_seeds_get_the_exact_test_of_the_signs(n: int) -> None:
    """The p-value by enumerating the signs, and scipy's."""
    a, b = [*A, 0.71, 0.95, 0.87][:n], [*B, 0.75, 0.9, 0.86][:n]
    found = paired_test(a, b)
    assert found.test == "sign flips"
    d = np.round(np.subtract(a, b), 12)
    sums = [abs(np.dot(s, d)) for s in itertools.product([-1, 1], repeat=n)]
    assert found.p == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9))
    theirs = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=10**5)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.effect == pytest.approx(d.mean() / d.std(ddof=1))


def test_all_changes_of_sign_are_counted_up_to_thirty_seeds() -> None:
    """Of thirty differences of 1 or 2**-k two changes of sign reach the sum; and quickly."""
    d = np.array([2.0**-k for k in range(30)])
    assert share_of_signs(d) == 2 / 2**30
    assert share_of_signs(np.array([1.0, 1.0, -1.0])) == 1.0  # |sum| is 1 or 3
    assert share_of_signs(np.array([3.0, 1.0])) == 0.5


@pytest.mark.parametrize("comparisons", [1, 3, 15, 120])
def test_signs_are_counted_only_where_the_level_has_room_for_them(comparisons: int) -> None:
    rng = np.random.default_rng(0)
    first = math.ceil(math.log2(16 * comparisons / 0.05))
    for n, test in [(first - 1, "paired t"), (first, "sign flips"), (31, "paired t")]:
        d = rng.normal(5, 1, n)
        found = paired_test(d, np.zeros(n), comparisons)
        assert found.test == test
        assert found.p is not None and comparisons * found.p < 0.05
    # A difference of 0 has no sign.
    assert paired_test([*rng.normal(5, 1, first - 1), 0.0], [0.0] * first, comparisons).test == (
        "paired t"
    )


def test_what_cannot_be_tested_is_said() -> None:
    assert paired_test([0.5], [0.4]) == Paired(n=1, test="no test: too few shared seeds")
    assert paired_test([], []).n == 0
    same = paired_test([0.2] * 7, [0.2] * 7)
    assert (same.test, same.p, same.differs) == ("equal in every seed", 1.0, False)


def test_one_difference_in_every_seed_is_tested_by_the_steps_of_the_values() -> None:
    """It has no SD: a p of 0 would be nonsense, and no test at all would be, too."""
    found = paired_test([0.81, 0.82, 0.84], [0.31, 0.32, 0.34])
    assert found.test == "one difference in every seed"
    assert found.p == pytest.approx(stats.t.sf(0.5 / 0.01 * math.sqrt(3), 2) * 2)
    close = paired_test([0.81, 0.82, 0.84], [0.8, 0.81, 0.83])  # one step: as luck may have it
    assert close.p == pytest.approx(stats.t.sf(math.sqrt(3), 2) * 2)


def test_one_difference_without_any_spread_counts_as_its_sign_does() -> None:
    (few,) = paired_tests([([0.3] * 3, [0.2] * 3)], against_best=True)
    assert few.p == pytest.approx(stats.t.sf(math.sqrt(3), 2) * 2)  # one step, below 2 / 2**3
    assert (few.effect, few.differs, few.seeds_needed) == (None, False, 6)
    assert few.difference == pytest.approx(0.1)
    (ten,) = paired_tests([([0.3] * 10, [0.2] * 10)], against_best=True)
    assert ten.p == 2 / 2**10 and ten.differs
    many = paired_tests([([0.3] * 8, [0.2] * 8)] * 7, against_best=False)
    assert {(t.differs, t.seeds_needed) for t in many} == {(False, 9)}  # 7 * 2 / 2**8 > 0.05


def test_the_example_that_was_wrong(run_six: list[list[float]]) -> None:
    """Six seeds, 0.18 against 0.83: Wilcoxon's p of 2 / 2**6 could not survive two comparisons."""
    best, *others = run_six
    tests = paired_tests([(other, best) for other in others], against_best=True)
    assert all(t.differs and t.p_holm < 1e-6 for t in tests)


@pytest.fixture
def run_six() -> list[list[float]]:
    """ER, naive and EWC on six seeds, as in docs/compare.md."""
    rng = np.random.default_rng(0)
    means = ((0.828, 0.009), (0.180, 0.004), (0.180, 0.004))
    return [rng.normal(mean, sd, 6).tolist() for mean, sd in means]


def mark(test: Paired) -> str:
    return "yes" if test.differs else "no" if test.seeds_needed is None else "too_few"


@pytest.mark.parametrize("n", range(3, 13))
def test_a_difference_of_ten_sds_is_never_called_none(n: int) -> None:
    """True differences of ten of their SDs, 1 to 15 of them together."""
    rng = np.random.default_rng(n)
    for k in range(1, 16):
        best = rng.normal(0, 0.5, n)
        pairs = [(best - 10 + rng.normal(0, 1, n), best) for _ in range(k)]
        marks = Counter(map(mark, paired_tests(pairs, against_best=True)))
        if n > 3 or k < 3:  # three seeds give p = 0.003, which 120 pairs of 16 groups take away
            assert marks == {"yes": k}
        assert marks["no"] == 0


@pytest.mark.parametrize(("k", "n"), [(1, 3), (1, 9), (2, 5), (7, 4), (7, 6), (15, 3), (15, 12)])
def test_without_a_difference_false_alarms_are_rare(k: int, n: int) -> None:
    """Of k + 1 groups that are alike the best by its mean is said to differ in 5 % of the cases.

    Holm's correction for k comparisons lets it be 6 % (k = 2), 11 % (7) and 17 % (15).
    """
    rng = np.random.default_rng(1000 * k + n)
    cases = 300
    alarms = 0
    for values in rng.normal(size=(cases, k + 1, n)):
        best = values.mean(axis=1).argmax()
        pairs = [(v, values[best]) for i, v in enumerate(values) if i != best]
        alarms += any(t.differs for t in paired_tests(pairs, against_best=True))
    assert alarms <= stats.binom.ppf(0.999, cases, 0.05)


def test_alarms_against_a_baseline_are_rare_too() -> None:
    """Whatever the distribution, where signs are counted: here each run collapses or does not."""
    rng = np.random.default_rng(5)
    cases, k, n = 300, 3, 10
    alarms = 0
    for _ in range(cases):
        values = rng.choice([0.2, 0.7], (k + 1, n)) + rng.normal(0, 0.01, (k + 1, n))
        pairs = [(v, values[0]) for v in values[1:]]
        tests = paired_tests(pairs, against_best=False)
        assert {t.test for t in tests} == {"sign flips"}
        alarms += any(t.differs for t in tests)
    assert alarms <= stats.binom.ppf(0.999, cases, 0.05)


@pytest.mark.parametrize("comparisons", [1, 3, 28, 120, 5000])
def test_the_seeds_that_are_needed_are_those_of_the_power(comparisons: int) -> None:
    """scipy's distributions of t, with the difference that is there and without it."""
    needed = seeds_to_see(comparisons)
    for n, enough in ((needed - 1, False), (needed, True)):
        limit = stats.t.isf(0.025 / comparisons, n - 1)
        assert (stats.nct.sf(limit, n - 1, 2 * math.sqrt(n)) >= 0.8) == enough


def test_alike_is_said_only_with_the_power_to_see_a_difference() -> None:
    d = np.array([0.01, -0.01, 0.02, -0.015, 0.012, -0.02, 0.01, -0.011])
    marks = [mark(*paired_tests([(d[:n], np.zeros(n))], against_best=True)) for n in range(2, 9)]
    assert marks == ["too_few"] * 3 + ["no"] * 4
    # Of three comparisons two are settled: one is open, so five seeds are enough for it.
    pairs = [(d[:5], np.zeros(5)), (d[:5] + 5, np.zeros(5)), (d[:5] + 5, np.zeros(5))]
    assert [mark(t) for t in paired_tests(pairs, against_best=True)] == ["no", "yes", "yes"]
    together = paired_tests([pairs[0]] * 3, against_best=True)
    assert [(mark(t), t.seeds_needed) for t in together] == [("too_few", 7)] * 3


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


def test_against_the_best_all_pairs_that_are_left_are_counted() -> None:
    # four groups, so 6 pairs, then 3 of those left, then 1
    assert holm([0.03, 0.004, 0.01], against_best=True) == pytest.approx([0.03, 0.024, 0.03])
    assert holm([0.04], against_best=True) == [0.04]


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


@pytest.mark.parametrize("comparisons", [1, 6, 120])
def test_one_seed_more_costs_no_power(comparisons: int) -> None:
    """Where the exact test begins it sees 1.5 SDs as often as the t-test with one seed less."""
    rng = np.random.default_rng(comparisons)
    first = math.ceil(math.log2(16 * comparisons / 0.05))
    seen = {}
    for n in (first - 1, first):
        tests = [paired_test(d, np.zeros(n), comparisons) for d in rng.normal(1.5, 1, (400, n))]
        seen[tests[0].test] = np.mean([comparisons * t.p < 0.05 for t in tests])
    assert seen["sign flips"] >= seen["paired t"] - 0.06  # three standard errors
