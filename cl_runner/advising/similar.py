"""How far apart two streams are, by what is known of them before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cl_runner.advising.tables import Row

# What a factor of ten between two streams counts, set before anything was predicted: the number of
# tasks says most about what can be forgotten, the others half as much.
FACTORS = {
    "num_tasks": 1.0,
    "classes_per_task": 0.5,
    "classes": 0.5,
    "samples_per_task": 0.5,
    "steps_per_task": 0.5,
    "input_size": 0.5,
    "largest_to_smallest_class": 0.5,
}
# What it counts that two streams differ in a word.
WORDS = {"change": 1.0, "images": 0.5, "boundaries": 0.5, "data": 0.5}


def distance(a: Row, b: Row) -> float:
    """The sum of what two streams' features differ by: 1 is another kind of change, say.

    sum_f w_f |log10(a_f / b_f)| over the numbers, and w_f for each word that differs. Infinite
    between scenarios, in which the same numbers mean something else.
    """
    if a["scenario"] != b["scenario"]:
        return math.inf
    numbers = sum(w * abs(math.log10(a[f] / b[f])) for f, w in FACTORS.items())
    return numbers + sum(w for f, w in WORDS.items() if a[f] != b[f])


def nearest(stream: Row, others: Sequence[Row], k: int) -> list[tuple[Row, float]]:
    """The k nearest of the others and their distances, the nearest first; none of no scenario."""
    found = [(other, distance(stream, other)) for other in others]
    found = [pair for pair in found if math.isfinite(pair[1])]
    return sorted(found, key=lambda pair: (pair[1], pair[0]["stream"]))[:k]


def relation(stream: Row, others: Sequence[Row]) -> str:
    """What the nearest relative among others shares with a stream in any scenario.

    "kind": its data set and kind of benchmark; "data": the data set; "nothing": neither. Data of
    the user's own are no other stream's.
    """
    same = [other for other in others if other["data"] == stream["data"]]
    if not same:
        return "nothing"
    return "kind" if any(other["kind"] == stream["kind"] for other in same) else "data"
