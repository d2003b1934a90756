"""What strategies reach on a stream, by the streams that are nearest to it, with intervals.

The prediction is a weighted mean over the k nearest streams of the same scenario, of the logit of
accuracy above chance, a = (ACC - c) / (1 - c) with c = 1 / classes among which a test sample is
told. Of a strategy that some of these streams lack it is the mean of what the strategy has more
than the level of a stream, added to the mean level. An interval is that mean +- q s, where s says
how much the k nearest differ and how far they are, and q is such that four fifths of the accuracies
of streams that were left out of the table lay within theirs (split conformal prediction: Lei et al.
2018, arXiv 1604.04173, with left-out streams in the place of held-out samples). No torch in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cl_runner.advising.facts import KEEPS
from cl_runner.advising.similar import nearest, relation
from cl_runner.advising.tables import Row

K = 5  # streams that a prediction rests on; see docs/advise.md for what others would have given
SOFT = 0.25  # added to a distance before it divides
FLOOR = 0.3  # of the spread among the nearest, in logits
SHARE = 0.8  # of intervals that are to hold the truth
FEWEST = 2  # of the k nearest streams that must have a strategy
ROOM = 0.03  # of ACC between naive and joint, below which a position between them says nothing
# Every stream of the table has an accuracy of these: their mean is its level.
CORE = ("naive", "joint", "er", "er_ace", "si", "lwf", "agem", "ncm", "slda", "ridge")
BOUNDS = ("joint", "cumulative")  # they keep or need all data


@dataclass(frozen=True)
class Table:
    """The streams, and what was measured on each: (stream, scenario) -> strategy -> row."""

    streams: Sequence[Row]
    results: Mapping[tuple[str, str], Mapping[str, Row]]

    def of(self, stream: Row) -> Mapping[str, Row]:
        """What was measured on a stream: strategy -> row."""
        return self.results.get((stream["stream"], stream["scenario"]), {})

    def without(self, gone: Iterable[Row]) -> Table:
        """The table that lacks some streams, in every scenario."""
        names = {(row["stream"], row["scenario"]) for row in gone}
        left = [s for s in self.streams if (s["stream"], s["scenario"]) not in names]
        return Table(left, self.results)


@dataclass(frozen=True)
class Expected:
    """What is expected of a strategy on a stream."""

    strategy: str
    score: float  # logit of accuracy above chance
    spread: float  # s of its interval, in logits
    rank: float  # weighted mean of its rank among the strategies, from 0, the best, to 1
    position: float | None  # between naive, 0, and joint, 1; None: nowhere room between them
    streams: int  # among the nearest that have it
    diverged: int  # of these, those on which a seed diverged
    forgetting: float | None
    flops: float | None  # relative to naive's


@dataclass(frozen=True)
class Case:
    """A prediction for a stream that was left out, and what was measured there."""

    stream: Row
    relation: str  # to the streams that were left in
    distance: float  # of the nearest of these
    expected: Mapping[str, Expected]
    truth: Mapping[str, Row]
    near: Sequence[str] = field(default=())


def table_of(streams: Sequence[Row], results: Sequence[Row]) -> Table:
    """A table of the rows of the two files, of those streams on which all of CORE was run.

    A strategy of CORE that a scenario excludes is on none of its streams.
    """
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in results:
        found.setdefault((row["stream"], row["scenario"]), {})[row["strategy"]] = row
    table = Table(streams, found)

    def is_whole(stream: Row) -> bool:
        return all(table.of(stream).get(name, {}).get("ACC") is not None for name in CORE)

    return Table([s for s in streams if is_whole(s)], found)


def chance(stream: Row) -> float:
    """The accuracy of a guess: one of the classes among which a test sample is told."""
    several = stream["classes"] if stream["scenario"] == "class" else stream["classes_per_task"]
    return 1 / max(float(several), 2.0)


def score(acc: float, c: float) -> float:
    """The logit of accuracy above chance c, which is kept within 0.01 and 0.99."""
    above = min(max((acc - c) / (1 - c), 0.01), 0.99)
    return math.log(above / (1 - above))


def accuracy(of: float, c: float) -> float:
    """The accuracy of which `of` is the score, chance being c."""
    return c + (1 - c) / (1 + math.exp(-min(max(of, -50.0), 50.0)))


def expected(stream: Row, table: Table, k: int = K) -> tuple[dict[str, Expected], float]:
    """What every strategy is expected to reach, and the distance of the nearest stream.

    A strategy that fewer than FEWEST of the k nearest streams have is left out.
    """
    near = nearest(stream, table.streams, k)
    if not near:
        return {}, math.inf
    names = list(dict.fromkeys(name for other, _ in near for name in table.of(other)))
    found = {name: of_strategy(name, near, table) for name in names}
    return {name: e for name, e in found.items() if e is not None}, near[0][1]


def of_strategy(name: str, near: Sequence[tuple[Row, float]], table: Table) -> Expected | None:
    """What a strategy is expected to reach by the nearest streams; None: too few have it."""
    have = [(s, d, table.of(s)[name]) for s, d in near if name in table.of(s)]
    rows = [(s, d, row) for s, d, row in have if row["ACC"] is not None]
    if len(rows) < FEWEST:
        return None
    weights = [1 / (d + SOFT) for _, d, _ in rows]
    scores = [score(row["ACC"], chance(s)) for s, _, row in rows]
    mean = weighted(scores, weights)
    variance = weighted([(x - mean) ** 2 for x in scores], weights)
    everywhere = weighted([level(s, table) for s, _ in near], [1 / (d + SOFT) for _, d in near])
    mean += everywhere - weighted([level(s, table) for s, _, _ in rows], weights)
    spread = math.sqrt(variance + FLOOR**2) * (1 + rows[0][1])

    def over(values: Sequence[float | None]) -> float | None:
        there = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
        return weighted(*zip(*there, strict=True)) if there else None

    rank = over([rank_of(name, table.of(s)) for s, _, _ in rows])
    return Expected(
        strategy=name,
        score=mean,
        spread=spread,
        rank=1.0 if rank is None else rank,
        position=over([position(name, table.of(s)) for s, _, _ in rows]),
        streams=len(rows),
        diverged=sum(row["status"] == "diverged" for _, _, row in have),
        forgetting=over([row["forgetting"] for _, _, row in rows]),
        flops=over([ratio(row["flops"], table.of(s)["naive"]["flops"]) for s, _, row in rows]),
    )


def level(stream: Row, table: Table) -> float:
    """The mean score of CORE on a stream."""
    rows, c = table.of(stream), chance(stream)
    return sum(score(rows[name]["ACC"], c) for name in CORE) / len(CORE)


def kept(name: str, stream: Row, table: Table, naive: float | None) -> float | None:
    """The bytes that a strategy keeps relative to naive's: on the stream of the nearest sizes.

    Whatever is in the data: what is kept follows from the numbers of inputs, tasks and classes.
    naive: naive's bytes here, None if they are not known. What keeps no network has as many bytes
    as there, of whatever size naive's network is.
    """
    sizes = {"input_size": 1.0, "num_tasks": 0.5, "classes": 0.5}

    def far(other: Row) -> float:
        return sum(w * abs(math.log(other[size] / stream[size])) for size, w in sizes.items())

    rows = [(far(s), table.of(s)) for s in table.streams if s["scenario"] == stream["scenario"]]
    alone = KEEPS[name] == "statistics" and naive is not None
    needed = (name,) if alone else (name, "naive")
    there = [(d, of) for d, of in rows if all(of.get(n, {}).get("kept_bytes") for n in needed)]
    if not there:
        return None
    of = min(there, key=lambda pair: pair[0])[1]
    return ratio(of[name]["kept_bytes"], naive if alone else of["naive"]["kept_bytes"])


def ratio(own: float | None, naive: float | None) -> float | None:
    """How many times naive's."""
    return None if own is None or not naive else own / naive


def weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted mean."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def position(name: str, rows: Mapping[str, Row]) -> float | None:
    """(ACC - naive) / (joint - naive), within -0.5 and 1.5; None where there is no room between."""
    low, high, own = (rows[n]["ACC"] for n in ("naive", "joint", name))
    if own is None or high - low < ROOM:
        return None
    return float(min(max((own - low) / (high - low), -0.5), 1.5))


def rank_of(name: str, rows: Mapping[str, Row]) -> float | None:
    """The share of the other strategies on a stream that are better, from 0 to 1, ties half."""
    own = rows[name]["ACC"]
    others = [r["ACC"] for n, r in rows.items() if n != name and n not in BOUNDS and r["ACC"]]
    if own is None or not others:
        return None
    return float(sum((o > own) + (o == own) / 2 for o in others) / len(others))


def left_out(table: Table, level: str, k: int = K) -> list[Case]:
    """A case for each stream, predicted without it and, by `level`, without its relatives.

    "kind": each stream alone is left out, of those that have relatives of their data and kind then;
    "data": all streams of its data and kind; "nothing": all streams of its data.
    """
    cases = []
    for stream in table.streams:
        gone = [s for s in table.streams if is_gone(s, stream, level)]
        rest = table.without(gone)
        if level == "kind" and relation(stream, rest.streams) != "kind":
            continue
        found, far = expected(stream, rest, k)
        near = [s["stream"] for s, _ in nearest(stream, rest.streams, k)]
        own = relation(stream, rest.streams)
        cases.append(Case(stream, own, far, found, table.of(stream), near))
    return cases


def is_gone(other: Row, stream: Row, level: str) -> bool:
    """Whether a stream leaves the table together with another one."""
    if level == "kind":
        return bool(other["stream"] == stream["stream"])
    same = other["data"] == stream["data"]
    return same and (level == "nothing" or other["kind"] == stream["kind"])


def errors(cases: Sequence[Case]) -> list[float]:
    """|truth - expectation| / spread of every strategy in every case."""
    return [
        abs(score(row["ACC"], chance(case.stream)) - case.expected[name].score)
        / case.expected[name].spread
        for case in cases
        for name, row in case.truth.items()
        if name in case.expected and row["ACC"] is not None
    ]


def factor(values: Sequence[float], share: float = SHARE) -> float:
    """The q of an interval +- q s: of n errors the ceil((n + 1) share)-th; infinite for too few."""
    place = math.ceil((len(values) + 1) * share)
    return sorted(values)[place - 1] if place <= len(values) else math.inf


def interval(of: Expected, q: float, c: float) -> tuple[float, float]:
    """The ends of an interval, as accuracies."""
    reach = q * of.spread
    return accuracy(of.score - reach, c), accuracy(of.score + reach, c)
