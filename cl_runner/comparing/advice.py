"""Which way to update a model that new data arrive for: one paragraph on a stream.

It is said where a stream has runs of `from_scratch`, which is what practice does. Unlike the
verdict it counts every way in which a model can be kept up to date, also those that keep all data
so far; only `joint` and `soft_sharing`, which train on data of the future, have no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cl_runner.comparing import statistics
from cl_runner.comparing.names import listed
from cl_runner.comparing.table import BOUNDS, Group, StreamGroup, shared_values, told_apart
from cl_runner.comparing.verdict import (
    amount,
    behind,
    besides,
    difference,
    p_value,
    seeds,
    tested,
    times,
    too_few,
    words,
)
from cl_runner.results.columns import is_cost, larger_is_better

REFERENCE = "from_scratch"
NEXT = "next_task_accuracy"  # what a model is worth until its next update
OF_THE_FUTURE = ("joint", "soft_sharing")
COSTS = {"flops": "FLOPs", "train_seconds": "training time"}  # the first decides what is cheap
CHEAPER = 0.95  # of another's cost: what differs less is no reason
MANY = 5  # ways whose costs a paragraph can hold


def advice(stream: StreamGroup) -> list[str]:
    """The paragraph's sentences; none without `from_scratch`, or with nothing beside it.

    By NEXT where that was measured and ACC is what was asked for, else by the stream's metric; none
    either if that is a cost.
    """
    measured = stream.metric == "ACC" and any(g.values.get(NEXT) for g in stream.groups)
    metric = NEXT if measured else stream.metric
    groups = [g for g in stream.groups if g.strategy not in OF_THE_FUTURE and g.values.get(metric)]
    if is_cost(metric) or len(groups) < 2 or not any(g.strategy == REFERENCE for g in groups):
        return []
    ways = ranked(groups, metric)
    return [standing(ways, metric), prices(ways), recommendation(ways)]


def ranked(groups: Sequence[Group], metric: str) -> list[Group]:
    """Copies of the groups, the best first, the others tested against it."""
    sign = 1 if larger_is_better(metric) else -1
    best, *others = sorted(groups, key=lambda g: (-sign * (g.mean(metric) or 0.0), g.label))
    pairs = [shared_values(g, best, metric, sign) for g in others]
    tests = statistics.paired_tests(pairs, against_best=True)
    return [best, *(replace(g, versus_best=t) for g, t in zip(others, tests, strict=True))]


def among(ways: Sequence[Group], *answers: str) -> list[Group]:
    """Those of the others of which the tests against the best say one of these."""
    return [g for g in ways[1:] if told_apart(g.versus_best) in answers]


def open_ways(ways: Sequence[Group]) -> list[Group]:
    """Those that may be as good as the best for all that the seeds tell, or better."""
    contested = [g for g in among(ways, "yes") if not behind(g)]
    return among(ways, "too_few", "untested") + contested


def standing(ways: Sequence[Group], metric: str) -> str:
    """Who is best by how much, and how surely."""
    best, found = ways[0], ways[0].statistics(metric)
    most = "highest" if larger_is_better(metric) else "lowest"
    spread = "one seed"
    if found["low"] is not None:
        low, high = (amount(found[end], metric) for end in ("low", "high"))
        spread = f"{low} to {high}, {found['n']} seeds"
    parts = [f"{best.name} has the {most}, {amount(found['mean'], metric)} ({spread})"]
    if alike := among(ways, "no"):
        tests = [tested(g) for g in alike]
        names = listed([g.name for g in alike])
        far = max(tests, key=lambda t: abs(t.difference or 0.0))
        how = f"{difference(far, metric)} apart{'' if len(tests) == 1 else ' at most'}"
        parts.append(f"{names} cannot be told from it ({how}, {p_value(tests)}, {seeds(tests)})")
    if unsure := among(ways, "too_few", "untested"):
        parts.append(too_few(best, unsure, "it"))
    if contested := [g.name for g in among(ways, "yes") if not behind(g)]:
        parts.append(f"where both have a seed, {listed(contested)} did better")
    worse = [g for g in among(ways, "yes") if behind(g)]
    for g in worse[: MANY - 1]:
        test = tested(g)
        parts.append(f"{g.name} is {difference(test, metric)} behind ({p_value([test])})")
    if more := worse[MANY - 1 :]:
        parts.append(f"{len(more)} more are further behind")
    return f"Which way to update, by {words(metric)}: {'; '.join(parts)}."


def prices(ways: Sequence[Group]) -> str:
    """What training costs, as multiples of the reference's costs, and what has to be kept."""
    base = next(g for g in ways if g.strategy == REFERENCE)
    shown = [base, *[g for g in ways if g is not base][:MANY]]
    costs = [name for name in COSTS if all(g.mean(name) for g in shown)]
    sentences = []
    if costs:
        whole = " and ".join(amount(base.mean(name) or 0.0, name) for name in costs)
        others = [f"{g.name} {' and '.join(shares(g, base, costs))}" for g in shown[1:]]
        sentences.append(f"Training {base.name} takes {whole}; {', '.join(others)} times as much.")
    kept: dict[str, list[str]] = {}
    for g in shown:
        what = "all data so far" if g.strategy in BOUNDS else besides(g)
        kept.setdefault(what or "an unmeasured amount", []).append(g.name)
    what = ", ".join(f"{size} for {listed(names)}" for size, names in kept.items())
    return " ".join([*sentences, f"To be kept besides the network: {what}."])


def shares(group: Group, base: Group, costs: Sequence[str]) -> list[str]:
    """A group's costs as multiples of another's."""
    return [times((group.mean(name) or 0.0) / (base.mean(name) or 1.0)) for name in costs]


def recommendation(ways: Sequence[Group]) -> str:
    """The cheapest way of those that the tests do not tell from the best; or why there is none."""
    best, doubtful = ways[0], open_ways(ways)
    if doubtful:
        names = listed([best.name, *(g.name for g in doubtful)])
        return f"Which of {names} to choose, these seeds do not tell: run more."
    alike = among(ways, "no")
    if not alike:
        return f"Without other limits: {best.name}, for all others are behind."
    name = next((n for n in COSTS if all(g.mean(n) for g in (best, *alike))), None)
    cheapest = best if name is None else min((best, *alike), key=lambda g: g.mean(name) or 0.0)
    share = 1.0 if name is None else (cheapest.mean(name) or 0.0) / (best.mean(name) or 1.0)
    if name is None or share > CHEAPER:
        return f"Without other limits: {best.name}, for those like it are no cheaper."
    return (
        f"Without other limits: {cheapest.name}, as good as {best.name} for all that these seeds "
        f"tell, at {times(share)} times its {COSTS[name]}."
    )
