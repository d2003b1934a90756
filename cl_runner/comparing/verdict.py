"""The answer in two sentences per stream: who is best and how surely, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

from cl_runner.comparing.names import listed
from cl_runner.comparing.statistics import Paired
from cl_runner.comparing.table import (
    BOUNDS,
    LOWER,
    UPPER,
    Comparison,
    Group,
    StreamGroup,
    candidates,
    counterpart,
)
from cl_runner.results.columns import column_of, is_cost, kept_bytes, larger_is_better, shown

PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}
PRICES = {"flops": "FLOPs", "seconds": "time"}  # of training; the first that was measured counts


def verdict(of: Comparison | StreamGroup) -> list[str]:
    """Two sentences on each stream, named if there are several: what was reached, at what price."""
    streams = [of] if isinstance(of, StreamGroup) else of.streams
    found = []
    for stream in streams:
        title = f"{stream.title}: " if len(streams) > 1 else ""
        best = next((g for g in stream.groups if g.best), None)
        if best is None:
            found.append(f"{title}No complete run has {words(stream.metric)}{instead(stream)}.")
        else:
            found += [f"{title}{outcome(best, stream)}.", f"{price(best, stream)}."]
    return found


def instead(stream: StreamGroup) -> str:
    """What there is to ask for instead, where runs have other metrics."""
    there = [n for n in shown("metric") if any(g.values.get(n) for g in stream.groups)]
    return f"; --metric can be {listed(there)}" if there else ""


# Who is best, by how much, how surely.


def outcome(best: Group, stream: StreamGroup) -> str:
    """The first sentence, without its full stop."""
    others = [g for g in candidates(stream.groups, stream.metric) if g is not best]
    if best.strategy in BOUNDS:
        names = listed([g.name for g in (best, *others)])
        return f"There are only bounds, {names}: {level(best, stream, best.name)}"
    if not others:
        return f"{level(best, stream, best.name)}; there is no other strategy to compare it with"
    text, shown = comparison(best, others, stream)
    low = counterpart(best, LOWER, stream)
    naive = None if low is None or low in [best, *shown] else low.mean(stream.metric)
    if naive is None:
        return text
    verb = "naive reaches" if stream.metric == "ACC" else "naive's is"
    return f"{text}; {verb} {amount(naive, stream.metric)}"


def comparison(
    best: Group, others: Sequence[Group], stream: StreamGroup
) -> tuple[str, list[Group]]:
    """How surely the best is the best, and the groups whose numbers are given."""
    alike = [g for g in others if g.distinguishable == "no"]
    unsure = [g for g in others if g.distinguishable in {"too_few", "untested"}]
    differ = [g for g in others if g.distinguishable == "yes"]
    contested = [g for g in differ if not behind(g)]  # the means are not of the shared seeds alone
    runner = [g for g in differ if behind(g)][:1]
    if not (alike or unsure or contested):
        return f"{best.name} is best: {level(best, stream)} ({lead(runner[0], stream)})", runner
    subject = best.name if alike else "it"
    if alike:
        names = listed([best.name, *(g.name for g in alike)])
        text = f"{names} cannot be told apart: {level(best, stream, best.name)}"
        text += f", {gap(alike, stream)}"
    else:
        most = "highest" if larger_is_better(stream.metric) else "lowest"
        text = f"{best.name} has the {most} {words(stream.metric)}: {level(best, stream)}"
    if unsure:
        text += f"; {too_few(best, unsure, subject)}"
    if contested:
        text += f"; where both have a seed, {listed([g.name for g in contested])} did better"
    if runner:
        text += f"; {subject} is {lead(runner[0], stream)}"
    return text, [*runner, *(alike if len(alike) == 1 else [])]


def level(group: Group, stream: StreamGroup, subject: str = "") -> str:
    """What the group reached, beside joint if that is there; subject: a name instead of `it`."""
    metric, mean = stream.metric, group.mean(stream.metric)
    assert mean is not None
    bound = None if group.strategy in BOUNDS else counterpart(group, UPPER, stream)
    top = None if bound is None else bound.mean(metric)
    own, joint = amount(mean, metric), "" if top is None else amount(top, metric)
    if metric != "ACC":
        whose = f"{subject}'s" if subject else "its"
        return f"{whose} {words(metric)} is {own}" + (f", joint's {joint}" if joint else "")
    subject = subject or "it"
    if top is not None and mean <= top:
        return f"{subject} keeps {own} of joint's {joint}"
    return f"{subject} reaches {own}" + (f", joint {joint}" if joint else "")


def lead(other: Group, stream: StreamGroup) -> str:
    """`ahead of EWC by 0.65, p < 0.001, 6 seeds`."""
    test = tested(other)
    by = difference(test, stream.metric)
    return f"ahead of {other.name} by {by}, {p_value([test])}, {seeds([test])}"


def gap(alike: Sequence[Group], stream: StreamGroup) -> str:
    """How far those that cannot be told from the best are from it."""
    tests = [tested(g) for g in alike]
    how = f"({p_value(tests)}, {seeds(tests)})"
    if all(t.difference == 0 for t in tests):
        return f"as {listed([g.name for g in alike])} in every seed {how}"
    far = max(alike, key=lambda g: abs(tested(g).difference or 0.0))
    by = difference(tested(far), stream.metric)
    if len(alike) > 1:
        return f"the others differ from it by {by} at most {how}"
    return f"{far.name} is {by} {'behind' if behind(far) else 'ahead'} {how}"


def too_few(best: Group, unsure: Sequence[Group], subject: str) -> str:
    """Why the tests could not tell, and how many seeds could."""
    names, tests = listed([g.name for g in unsure]), [tested(g) for g in unsure]
    needed = [t.seeds_needed for t in tests if t.seeds_needed is not None]
    if needed:
        have = f"{seeds(tests)} are too few to tell {subject} from {names}"
        return f"{have}, {max(needed)} would show a large difference"
    single = all(len(g.runs) == 1 for g in (best, *unsure))
    why = "one seed each" if single else "too few shared seeds"
    return f"{why}: no test can tell {subject} from {names}"


def behind(group: Group) -> bool:
    """Whether the best is better on the seeds that both have."""
    return (tested(group).difference or 0.0) < 0


def tested(group: Group) -> Paired:
    """The group's test against the best."""
    assert group.versus_best is not None
    return group.versus_best


