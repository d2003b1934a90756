"""Which differences are more than luck: paired tests, ranks over benchmarks, bootstrap intervals.

Values are plain sequences of numbers; paired ones have the same seed at the same place. Where the
direction matters, larger is better: negate the values of a metric of which less is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
FIRST_WILCOXON = 6  # with fewer seeds Wilcoxon's test never gives p < 0.05: 2 / 2**5
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
    effect: float | None = None
    effect_name: str = ""
    p_holm: float | None = None  # after Holm's correction over the comparisons made together

    @property
    def differs(self) -> bool:
        """Whether the two can be told apart; not so where no test was possible."""
        return self.p_holm is not None and self.p_holm < LEVEL


def paired_test(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Are the values a larger or smaller than b, seed by seed? Two-sided.

    Wilcoxon's signed-rank test from six values on (differences of zero are dropped), else the
    paired t-test, whose assumption of normal differences so few values cannot check. The effect
    size is the matched-pairs rank-biserial correlation, (sum of the positive ranks - sum of the
    negative ones) / sum of all, or Cohen's d of the differences, their mean / their SD.
    """
    # Accuracies are ratios of whole numbers: differences closer than this are ties.
    d = np.round(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), 12)
    n = len(d)
    if n < 2:
        return Paired(n=n, test="no test: too few shared seeds")
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    if not d.any():
        return Paired(n=n, test="equal in every seed", difference=0.0, p=1.0)
    from scipy import stats  # slow to import, and not needed by the end of every sweep

    if n >= FIRST_WILCOXON:
        d = d[d != 0]
        ranks = stats.rankdata(np.abs(d))
        effect = float((ranks * np.sign(d)).sum() / ranks.sum())
        p = float(stats.wilcoxon(d).pvalue)
        name, effect_name = "Wilcoxon signed-rank", "rank-biserial r"
    elif sd == 0 or len(np.unique(d)) == 1:
        return Paired(n=n, test="no test: one difference in every seed", difference=mean)
    else:
        effect = mean / sd
        p = float(stats.ttest_1samp(d, 0.0).pvalue)
        name, effect_name = "paired t", "Cohen's d"
    return Paired(n=n, test=name, difference=mean, p=p, effect=effect, effect_name=effect_name)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Methods ordered by their average rank over streams (Demsar 2006); rank 1 is the best."""

    ranks: dict[str, float]
    streams: int
    friedman_p: float | None  # None for two methods: the test needs three
    critical_difference: float  # of average ranks, Nemenyi's at level 0.05


def rank(means: Mapping[str, Sequence[float]]) -> Ranking:
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
    return Ranking(
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
