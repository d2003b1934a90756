"""Which strategies to take for a stream: the ranked lines, and how good such advice has been."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cl_runner.advising import predict
from cl_runner.advising.facts import KEEPS, STORES_SAMPLES, mlp_bytes, mlp_flops
from cl_runner.advising.predict import BOUNDS, Case, Expected, Table
from cl_runner.advising.similar import FACTORS, nearest, relation
from cl_runner.advising.tables import Row

# The 90 % quantile of Student's t by degrees of freedom: ends of 80 % intervals of few seeds.
STUDENT = {1: 3.078, 2: 1.886, 3: 1.638, 4: 1.533}
IDENTITY = ("scenario", "kind", "data", "boundaries")  # words in which a stream is itself
LEVELS = ("kind", "data", "nothing")  # see predict.left_out
ENOUGH = 5  # left-out streams, for a width and a farthest distance
CLOSE = 1.02  # and the factor within which its numbers are the same


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a strategy must do without, and what naive fine-tuning takes on the stream."""

    boundaries: str = "known"  # known | detected | none, as training.boundaries
    privacy: bool = False  # no stored samples
    most_bytes: int | None = None  # budget.bytes
    most_flops: float | None = None  # budget.flops
    naive_bytes: float | None = None  # None: not known, of another network than the MLP
    naive_flops: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A strategy in the table of advice; None: not known."""

    strategy: str
    order: float  # the smaller, the better
    acc: float | None
    low: float | None
    high: float | None
    gain: float | None  # position between naive, 0, and joint, 1
    forgetting: float | None
    kept: float | None  # times naive's bytes
    flops: float | None  # times naive's
    streams: int
    diverged: int
    borders: bool = False  # must be told where tasks begin


@dataclass(frozen=True, kw_only=True)
class Advice:
    """All that is said about a stream."""

    stream: Row
    asked: Asked
    lines: Sequence[Line]  # the best first
    bounds: Sequence[Line]  # what keeps or needs all data
    near: Sequence[tuple[Row, float]]
    shares: str  # with the nearest relative: "kind", "data" or "nothing", see similar.relation
    measured: Row | None  # the stream itself, if the table has it
    unlike: bool  # farther from all in the table than any stream that was left out
    farthest: float  # of those that were left out
    left: Mapping[str, Sequence[str]]  # why -> the strategies that are left out
    lost: Sequence[float]  # ACC that the first of the order lost where a stream was left out


def first(of: Expected) -> float:
    """What strategies are ordered by, the best first: see docs/advise.md for other orders."""
    return -of.score


def naive_of(
    stream: Row, hidden: Sequence[int] | None, epochs: float
) -> tuple[float | None, float | None]:
    """Bytes and FLOPs of naive fine-tuning with an MLP; None for another network."""
    if hidden is None:
        return None, None
    return mlp_bytes(stream, hidden), mlp_flops(stream, hidden, epochs)


def advise(stream: Row, table: Table, asked: Asked) -> Advice:
    """The advice on a stream.

    Its intervals are those of streams that shared as little with the rest of the table as this one.
    """
    itself = next((s for s in table.streams if is_same(s, stream)), None)
    everywhere = calibrating(stream, table)
    cases = [case for case in everywhere if case.stream["scenario"] == stream["scenario"]]
    near = nearest(stream, table.streams, predict.K)
    farthest = max((case.distance for case in cases), default=0.0)
    unlike = itself is None and (not near or near[0][1] > farthest)
    found, _ = predict.expected(stream, table, len(table.streams) if unlike else predict.K)
    if itself is not None:
        rows = table.of(itself)
        lines = [of_measured(name, rows) for name in rows if rows[name]["ACC"] is not None]
    else:
        q, c = predict.factor(predict.errors(everywhere)), predict.chance(stream)
        lines = [of_ranks(e) if unlike else of_expected(e, q, c) for e in found.values()]
    lines = [filled(n, found.get(n.strategy), stream, table, asked.naive_bytes) for n in lines]
    told = needing(table, stream["scenario"], "none")
    lines = [replace(line, borders=line.strategy in told) for line in lines]
    left = excluded(lines, asked, needing(table, stream["scenario"], asked.boundaries))
    gone = {name for names in left.values() for name in names}
    own = [line for line in lines if line.strategy not in {*BOUNDS, *gone}]
    return Advice(
        stream=stream,
        asked=asked,
        lines=sorted(own, key=lambda line: (line.order, line.strategy)),
        bounds=[line for line in lines if line.strategy in BOUNDS],
        near=near,
        shares=relation(stream, table.streams),
        measured=itself,
        unlike=unlike,
        farthest=farthest,
        left=left,
        lost=[] if itself is not None else lost(cases, {line.strategy for line in own}),
    )


def calibrating(stream: Row, table: Table) -> list[Case]:
    """The left-out streams, of all scenarios, that shared as little with the rest of the table.

    Where those of the stream's own scenario are too few, they shared less.
    """
    cases: list[Case] = []
    for level in LEVELS[LEVELS.index(relation(stream, table.streams)) :]:
        cases = predict.left_out(table, level)
        if sum(case.stream["scenario"] == stream["scenario"] for case in cases) >= ENOUGH:
            break
    return cases


def is_same(a: Row, b: Row) -> bool:
    """Whether two streams are one: alike in words, and in numbers but for a draw of samples."""
    close = all(max(a[f] / b[f], b[f] / a[f]) < CLOSE for f in FACTORS if f != SPREAD)
    return close and all(a[word] == b[word] for word in IDENTITY) and is_same_tail(a, b)


SPREAD = "largest_to_smallest_class"  # which follows from the draw where samples are few


def is_same_tail(a: Row, b: Row) -> bool:
    """Whether both have a long tail of classes, or neither."""
    return bool(max(a[SPREAD] / b[SPREAD], b[SPREAD] / a[SPREAD]) < 2)


def of_measured(name: str, rows: Mapping[str, Row]) -> Line:
    """A strategy on a stream that the table has: the interval of the mean over seeds."""
    row, n = rows[name], rows[name]["n"]
    reach = None
    if row["ACC_sd"] is not None and n > 1:
        reach = STUDENT[min(n - 1, max(STUDENT))] * row["ACC_sd"] / math.sqrt(n)
    return Line(
        strategy=name,
        order=-row["ACC"],
        acc=row["ACC"],
        low=None if reach is None else max(0.0, row["ACC"] - reach),
        high=None if reach is None else min(1.0, row["ACC"] + reach),
        gain=predict.position(name, rows),
        forgetting=row["forgetting"],
        kept=predict.ratio(row["kept_bytes"], rows["naive"]["kept_bytes"]),
        flops=predict.ratio(row["flops"], rows["naive"]["flops"]),
        streams=1,
        diverged=int(row["status"] == "diverged"),
    )


def of_expected(of: Expected, q: float, c: float) -> Line:
    """A strategy on a stream that is like others."""
    low, high = predict.interval(of, q, c)
    acc = predict.accuracy(of.score, c)
    return replace(
        of_ranks(of),
        order=first(of),
        acc=acc,
        low=low,
        high=high,
        gain=of.position,
        forgetting=of.forgetting,
    )


def filled(line: Line, of: Expected | None, stream: Row, table: Table, naive: float | None) -> Line:
    """A line with bytes and FLOPs by other streams, where it has none by its own."""
    own = predict.kept(line.strategy, stream, table, naive) if line.kept is None else line.kept
    flops = line.flops if line.flops is not None or of is None else of.flops
    return replace(line, kept=own, flops=flops)


def of_ranks(of: Expected) -> Line:
    """A strategy on a stream that is like no other: its place on all, and no accuracy."""
    return Line(
        strategy=of.strategy,
        order=of.rank,
        acc=None,
        low=None,
        high=None,
        gain=None,
        forgetting=None,
        kept=None,
        flops=of.flops,
        streams=of.streams,
        diverged=of.diverged,
    )


def needing(table: Table, scenario: str, boundaries: str) -> set[str]:
    """The strategies that need more than they are told of the borders between tasks."""
    column = {"known": "", "detected": "needs_tasks", "none": "needs_borders"}[boundaries]
    rows = (r for (_, s), of in table.results.items() if s == scenario for r in of.values())
    return {row["strategy"] for row in rows if column and row[column]}


def excluded(lines: Sequence[Line], asked: Asked, borders: set[str]) -> dict[str, list[str]]:
    """The strategies that what is asked for leaves out, by why."""

    def over(limit: float | None, times: float | None, naive: float | None) -> bool:
        return None not in (limit, times, naive) and times * naive > limit  # type: ignore[operator]

    reasons: dict[str, Callable[[Line], bool]] = {
        "store samples": lambda n: asked.privacy and KEEPS[n.strategy] in STORES_SAMPLES,
        "need the borders between tasks": lambda n: n.strategy in borders,
        "keep more than budget.bytes": lambda n: over(asked.most_bytes, n.kept, asked.naive_bytes),
        "take more than budget.flops": lambda n: over(asked.most_flops, n.flops, asked.naive_flops),
    }
    own = [line for line in lines if line.strategy not in BOUNDS]
    found = {why: [n.strategy for n in own if is_out(n)] for why, is_out in reasons.items()}
    return {why: names for why, names in found.items() if names}


def lost(cases: Sequence[Case], allowed: set[str]) -> list[float]:
    """What the first of the order had less than the best of those allowed, by left-out stream."""
    found = []
    for case in cases:
        c = predict.chance(case.stream)
        acc = {n: c if r["ACC"] is None else r["ACC"] for n, r in case.truth.items()}
        there = [e for n, e in case.expected.items() if n in allowed and n in acc]
        if there:
            taken = min(there, key=lambda e: (first(e), e.strategy)).strategy
            found.append(max(acc[e.strategy] for e in there) - acc[taken])
    return found
