"""Detectors of a rise in a series of numbers, as pure functions of a state of fixed length.

A state is a list of floats, so that it can be saved beside a run's tensors and the run goes on from
it bit for bit. (The detectors of river, against which these are tested, are objects that only
pickle saves.) A call takes the coming numbers one after another, up to the first that is an alarm:
(state, *numbers) -> (new state, whether there was one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

State = list[float]
BURN_IN = 30  # numbers that page_hinkley only learns the mean and the deviation from
LARGEST_DEVIATION = 5.0  # in standard deviations: no single number makes an alarm
BUCKETS = 5  # of each size, in adwin's window; one more makes two of them one of twice the size
ROWS = 16  # sizes of buckets: the window has room for BUCKETS * 2^ROWS numbers
SHORTEST = 5  # numbers on either side of a cut
WIDTH = 1 + 2 * (BUCKETS + 1)  # of a row of buckets in the state


# Page and Hinkley's test.


def page_hinkley_start() -> State:
    """The state of `page_hinkley` before the first number: how many, mean, variance, sum."""
    return [0.0, 0.0, 0.0, 0.0]


def page_hinkley(
    state: Sequence[float], *numbers: float, delta: float, threshold: float, window: float
) -> tuple[State, bool]:
    """Page 1954 (Biometrika 41, 100) and Hinkley 1971 (Biometrika 58, 509), for a rise of the mean.

        g <- max(0, g + z - delta),   alarm if g > threshold

    which is the sum of z - delta less the smallest that it ever was. z is how far x lies above the
    running mean, in running standard deviations, within LARGEST_DEVIATION of 0 and 0 for the first
    BURN_IN numbers: so delta and threshold need not know the scale of x. Mean and variance are
    those of about the last `window` numbers (of all, if it is infinite).
    """
    n, mean, variance, g = state
    for x in numbers:
        if n >= BURN_IN:
            z = (x - mean) / math.sqrt(variance) if variance > 0 else 0.0
            g = page(g, max(-LARGEST_DEVIATION, min(z, LARGEST_DEVIATION)) - delta)
        n, mean, variance = running(n, mean, variance, x, window)
        if g > threshold:
            return [n, mean, variance, g], True
    return [n, mean, variance, g], False


def page_hinkley_whole(state: Sequence[float]) -> bool:
    """Whether a list is a state of `page_hinkley`."""
    n, _, variance, g = state
    return all(map(math.isfinite, state)) and n >= 0 and variance >= 0 and g >= 0


def page(g: float, increment: float) -> float:
    """The sum of the increments so far less the smallest that it ever was, one increment later."""
    return max(0.0, g + increment)


def running(
    n: float, mean: float, variance: float, x: float, window: float
) -> tuple[float, float, float]:
    """Number, mean and variance with x as the next number, of weight 1 / min(number, window)."""
    n += 1
    weight = 1 / min(n, window)
    off = x - mean
    return n, mean + weight * off, (1 - weight) * (variance + weight * off * off)


# Adaptive windowing.


def adwin_start() -> State:
    """The state of `adwin` before the first number.

    How many came; the window's width, total and squared deviations; then for each size 2^row of
    buckets their number, and total and squared deviations of each, the oldest first.
    """
    return [0.0] * (4 + ROWS * WIDTH)


def adwin(
    state: Sequence[float], *numbers: float, confidence: float, rise: float, clock: int
) -> tuple[State, bool]:
    """Bifet & Gavalda 2007 (SIAM Data Mining, 443), algorithm ADWIN2: a window that forgets.

    The window is cut where the means of its two parts, of n0 and n1 numbers, differ by more than

        sqrt(2 / m  v  d) + 2 / (3 m)  d,   d = ln(2 ln(n) / confidence),  1/m = 1/n0 + 1/n1

    v being the window's variance; the older part is dropped, bucket by bucket. As in river every
    n_i is taken to be less by SHORTEST - 1, and a cut is looked for with every `clock`-th number.
    It is an alarm if the newer part's mean is higher by more than `rise` standard deviations
    within the parts. A smaller rise only cuts, as a fall does: a window of thousands shows the
    least of changes beyond doubt, however small `confidence` is.
    """
    s = list(state)
    for x in numbers:
        insert(s, x)
        s[0] += 1
        alarm = False
        if s[0] % clock == 0:
            while (higher := cut(s, confidence, rise)) is not None:
                alarm = alarm or higher
                drop(s)
        if alarm:
            return s, True
    return s, False


def adwin_whole(state: Sequence[float]) -> bool:
    """Whether a list is a state of `adwin`."""
    counts = state[4::WIDTH]
    buckets = all(count in range(BUCKETS + 1) for count in counts)
    width = sum(count * 2.0**row for row, count in enumerate(counts))
    return all(map(math.isfinite, state)) and buckets and state[1] == width and state[3] >= 0


def insert(s: State, x: float) -> None:
    """Take a number into the window, in place, and join buckets where there is one too many."""
    if s[1]:
        s[3] += s[1] * (x - s[2] / s[1]) ** 2 / (s[1] + 1)
    s[1] += 1
    s[2] += x
    total, squares = x, 0.0
    for row in range(ROWS):
        at = 4 + row * WIDTH
        count = int(s[at])
        s[at + 1 + 2 * count : at + 3 + 2 * count] = [total, squares]
        s[at] = count + 1
        if count < BUCKETS:
            return
        size = 2.0**row
        a, va, b, vb = s[at + 1 : at + 5]
        total, squares = a + b, va + vb + (a - b) ** 2 / (2 * size)
        s[at + 1 : at + WIDTH] = [*s[at + 5 : at + WIDTH], 0.0, 0.0, 0.0, 0.0]
        s[at] = count - 1
    # The last row is full: what it would hand on is forgotten, with all that stands for it.
    s[1] -= 2.0**ROWS
    s[2] -= total
    s[3] = max(0.0, s[3] - squares)


def cut(s: Sequence[float], confidence: float, rise: float) -> bool | None:
    """Whether the mean rises by more than `rise` at the first place to cut; None: there is none.

    The variance within the parts is what the difference of their means leaves of the window's.
    """
    n, total = s[1], s[2]
    if n < 2 * SHORTEST:
        return None
    d, v = math.log(2 * math.log(n) / confidence), s[3] / n
    n0 = u0 = 0.0
    for row in reversed(range(ROWS)):
        at = 4 + row * WIDTH
        for i in range(int(s[at])):
            n0 += 2.0**row
            u0 += s[at + 1 + 2 * i]
            n1, u1 = n - n0, total - u0
            if n0 < SHORTEST or n1 < SHORTEST:
                continue
            m = 1 / (n0 - SHORTEST + 1) + 1 / (n1 - SHORTEST + 1)
            difference = u1 / n1 - u0 / n0
            if abs(difference) > math.sqrt(2 * m * v * d) + 2 / 3 * d * m:
                within = max(0.0, v - n0 * n1 * (difference / n) ** 2)
                return difference > rise * math.sqrt(within)
    return None


def drop(s: State) -> None:
    """Forget the oldest bucket, in place."""
    row = max(r for r in range(ROWS) if s[4 + r * WIDTH])
    at, size = 4 + row * WIDTH, 2.0**row
    total, squares = s[at + 1 : at + 3]
    s[1] -= size
    s[2] -= total
    s[3] -= squares + size * s[1] * (total / size - s[2] / s[1]) ** 2 / (size + s[1])
    s[3] = max(s[3], 0.0)
    s[at + 1 : at + WIDTH] = [*s[at + 3 : at + WIDTH], 0.0, 0.0]
    s[at] -= 1


# What became of the borders.


def judged(borders: Sequence[int], alarms: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each border and each alarm that found none: border, alarm, delay and kind.

    The first alarm after a border and not after the next has `found` it, with the steps between
    them as delay; the others are `false`. A border without one is `missed`.
    """
    rows: list[dict[str, Any]] = []
    left = list(alarms)
    for border, after in pairwise([*borders, math.inf]):
        own = [a for a in left if border < a <= after]
        delay = own[0] - border if own else None
        kind = "found" if own else "missed"
        rows.append(
            {"border": border, "alarm": own[0] if own else None, "delay": delay, "kind": kind}
        )
        left = [a for a in left if not own or a != own[0]]
    rows += [{"border": None, "alarm": a, "delay": None, "kind": "false"} for a in left]
    return sorted(rows, key=lambda row: row["border"] if row["alarm"] is None else row["alarm"])
