"""Detectors of a rise: worked values, what is promised of their states, and river's beside them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from cl_runner.functional.detectors import (
    BUCKETS,
    BURN_IN,
    LARGEST_DEVIATION,
    ROWS,
    SHORTEST,
    WIDTH,
    adwin,
    adwin_start,
    cut,
    insert,
    page,
    page_hinkley,
    page_hinkley_start,
    running,
)

PH = partial(page_hinkley, delta=0.5, threshold=12.0, window=50.0)
ADWIN = partial(adwin, confidence=0.002, rise=1.25, clock=32)
BOTH = [(page_hinkley_start, PH), (adwin_start, ADWIN)]


def alarms(start, observe, series, *, again: bool = True) -> list[int]:
    """How many numbers had come at each alarm, after which it begins anew."""
    state, found = start(), []
    for i, x in enumerate(series, 1):
        state, alarm = observe(state, float(x))
        if alarm:
            found.append(i)
            if not again:
                break
            state = start()
    return found


def a_jump(seed: int) -> np.ndarray:
    """Numbers of one mean, then of another, of any scale."""
    r = np.random.default_rng(seed)
    before = r.normal(0, 1, r.integers(50, 1000))
    after = r.normal(r.uniform(-3, 3), r.uniform(0.5, 2), 500)
    return np.concatenate([before, after]) * r.uniform(0.1, 3)


def test_the_running_mean_and_variance_are_those_of_all_numbers() -> None:
    x = np.random.default_rng(0).normal(3, 2, 200)
    state = (0.0, 0.0, 0.0)
    for i, value in enumerate(x, 1):
        state = running(*state, value, math.inf)
        assert state == pytest.approx((i, x[:i].mean(), x[:i].var()))


def test_a_window_forgets_in_proportion() -> None:
    n, mean, variance = running(9.0, 1.0, 4.0, 6.0, window=5)
    assert (n, mean) == (10, pytest.approx(1 + 5 / 5))
    assert variance == pytest.approx(0.8 * (4 + 0.2 * 25))


def test_page_is_the_sum_less_its_minimum() -> None:
    increments = np.random.default_rng(1).normal(0, 1, 300)
    sums = np.concatenate([[0.0], np.cumsum(increments)])
    g = 0.0
    for i, increment in enumerate(increments, 1):
        g = page(g, increment)
        assert g == pytest.approx(sums[i] - sums[: i + 1].min())


def test_page_hinkley_is_its_formula() -> None:
    """Deviations from what is known before, in its deviations, clipped; none while it burns in."""
    x = np.random.default_rng(2).normal(5, 3, 200)
    x[60] = 500.0
    state, g = page_hinkley_start(), 0.0
    mean = variance = 0.0
    for i, value in enumerate(x):
        state, _ = page_hinkley(state, value, delta=0.25, threshold=1e9, window=40)
        if i >= BURN_IN:
            z = np.clip((value - mean) / variance**0.5, -LARGEST_DEVIATION, LARGEST_DEVIATION)
            g = max(0.0, g + z - 0.25)
        weight = 1 / min(i + 1, 40)
        mean, variance = (
            mean + weight * (value - mean),
            (1 - weight) * (variance + weight * (value - mean) ** 2),
        )
        assert state == pytest.approx([i + 1, mean, variance, g])


@pytest.mark.parametrize(("start", "observe"), BOTH)
def test_a_rise_is_an_alarm_and_a_fall_is_none(start, observe) -> None:
    noise = np.random.default_rng(3).normal(0, 1, 400)
    rise = noise + 4 * (np.arange(400) >= 200)
    (found, *_) = alarms(start, observe, rise)
    assert 200 < found <= 200 + 40
    assert alarms(start, observe, noise - 4 * (np.arange(400) >= 200)) == []


@pytest.mark.parametrize(("start", "observe"), BOTH)
def test_numbers_that_stay_the_same_are_no_alarm(start, observe) -> None:
    assert alarms(start, observe, [2.0] * 1000) == []
    assert alarms(start, observe, np.random.default_rng(4).normal(-7, 0.1, 10_000)) == []


def test_page_hinkley_does_not_know_the_scale() -> None:
    for seed in range(10):
        x = a_jump(seed)
        assert alarms(page_hinkley_start, PH, x) == alarms(page_hinkley_start, PH, 8 * x - 3)


def test_one_outlier_is_no_alarm_to_page_hinkley() -> None:
    x = np.random.default_rng(5).normal(0, 1, 400)
    x[[100, 200, 300]] = 1e6
    assert alarms(page_hinkley_start, PH, x) == []


@pytest.mark.parametrize(("start", "observe"), BOTH)
def test_a_state_keeps_its_length_and_is_not_changed(start, observe) -> None:
    state = start()
    for x in a_jump(6):
        before = list(state)
        after, _ = observe(state, float(x))
        assert state == before and len(after) == len(start())
        state = after


@pytest.mark.parametrize("at", [10, 31, 300])
@pytest.mark.parametrize(("start", "observe"), BOTH)
def test_it_goes_on_from_a_state_that_was_saved(start, observe, at) -> None:
    x = a_jump(7)
    state = start()
    for value in x[:at]:
        state, _ = observe(state, float(value))
    saved = np.array(state, dtype=np.float64).tolist()
    for value in x[at:]:
        state, _ = observe(state, float(value))
        saved, _ = observe(saved, float(value))
    assert state == saved


def test_adwins_window_knows_its_numbers() -> None:
    """Width, total and squared deviations of what it holds; the buckets together hold as much."""
    x = np.random.default_rng(8).normal(2, 1, 1000)
    state = adwin_start()
    for value in x:
        insert(state, float(value))
    assert state[1:4] == pytest.approx([1000, x.sum(), 1000 * x.var()])
    rows = np.array(state[4:]).reshape(ROWS, -1)
    counts, totals = rows[:, 0], rows[:, 1::2]
    assert counts.max() <= BUCKETS
    assert (counts * 2.0 ** np.arange(ROWS)).sum() == 1000
    assert totals.sum() == pytest.approx(x.sum())
    oldest = int(np.flatnonzero(counts)[-1])
    assert totals[oldest, 0] == pytest.approx(x[: 2**oldest].sum())


def test_adwin_keeps_what_came_after_a_fall() -> None:
    x = np.random.default_rng(9).normal(0, 1, 400) - 6 * (np.arange(400) >= 200)
    state = adwin_start()
    for value in x:
        state, alarm = ADWIN(state, float(value))
        assert not alarm
    assert 200 <= state[1] < 240 and state[2] / state[1] == pytest.approx(-6, abs=0.5)


def test_adwin_cuts_at_a_small_rise_and_calls_none() -> None:
    """It is one beyond all doubt, which no `confidence` helps against."""
    x = np.random.default_rng(10).normal(0, 1, 6000) + 0.7 * (np.arange(6000) >= 4000)
    assert alarms(adwin_start, partial(ADWIN, confidence=1e-15, rise=0.0), x)
    state = adwin_start()
    for value in x:
        state, alarm = ADWIN(state, float(value))
        assert not alarm
    assert state[1] < 2500 and state[2] / state[1] == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("height", [1.0, 3.0, 50.0])
def test_a_rise_is_measured_in_standard_deviations_within_the_parts(height) -> None:
    """At the first place between two buckets where the bound on the difference does not hold."""
    x = np.random.default_rng(11).normal(0, 1, 300) + height * (np.arange(300) >= 240)
    state = adwin_start()
    for value in x:
        insert(state, float(value))
    sizes = [2**r for r in reversed(range(ROWS)) for _ in range(int(state[4 + r * WIDTH]))]
    d = math.log(2 * math.log(300) / 0.002)
    for n0 in np.cumsum(sizes)[:-1]:
        old, new = x[:n0], x[n0:]
        if min(len(old), len(new)) < SHORTEST:
            continue
        m = 1 / (len(old) - SHORTEST + 1) + 1 / (len(new) - SHORTEST + 1)
        bound = math.sqrt(2 * m * x.var() * d) + 2 / 3 * m * d
        if new.mean() - old.mean() > bound:
            break
    within = np.sqrt((len(old) * old.var() + len(new) * new.var()) / 300)
    rise = float((new.mean() - old.mean()) / within)
    assert cut(state, 0.002, rise * (1 - 1e-9)) is True
    assert cut(state, 0.002, rise * (1 + 1e-9)) is False


# Beside river: what its 0.26.1 gave for these numbers, and itself, where it is installed.

RIVERS_CUTS = [896, 544, 896, 832, 800, 704, 512, None, 800, 480, 832, 256]  # of `a_jump`, by seed
RIVERS_RISES = [  # of the same, by PageHinkley(1, 0.05, 20.0, alpha=1.0, mode="up")
    [47, 442, 764, 855, 883, 1017, 1049, 1088, 1289],
    [381, 450, 510, 570, 603, 719, 844, 858],
    [892],
    [21, 110, 130, 177, 266, 407, 497, 677, 1200, 1245, 1281, 1300],
    [823],
    [147, 444, 645],
    [140, 182, 463, 484, 523, 547, 761, 880],
    [],
]


def pages(series) -> list[int]:
    """Alarms of Page and Hinkley's test as river has it: no scale, and all numbers in the mean."""
    found = []
    n, mean, variance, g = page_hinkley_start()
    for i, value in enumerate(map(float, series), 1):
        n, mean, variance = running(n, mean, variance, value, math.inf)
        g = page(g, value - mean - 0.05)
        if g > 20:
            found.append(i)
            n, mean, variance, g = page_hinkley_start()
    return found