def difference(test: Paired, metric: str) -> str:
    """The size of a mean difference."""
    size = abs(test.difference or 0.0)
    small = not is_cost(metric) and 0 < size < 0.0005
    return "less than 0.001" if small else amount(size, metric)


def p_value(tests: Sequence[Paired]) -> str:
    """The corrected p-value; of several the smallest."""
    p = min(t.p_holm for t in tests if t.p_holm is not None)
    if p < 0.001:
        return "p < 0.001"
    return f"p {'=' if len(tests) == 1 or p == 1 else '>='} {p:.2g}"


def seeds(tests: Sequence[Paired]) -> str:
    """`6 seeds`, or `3 to 6 seeds`."""
    low, high = min(t.n for t in tests), max(t.n for t in tests)
    return f"{low} to {high} seeds" if low < high else f"{high} seed{'' if high == 1 else 's'}"


# What it forgets and costs.


def price(best: Group, stream: StreamGroup) -> str:
    """The second sentence, without its full stop."""
    parts = [part for part in (memory(best, stream), training(best, stream), kept(best)) if part]
    what = " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    text = f"{best.name} {what}" if parts else f"What {best.name} costs was not measured"
    lost = {g.name: len(g.incomplete) for g in stream.groups if g.incomplete}
    if not lost:
        return text
    n = sum(lost.values())
    return f"{text}; {n} run{'s are' if n > 1 else ' is'} not complete ({listed([*lost])})"


def memory(best: Group, stream: StreamGroup) -> str:
    """What the best forgets, beside naive; its ACC where forgetting is what was asked for."""
    name = "ACC" if stream.metric == "forgetting" else "forgetting"
    own, low = best.mean(name), counterpart(best, LOWER, stream)
    if own is None:
        return ""
    naive = None if low is None or low is best else low.mean(name)
    beside = "" if naive is None else f" (naive {amount(naive, name)})"
    if name == "ACC":
        return f"reaches an ACC of {amount(own, name)}{beside}"
    return f"forgets {amount(own, name) if own > 0 else 'nothing'}{beside}"


def training(best: Group, stream: StreamGroup) -> str:
    """What training takes, as multiples of naive's and joint's."""
    name = next((name for name in PRICES if best.mean(name)), None)
    own = None if name is None else best.mean(name)
    if name is None or own is None:
        return ""
    ratios: list[str] = []
    for strategy in (LOWER, UPPER):
        other = counterpart(best, strategy, stream)
        base = None if other is None or other is best else other.mean(name)
        if base:
            what = "" if ratios else f" {PRICES[name]}"
            ratios.append(f"{times(own / base)} times {strategy}'s{what}")
    return f"takes {' and '.join(ratios) or amount(own, name)}"


def kept(best: Group) -> str:
    """What the strategy stores besides the network."""
    what = besides(best)
    return "" if what is None else f"keeps {what} besides the network"


def besides(group: Group) -> str | None:
    """The bytes of a buffer and of all else that a strategy keeps; None: not measured."""
    sizes = [group.mean(name) for name in kept_bytes() if name != "parameter_bytes"]
    there = [size for size in sizes if size is not None]
    if not there:
        return None
    return amount(sum(there), "memory_bytes") if sum(there) else "nothing"


# Numbers.


def words(metric: str) -> str:
    """A column's name as words."""
    return metric.replace("_", " ")


def amount(value: float, metric: str) -> str:
    """A metric's number with two digits after the point, three if it is small; costs in a unit."""
    column = column_of(metric)
    if column is None or column.kind != "cost":
        digits = 2 if abs(value) >= 0.01 or value == 0 else 3
        return f"{round(value, digits) + 0.0:.{digits}f}"
    unit = column.unit.symbol or words(metric)
    if column.unit.prefixed:
        size = next((s for s in PREFIXES if value >= s), 1.0)
        return f"{value / size:.3g} {PREFIXES.get(size, '')}{unit}"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def times(ratio: float) -> str:
    """A ratio with two digits that matter."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 0.1 else f"{ratio:.2g}"
