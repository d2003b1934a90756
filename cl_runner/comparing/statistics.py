"""Which differences are more than luck: paired tests, ranks over benchmarks, bootstrap intervals.

Values are plain sequences of numbers; paired ones have the same seed at the same place. Where the
direction matters, larger is better: negate the values of a metric of which less is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
ROOM = 16  # of the 2**n changes of sign that must fit below the level where they are counted
EXACT = 30  # seeds up to which they are counted: 2**15 sums, twice
LARGE, POWER = 2.0, 0.8  # a test that shows so many SDs so often may say that two are alike
STUDENT, FLIPS = "paired t", "sign flips"
TESTS = {  # how people are told of them
    STUDENT: "Student's t-test of the differences",
    FLIPS: "the exact test of the differences under all changes of their signs",
}
RESAMPLES = 2000
FEW = 5  # runs of a stream below which a bootstrap interval is much too narrow
Array = NDArray[np.float64]
Strata = Sequence[Sequence[float]] | Sequence[Array]  # the runs of each stream


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A paired comparison of two groups."""

    n: int  # seeds that both have
    test: str  # what was computed, or why nothing could be
    difference: float | None = None  # mean of the differences
    p: float | None = None
    effect: float | None = None  # of the differences, mean / SD; None where the SD is 0
    effect_name: str = ""
    p_holm: float | None = None  # corrected for the comparisons made together
    seeds_needed: int | None = None  # where n are too few to say that the two are alike

    @property
    def differs(self) -> bool:
        """Whether the two can be told apart; not so where no test was possible."""
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def open(self) -> bool:
        """Whether a test was made that does not tell the two apart."""
        return self.p_holm is not None and self.p_holm >= LEVEL


def paired_tests(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, against_best: bool
) -> list[Paired]:
    """Each pair tested (`paired_test`), all together corrected (`holm`).

    against_best: the second of each pair is the group that did best, chosen by these very values.

    Two that a test does not tell apart may be called alike only if it would have seen a large
    difference: LARGE times the SD of the differences, with probability POWER. Where the seeds are
    too few for that, `seeds_needed` says how many it takes, with as many comparisons as are open.
    """
    testable = sum(len(a) > 1 for a, _ in pairs)
    comparisons = multiplicity(testable, against_best=against_best)
    tests = [paired_test(a, b, comparisons) for a, b in pairs]
    adjusted = iter(holm([t.p for t in tests if t.p is not None], against_best=against_best))
    tests = [t if t.p is None else replace(t, p_holm=next(adjusted)) for t in tests]
    comparisons = multiplicity(sum(t.open for t in tests), against_best=against_best)
    return [with_seeds_needed(t, comparisons) if t.open else t for t in tests]


def paired_test(a: Sequence[float], b: Sequence[float], comparisons: int = 1) -> Paired:
    """Are the values a larger or smaller than b, seed by seed? Two-sided, of the mean difference.

    If two groups are alike, each difference might as well have the other sign. The exact p is the
    share of all 2**n changes of sign whose mean is as far from 0 (Fisher's randomisation test): no
    assumption of a distribution, but never less than 2 / 2**n. So it is taken where
    LEVEL / comparisons has room for ROOM of them, from where on it sees nearly what the t-test
    sees (normal differences of 1 to 3 SDs with a probability that is smaller by 0.05 at most, as
    measured for 1 to 120 comparisons), and one seed more takes nothing away. With fewer seeds it
    is Student's paired t-test, which can reject with two, but relies on normal differences.

    A difference that is the same in every seed has an SD that is too small to be seen: p is that of
    Student's test with the smallest step between any of the values in the SD's place, and 2 / 2**n
    where this is less.

    The effect size is Cohen's d of the differences: by how many of their SDs the means differ.
    """
    # Accuracies are ratios of whole numbers: what is closer than this is equal.
    x, y = rounded(a), rounded(b)
    d = rounded(x - y)
    n = len(d)
    if n < 2:
        return Paired(n=n, test="no test: too few shared seeds")
    if not d.any():
        return Paired(n=n, test="equal in every seed", difference=0.0, p=1.0)
    mean = float(d.mean())
    if (d == d[0]).all():
        p = min(2.0 ** (1 - n), student(mean / smallest_step(x, y), n))
        return Paired(n=n, test="one difference in every seed", difference=mean, p=p)
    d_effect = mean / float(d.std(ddof=1))
    # A difference of 0 has no sign: it adds nothing to what can be counted.
    if n <= EXACT and comparisons * ROOM <= LEVEL * 2 ** np.count_nonzero(d):
        test, p = FLIPS, share_of_signs(d)
    else:
        test, p = STUDENT, student(d_effect, n)
    return Paired(n=n, test=test, difference=mean, p=p, effect=d_effect, effect_name="Cohen's d")