def cuts(series, rise: float) -> list[tuple[int, bool]]:
    """Where adwin cuts, and whether it is an alarm; it begins anew then, as river does."""
    found, state = [], adwin_start()
    for i, value in enumerate(map(float, series), 1):
        width = state[1]
        state, alarm = ADWIN(state, value, rise=rise)
        if state[1] <= width:
            found.append((i, alarm))
            state = adwin_start()
    return found


@pytest.mark.parametrize("seed", range(len(RIVERS_RISES)))
def test_page_hinkley_alarms_where_rivers_did(seed) -> None:
    assert pages(a_jump(seed)) == RIVERS_RISES[seed]


@pytest.mark.parametrize("seed", range(len(RIVERS_CUTS)))
def test_adwin_cuts_where_rivers_did(seed) -> None:
    """Whatever rise is an alarm; and if any is one, each rise among those cuts."""
    x = a_jump(seed)
    expected = [] if RIVERS_CUTS[seed] is None else [RIVERS_CUTS[seed]]
    for rise in (0.0, 1.25, math.inf):
        assert [at for at, _ in cuts(x, rise)] == expected
    rises = x[-500:].mean() > x[:50].mean()
    assert [at for at, alarm in cuts(x, 0.0) if alarm] == (expected if rises else [])


@pytest.fixture
def drift():
    """river's module of detectors."""
    return pytest.importorskip("river.drift", reason="river is not installed")


def detections(theirs, series) -> list[int]:
    """How many numbers had come when a detector of river's saw a change."""
    found = []
    for i, value in enumerate(map(float, series), 1):
        theirs.update(value)
        if theirs.drift_detected:
            found.append(i)
    return found


def test_page_hinkley_alarms_where_rivers_does(drift) -> None:
    for x in map(a_jump, range(40)):
        theirs = drift.PageHinkley(1, 0.05, 20.0, alpha=1.0, mode="up")
        assert pages(x) == detections(theirs, x)


def test_adwin_cuts_where_rivers_does(drift) -> None:
    for x in map(a_jump, range(40)):
        assert [at for at, _ in cuts(x, 1.25)] == detections(drift.ADWIN(delta=0.002), x)