def rounded(values: Sequence[float] | Array) -> Array:
    """To twelve digits after the point."""
    return np.asarray(np.round(np.asarray(values, dtype=np.float64), 12), dtype=np.float64)


def student(effect: float, n: int) -> float:
    """The two-sided p of a t-test of n differences by their mean / SD."""
    from scipy import special  # slow to import, and not needed by most of the program

    return 2 * float(special.stdtr(n - 1, -abs(effect) * math.sqrt(n)))


def smallest_step(a: Array, b: Array) -> float:
    """The smallest difference between two of all values that are not equal."""
    return float(np.diff(np.unique(np.concatenate([a, b]))).min())


def share_of_signs(d: Array) -> float:
    """The share of all changes of sign of d that give a sum as far from 0 as d does."""
    half = len(d) // 2
    first, second = signed_sums(d[:half]), np.sort(signed_sums(d[half:]))
    least = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # equal up to rounding is as far
    reach = len(second) - np.searchsorted(second, least - first)
    return min(1.0, float(reach.sum()) / 2.0 ** (len(d) - 1))


def signed_sums(d: Array) -> Array:
    """The sums of d under all 2**len(d) changes of sign."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def with_seeds_needed(test: Paired, comparisons: int) -> Paired:
    """A test that does not tell two apart, with the seeds needed if it has too few."""
    constant = test.effect is None and test.difference != 0
    needed = seeds_to_count(comparisons) if constant else seeds_to_see(comparisons)
    return replace(test, seeds_needed=needed) if test.n < needed else test


@lru_cache
def seeds_to_see(comparisons: int) -> int:
    """With how many seeds a t-test sees a difference of LARGE SDs with probability POWER."""
    from scipy import special

    def power(n: int) -> float:
        limit = -float(special.stdtrit(n - 1, LEVEL / comparisons / 2))
        return 1 - float(special.nctdtr(n - 1, LARGE * math.sqrt(n), limit))

    return next(n for n in count(2) if power(n) >= POWER)


def seeds_to_count(comparisons: int) -> int:
    """From how many seeds on the same sign in all of them is more than luck."""
    return next(n for n in count(2) if comparisons * 2.0 ** (1 - n) < LEVEL)


def holm(p: Sequence[float], *, against_best: bool = False) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given.

    against_best: p are of comparisons with the best of len(p) + 1 groups. Which one is the best is
    read from the same values, so that the largest of all pairs' differences is tested: with 16
    groups that are alike, Holm's correction for 15 comparisons would call two different in 16 of
    100 cases instead of 5. So at each step the number of pairs among the groups that are left
    stands in the place of the number of comparisons that are left.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        left = multiplicity(len(p) - rank, against_best=against_best)
        largest = max(largest, min(1.0, left * p[i]))
        adjusted[i] = largest
    return adjusted


def multiplicity(comparisons: int, *, against_best: bool) -> int:
    """How many comparisons are corrected for: those made, or all pairs of them and the best."""
    return comparisons * (comparisons + 1) // 2 if against_best else comparisons


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Methods ordered by their average rank over streams (Demsar 2006); rank 1 is the best."""

    ranks: dict[str, float]
    streams: int
    friedman_p: float | None  # None for two methods: the test needs three
    critical_difference: float  # of average ranks, Nemenyi's at level 0.05


def rank(means: Mapping[str, Sequence[float]]) -> Ranks:
    """Rank methods by their means on the same streams; ties share their ranks."""
    from scipy import stats

    values = np.array([list(row) for row in means.values()])  # [k, N]
    k, N = values.shape
    ranks = stats.rankdata(-np.round(values, 12), axis=0)  # [k, N]
    tied = bool((ranks == ranks[:1]).all())
    friedman = None
    if k > 2 and N > 1:
        friedman = 1.0 if tied else float(stats.friedmanchisquare(*ranks).pvalue)
    q = float(stats.studentized_range.ppf(1 - LEVEL, k, np.inf)) / math.sqrt(2)
    average = dict(zip(means, ranks.mean(axis=1).tolist(), strict=True))
    return Ranks(
        ranks=dict(sorted(average.items(), key=lambda item: item[1])),
        streams=N,
        friedman_p=friedman,
        critical_difference=q * math.sqrt(k * (k + 1) / (6 * N)),
    )


# Over streams. These take the runs of each stream in the last axis; leading axes are resamples.


def interquartile_mean(strata: Strata) -> Array:
    """The mean of the middle half of all values (Agarwal et al. 2021, arXiv 2108.13264)."""
    from scipy import stats

    values = np.concatenate([np.asarray(s, dtype=np.float64) for s in strata], axis=-1)
    return np.asarray(stats.trim_mean(values, 0.25, axis=-1))


def probability_of_improvement(a: Strata, b: Strata) -> Array:
    """How often a run of a is better than one of b on the same stream, ties counted half.

    Mean over the streams of P(X > Y) (Agarwal et al. 2021, arXiv 2108.13264).
    """
    shares = []
    for one, other in zip(a, b, strict=True):
        x, y = np.asarray(one)[..., :, None], np.asarray(other)[..., None, :]
        shares.append(((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(shares, axis=0))


def performance_profile(strata: Strata, thresholds: Sequence[float]) -> Array:
    """The share of runs that reach each threshold, [len(thresholds)]: mean over the streams.

    F(tau) = 1/M sum_m 1/N_m sum_n 1[x_{m,n} >= tau] (Agarwal et al. 2021, arXiv 2108.13264, with
    > there). Larger values are better.
    """
    tau = np.asarray(thresholds, dtype=np.float64)[:, None]
    shares = [(np.asarray(s)[..., None, :] >= tau).mean(axis=-1) for s in strata]
    return np.asarray(np.mean(shares, axis=0))


def resampled(strata: Strata, rng: np.random.Generator) -> list[Array]:
    """Stratified: RESAMPLES times as many runs, with replacement, from each stream as it has."""
    return [rng.choice(np.asarray(s, dtype=np.float64), (RESAMPLES, len(s))) for s in strata]


def repeated(*several: Strata) -> bool:
    """Whether there is anything to resample: some stream has two runs."""
    return any(len(s) > 1 for strata in several for s in strata)


def iqm_interval(strata: Strata) -> tuple[float, float] | None:
    """The 95 % percentile interval of the interquartile mean; stratified bootstrap, seed 0.

    None, as for the other intervals, where every stream has one run only.
    """
    if not repeated(strata):
        return None
    values = interquartile_mean(resampled(strata, np.random.default_rng(0)))
    return _percentiles(values[:, None])[0]


def improvement_interval(a: Strata, b: Strata) -> tuple[float, float] | None:
    """Likewise for the probability of improvement."""
    if not repeated(a, b):
        return None
    rng = np.random.default_rng(0)
    values = probability_of_improvement(resampled(a, rng), resampled(b, rng))
    return _percentiles(values[:, None])[0]


def profile_intervals(
    strata: Strata, thresholds: Sequence[float]
) -> list[tuple[float, float]] | None:
    """Likewise for the performance profile, at each threshold by itself."""
    if not repeated(strata):
        return None
    rng = np.random.default_rng(0)
    return _percentiles(performance_profile(resampled(strata, rng), thresholds))


def _percentiles(values: Array) -> list[tuple[float, float]]:
    """Low and high of each column of values [RESAMPLES, n]."""
    tail = 100 * LEVEL / 2
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
