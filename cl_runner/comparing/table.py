"""Runs grouped by what tells them apart, and what is computed of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import groupby
from typing import Any

from cl_runner.comparing import statistics
from cl_runner.comparing.names import display, listed, said_by_name
from cl_runner.comparing.runs import Run, is_setting, shown
from cl_runner.comparing.statistics import Paired, Ranks
from cl_runner.errors import UserError, check
from cl_runner.results.columns import is_cost, is_metric, larger_is_better, of_kind
from cl_runner.results.seeds import interval

POSITION = "position"  # (mean - naive) / (joint - naive): of a group, not of a run
OWN_NAME = {"model": "model", "optimizer": "optimizer"}  # groups of settings that have a name
# See data that a strategy must not; none of them is the best.
BOUNDS = ("cumulative", "from_scratch", "joint")
LOWER, UPPER = "naive", "joint"

Settings = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the user wants to know."""

    metric: str = "ACC"
    reading: str | None = None  # None: as the scenario says
    by: tuple[str, ...] | None = None  # None: the settings that differ
    baseline: str | None = None  # a strategy


@dataclass(kw_only=True)
class Group:
    """The runs of one strategy with the same settings on one stream; they differ in the seed."""

    strategy: str
    settings: Settings  # those that tell it from others of the strategy on this stream
    everything: Settings  # all settings of its first run
    runs: dict[int, Run]  # by seed, complete ones only
    incomplete: list[Run]
    values: dict[str, dict[int, float]] = field(default_factory=dict)  # column -> seed -> value
    position: float | None = None  # 0: as naive, 1: as joint
    best: bool = False
    versus_best: Paired | None = None
    versus_baseline: Paired | None = None

    @property
    def label(self) -> str:
        """Strategy and settings."""
        return " ".join([self.strategy, *describe(self.settings)])

    @property
    def name(self) -> str:
        """The label as people say it."""
        said = said_by_name(self.strategy, self.everything)
        settings = {key: value for key, value in self.settings.items() if key not in said}
        return " ".join([display(self.strategy, self.everything), *describe(settings)])

    def statistics(self, column: str) -> dict[str, Any]:
        """n, mean, sd, low and high of a column."""
        return interval([value for _, value in sorted(self.values.get(column, {}).items())])

    def mean(self, column: str) -> float | None:
        """The mean over seeds; None without runs."""
        mean = self.statistics(column)["mean"]
        return None if mean is None else float(mean)

    @property
    def distinguishable(self) -> str:
        """The group against the best one: best, bound, yes, no, too_few, untested.

        no: not told apart, by a test that would have seen a large difference; too_few: by one that
        could hardly have, with so few seeds.
        """
        if self.best or self.strategy in BOUNDS:
            return "best" if self.best else "bound"
        return told_apart(self.versus_best)


def told_apart(test: Paired | None) -> str:
    """What a test says of two groups: yes, no, too_few, untested; see Group.distinguishable."""
    if test is None or test.p is None:
        return "untested"
    if test.differs:
        return "yes"
    return "no" if test.seeds_needed is None else "too_few"


@dataclass(kw_only=True)
class StreamGroup:
    """All groups that learned the same tasks in the same scenario, the best first."""

    benchmark: str
    scenario: str
    reading: str
    settings: Settings  # those that tell it from others of the benchmark
    num_tasks: str
    metric: str  # what the groups are sorted and tested by
    groups: list[Group]

    @property
    def title(self) -> str:
        """One line that names it."""
        read = "" if self.reading == self.scenario else f" read as {self.reading}-IL"
        parts = [self.benchmark, *describe(self.settings, "benchmark.")]
        tasks = [f"{self.num_tasks} tasks"] if self.num_tasks else []
        return ", ".join([" ".join(parts), *tasks, f"{self.scenario}-IL{read}"])


@dataclass(kw_only=True)
class Method:
    """One strategy over several streams."""

    label: str
    rank: float
    iqm: float
    iqm_interval: tuple[float, float] | None
    against: str | None = None  # the method that the probability is about
    improvement: float | None = None  # P(a run of this one is better)
    improvement_interval: tuple[float, float] | None = None
    # threshold, share of the runs that reach it, and the share's interval: low and high
    profile: list[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass(kw_only=True)
class Overall:
    """All methods that every stream has."""

    ranking: Ranks
    fewest: int  # runs of a method on a stream
    methods: list[Method]
    left_out: list[str]  # methods that some stream lacks


@dataclass(kw_only=True)
class Comparison:
    """The answer."""

    question: Question
    streams: list[StreamGroup]
    incomplete: list[Run]
    overall: Overall | None
    notes: list[str]


def describe(settings: Mapping[str, str], prefix: str = "strategy.") -> list[str]:
    """`key=value`, without a prefix that the reader can do without."""
    return [f"{key.removeprefix(prefix)}={value or 'null'}" for key, value in settings.items()]


def compare_runs(runs: Sequence[Run], question: Question) -> Comparison:
    """Group, summarise, test and rank. Raises UserError for questions that the runs cannot answer.

    Nothing depends on the order of the runs.
    """
    runs = sorted(runs, key=lambda run: (str(run.folder), str(run.source)))
    complete = [run for run in runs if run.complete]
    states = sorted({run.row["status"] or "unknown" for run in runs})
    check(bool(complete), f"none of the {len(runs)} runs is complete: {', '.join(states)}")
    check_question(complete, question)
    notes: list[str] = []
    own_seed = own_stream_seeds(runs)
    started = [run for run in runs if run.row.get("strategy")]
    parts: list[tuple[StreamGroup, list[Run]]] = []
    by_name = sorted(started, key=lambda run: (run.row["benchmark"], run.row["scenario"]))
    for (benchmark, scenario), found in groupby(
        by_name, key=lambda run: (run.row["benchmark"], run.row["scenario"])
    ):
        members = list(found)
        settings = [stream_settings(run, own_seed) for run in members]
        differing = differing_keys(settings)
        for own, part in split(members, settings, differing):
            if question.reading and not reads(part, scenario, question.reading):
                unread = f"{benchmark}, {scenario}-IL is not read as {question.reading}-IL"
                notes.append(f"left out: {unread}")
                continue
            stream = StreamGroup(
                benchmark=benchmark,
                scenario=scenario,
                reading=question.reading or scenario,
                settings={k: v for k, v in own.items() if k != "benchmark.num_tasks"},
                num_tasks=part[0].row.get("benchmark.num_tasks", ""),
                metric=question.metric,
                groups=[],
            )
            parts.append((stream, part))
    keys = method_keys([part for _, part in parts]) if question.by is None else question.by
    for stream, part in parts:
        stream.groups = group(part, keys, chosen=question.by is not None)
        fill(stream, question, notes)
    streams = [stream for stream, _ in parts]
    check(bool(streams), f"no run is read as {question.reading}-IL")
    note_tests(streams, notes)
    if question.baseline:
        names = sorted({g.strategy for s in streams for g in s.groups if g.runs})
        there = f"there are {', '.join(names)}"
        check(question.baseline in names, f"--baseline {question.baseline}: no such run; {there}")
    overall = over_streams(streams, question)
    if overall is None and len(streams) > 1:
        notes.append("no ranking over the streams: fewer than two methods are in all of them")
    return Comparison(
        question=question,
        streams=streams,
        incomplete=[run for run in runs if not run.complete],
        overall=overall,
        notes=list(dict.fromkeys(notes)),
    )


def check_question(complete: Sequence[Run], question: Question) -> None:
    """Refuse metrics and settings that no run has."""
    columns = sorted({name for run in complete for name in run.row})
    metrics = [name for name in columns if is_metric(name) or is_cost(name)]
    if question.metric not in {*metrics, "intransigence"}:
        near = get_close_matches(question.metric, metrics, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(metrics)}"
        raise UserError(f"--metric {question.metric}: no run has it{hint}")
    for key in question.by or ():
        known = [name for name in columns if is_setting(name)]
        near = get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        check(key in known, f"--by {key}: no run has such a setting{hint}")


def columns_asked_for(text: str | None, comparison: Comparison) -> list[str] | None:
    """The names that `--columns` lists, their values filled in; None where it is not given.

    Raises UserError for a name that no run has.
    """
    if text is None:
        return None
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    check(bool(names), "--columns: write metrics or costs with commas between, as ACC,flops")
    groups = [(stream, g) for stream in comparison.streams for g in stream.groups]
    there = {key for _, g in groups for run in g.runs.values() for key in run.row}
    known = sorted({n for n in there if is_metric(n) or is_cost(n)} | {"intransigence", POSITION})
    for name in names:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        if name not in known:
            raise UserError(f"--columns {name}: no run has it; {hint}")
    for stream, g in groups:
        for name in (name for name in names if name not in g.values):
            add_values(g, name, stream)
    return names


# Which stream, which group.


def own_stream_seeds(runs: Sequence[Run]) -> set[tuple[str, str, str]]:
    """(benchmark, scenario, seed) of the streams whose `benchmark.seed` does not follow `seed`."""
    found = set()
    for run in runs:
        row = run.row
        if row.get("benchmark.seed") and row["benchmark.seed"] != row["seed"]:
            found.add((row["benchmark"], row["scenario"], row["benchmark.seed"]))
    return found


def stream_settings(run: Run, own_seed: set[tuple[str, str, str]]) -> Settings:
    """What determines a run's tasks, the names of benchmark and scenario aside.

    A benchmark's seed that follows the run's is none of it: it differs as the run's seed does.
    """
    found = {k: v for k, v in run.configuration.items() if belongs_to_stream(k)}
    seed = run.row.get("benchmark.seed", "")
    fixed = (run.row["benchmark"], run.row["scenario"], seed) in own_seed
    return found | {"benchmark.seed": seed if fixed else "seed"}


def belongs_to_stream(key: str) -> bool:
    """Whether a setting is about the tasks rather than about how they are learned."""
    return key.startswith("benchmark.") or key == "data.path"


def differing_keys(settings: Sequence[Settings]) -> list[str]:
    """The keys of which two have different values, sorted.

    A key that one has not (it ran in an older version) does not differ for that.
    """
    values: dict[str, set[str]] = {}
    for own in settings:
        for key, value in own.items():
            values.setdefault(key, set()).add(value)
    return sorted(key for key, found in values.items() if len(found) > 1)


def split(
    runs: Sequence[Run], settings: Sequence[Settings], keys: Sequence[str]
) -> list[tuple[Settings, list[Run]]]:
    """The runs by the values that their settings have for the keys, in a fixed order."""
    parts: dict[tuple[str, ...], list[Run]] = {}
    for run, own in zip(runs, settings, strict=True):
        parts.setdefault(tuple(own.get(key, "") for key in keys), []).append(run)
    return [(dict(zip(keys, values, strict=True)), parts[values]) for values in sorted(parts)]


def learning_settings(run: Run) -> Settings:
    """The settings that are not about the stream."""
    found = {k: v for k, v in run.configuration.items() if not belongs_to_stream(k)}
    return {"model.weights": ""} | found  # runs that start from nothing have no such column


def method_keys(parts: Sequence[Sequence[Run]]) -> Mapping[str, Sequence[str]]:
    """For each strategy the settings that differ within a stream.

    A setting that only differs between streams (lambda as tuned for each) makes no two methods of
    one; a setting that is swept on one stream names the method on all of them.
    """
    found: dict[str, dict[str, None]] = {}
    for runs in parts:
        for strategy in {run.row["strategy"] for run in runs}:
            own = [run for run in runs if run.row["strategy"] == strategy]
            differing = differing_keys([learning_settings(run) for run in own])
            keys = [key for key in differing if not implied(key, own)]
            found.setdefault(strategy, {}).update(dict.fromkeys(keys))
    return {strategy: list(keys) for strategy, keys in found.items()}


def group(
    runs: Sequence[Run], keys: Mapping[str, Sequence[str]] | Sequence[str], *, chosen: bool
) -> list[Group]:
    """The groups of one stream, by the keys of each strategy, or by keys that the user has chosen.

    Raises UserError if two runs of a seed come into one group.
    """
    groups = []
    for strategy in sorted({run.row["strategy"] for run in runs}):
        own = [run for run in runs if run.row["strategy"] == strategy]
        its = keys[strategy] if isinstance(keys, Mapping) else keys
        for settings, members in split(own, [run.row for run in own], its):
            complete: dict[int, Run] = {}
            for run in (run for run in members if run.complete):
                seed = seed_of(run)
                if seed in complete:
                    refuse_second(run, complete[seed], its if chosen else None)
                complete[seed] = run
            groups.append(
                Group(
                    strategy=strategy,
                    # What a strategy does not have says nothing about it.
                    settings={k: v for k, v in settings.items() if v or not chosen},
                    everything=learning_settings(members[0]),
                    runs=dict(sorted(complete.items())),
                    incomplete=[run for run in members if not run.complete],
                )
            )
    return groups


def implied(key: str, runs: Sequence[Run]) -> bool:
    """Whether `model` (`optimizer`) tells these runs apart as well as this key of theirs does."""
    name, dot, _ = key.partition(".")
    if not dot or name not in OWN_NAME:
        return False
    pairs = {(run.row.get(name), run.row.get(key)) for run in runs}
    return len(pairs) == len({first for first, _ in pairs})


def seed_of(run: Run) -> int:
    """The run's seed."""
    try:
        return int(run.row["seed"])
    except ValueError:
        raise UserError(f"{run.source}: seed is {shown(run.row['seed'])}, not a number") from None


def refuse_second(run: Run, other: Run, by: Sequence[str] | None) -> None:
    """Raise UserError: two runs of one seed in one group cannot be averaged as if independent."""
    names = f"{run.row['strategy']} seed={run.row['seed']}"
    culprits = differing_keys([learning_settings(other), learning_settings(run)])
    if by is not None and culprits:
        hint = f"they differ in {', '.join(culprits)}: add that to --by, or choose with --where"
        raise UserError(f"--by {','.join(by)} puts two runs of {names} into one row; {hint}")
    raise UserError(f"two runs of {names} cannot be told apart, {other.folder} and {run.folder}")


def reads(runs: Sequence[Run], scenario: str, reading: str) -> bool:
    """Whether runs of a scenario are also evaluated as another one."""
    return reading == scenario or any(run.row.get(f"{reading}_ACC") for run in runs)


# What is computed of them.


def name_as_read(name: str, stream: StreamGroup) -> str:
    """The column of a metric as the stream is read."""
    prefix = f"{stream.reading}_"
    if stream.reading == stream.scenario or prefix in name or not is_metric(name):
        return name
    split = "validation_" if name.startswith("validation_") else ""
    return split + prefix + name.removeprefix(split)


def add_values(one: Group, name: str, stream: StreamGroup) -> None:
    """The values of a column, seed by seed, where there are any."""
    numbers = {s: run.number(name_as_read(name, stream)) for s, run in one.runs.items()}
    one.values[name] = {s: v for s, v in numbers.items() if v is not None}


def fill(stream: StreamGroup, question: Question, notes: list[str]) -> None:
    """Values, bounds and tests of the groups; the best comes first, those without runs last."""
    own = [column.name for column in of_kind("metric", "calibration", "cost")]
    for one in stream.groups:
        for name in dict.fromkeys([question.metric, *own]):
            add_values(one, name, stream)
    add_intransigence(stream, notes)
    if is_metric(question.metric):
        add_positions(stream, question.metric, notes)
    sign = 1 if larger_is_better(question.metric) else -1

    def place(one: Group) -> tuple[bool, float, str]:
        mean = one.mean(question.metric)
        return (mean is None, -sign * (mean or 0.0), one.label)

    stream.groups.sort(key=place)
    note_unequal(stream, notes)
    add_tests(stream, question, sign)
    note_too_few(stream, notes)


def note_unequal(stream: StreamGroup, notes: list[str]) -> None:
    """Say which settings outside `strategy.` are not the same for all, and for whom."""
    groups = [g for g in stream.groups if g.runs]
    for key in differing_keys([outside(g.everything) for g in groups]):
        name, dot, _ = key.partition(".")
        if dot and name in OWN_NAME and name in differing_keys([g.everything for g in groups]):
            continue  # follows from the name
        values: dict[str, list[str]] = {}
        for g in groups:
            values.setdefault(g.everything.get(key) or "null", []).append(g.strategy)
        text = "; ".join(f"{v} in {', '.join(dict.fromkeys(who))}" for v, who in values.items())
        notes.append(f"{stream.title}: {key} is not the same for all: {text}")


def counterpart(one: Group, strategy: str, stream: StreamGroup) -> Group | None:
    """The group of another strategy that learned as this one did.

    The one that agrees in all settings outside `strategy.`, or the only one there is.
    """
    others = [g for g in stream.groups if g.strategy == strategy and g.runs]
    if len(others) > 1:
        others = [g for g in others if outside(g.everything) == outside(one.everything)]
    return others[0] if len(others) == 1 else None


def outside(settings: Settings) -> Settings:
    """The settings that every strategy has."""
    return {k: v for k, v in settings.items() if not k.startswith("strategy.")}


def add_intransigence(stream: StreamGroup, notes: list[str]) -> None:
    """mean_k (bound on task k - R[k, k]), seed by seed, where there is a bound.

    The bound on task k is R[k, k] of the `cumulative` run, or else of the `from_scratch` run, which
    are trained on tasks 1 .. k (Chaudhry et al. 2018), or else R[T, k] of the `joint` run, trained
    on all. Their means over the tasks are learning_accuracy of the former and ACC of the latter.
    """
    for one in stream.groups:
        if one.strategy in BOUNDS:
            continue
        bounds = [(name, counterpart(one, name, stream)) for name in BOUNDS]
        name, other = next(((n, g) for n, g in bounds if g is not None), ("", None))
        if other is None:
            continue
        own = one.values["learning_accuracy"]
        if name != UPPER:
            bound = other.values["learning_accuracy"]
        else:
            metric = name_as_read("ACC", stream)
            bound = {s: v for s, r in other.runs.items() if (v := r.number(metric)) is not None}
        shared = own.keys() & bound.keys()
        one.values["intransigence"] = {s: bound[s] - own[s] for s in sorted(shared)}
        if shared:
            notes.append(f"intransigence is measured against {name}, seed by seed")


def add_positions(stream: StreamGroup, metric: str, notes: list[str]) -> None:
    """(mean - naive) / (joint - naive), means over the seeds that all three have."""
    for one in stream.groups:
        low, high = counterpart(one, LOWER, stream), counterpart(one, UPPER, stream)
        if low is None or high is None:
            continue
        groups = [g.values[metric] for g in (one, low, high)]
        shared = sorted(set.intersection(*(set(values) for values in groups)))
        if not shared:
            continue
        own, bottom, top = (sum(values[s] for s in shared) / len(shared) for values in groups)
        sign = 1 if larger_is_better(metric) else -1
        if sign * (top - bottom) > 0:
            one.position = (own - bottom) / (top - bottom)
        else:
            notes.append(f"{stream.title}: no position, since joint is not better than naive")


def add_tests(stream: StreamGroup, question: Question, sign: int) -> None:
    """Paired tests against the best group and against the baseline, each family with Holm."""
    ranked = candidates(stream.groups, question.metric)
    if not ranked:
        return
    best = ranked[0]
    best.best = True
    others = [g for g in ranked if g is not best]
    pairs = [shared_values(g, best, question.metric, sign) for g in others]
    for g, result in zip(others, statistics.paired_tests(pairs, against_best=True), strict=True):
        g.versus_best = result
    if question.baseline:
        bases = [(g, counterpart(g, question.baseline, stream)) for g in ranked]
        chosen = [(g, base) for g, base in bases if base is not None and base is not g]
        pairs = [shared_values(g, base, question.metric, sign) for g, base in chosen]
        results = statistics.paired_tests(pairs, against_best=False)
        for (g, _), result in zip(chosen, results, strict=True):
            g.versus_baseline = result


def shared_values(
    one: Group, other: Group, metric: str, sign: int
) -> tuple[list[float], list[float]]:
    """The values of two groups on the seeds that both have, times sign: more is then better."""
    a, b = one.values[metric], other.values[metric]
    seeds = sorted(a.keys() & b.keys())
    return [sign * a[s] for s in seeds], [sign * b[s] for s in seeds]


def note_too_few(stream: StreamGroup, notes: list[str]) -> None:
    """Say whom the seeds are too few to tell from the best, and how many are needed."""
    found = [
        (g.name, g.versus_best.n, g.versus_best.seeds_needed)
        for g in stream.groups
        if g.versus_best is not None and g.versus_best.seeds_needed is not None
    ]
    if not found:
        return
    names = listed([name for name, _, _ in found])
    least, needed = min(n for _, n, _ in found), max(needed for _, _, needed in found)
    best = next(g.name for g in stream.groups if g.best)
    notes.append(
        f"{stream.title}: {least} seeds are too few to tell {names} from {best}, or to call them "
        f"alike; {needed} seeds would show a large difference, of {statistics.LARGE:g} SDs"
    )


def note_tests(streams: Sequence[StreamGroup], notes: list[str]) -> None:
    """Say how was tested, and what that relies on."""
    groups = [g for stream in streams for g in stream.groups]
    tests = [t for g in groups for t in (g.versus_best, g.versus_baseline) if t is not None]
    names = {t.test for t in tests}
    how = [text for name, text in statistics.TESTS.items() if name in names]
    if not how:
        return
    notes.append(f"tests, paired by seed: {' and '.join(how)}")
    notes.append(
        "p (Holm) against the best counts all pairs, since the same runs say which one is the best"
    )
    few = [t.n for t in tests if t.test == statistics.STUDENT]
    if few:
        notes.append(f"few seeds ({min(few)}): the t-test relies on normal differences")


def candidates(groups: Sequence[Group], metric: str) -> list[Group]:
    """The groups with values that are strategies; the bounds only where there is nothing else."""
    measured = [g for g in groups if g.values[metric]]
    return [g for g in measured if g.strategy not in BOUNDS] or measured


def over_streams(streams: Sequence[StreamGroup], question: Question) -> Overall | None:
    """Ranks and aggregates of the methods that all streams have; None for one stream or method."""
    sign = 1 if larger_is_better(question.metric) else -1
    tables = [
        {g.label: g for g in candidates(stream.groups, question.metric)} for stream in streams
    ]
    if len(tables) < 2:
        return None
    everywhere = sorted(set.intersection(*(set(table) for table in tables)))
    if len(everywhere) < 2:
        return None
    scores = {
        name: [list(table[name].values[question.metric].values()) for table in tables]
        for name in everywhere
    }
    means = {k: [sign * sum(s) / len(s) for s in strata] for k, strata in scores.items()}
    ranking = statistics.rank(means)
    against = question.baseline if question.baseline in everywhere else next(iter(ranking.ranks))
    methods = []
    for name, rank in ranking.ranks.items():
        strata = scores[name]
        method = Method(
            label=name,
            rank=rank,
            iqm=float(statistics.interquartile_mean(strata)),
            iqm_interval=statistics.iqm_interval(strata),
        )
        if name != against:
            pair = [[[sign * v for v in s] for s in scores[n]] for n in (name, against)]
            method.against = against
            method.improvement = float(statistics.probability_of_improvement(*pair))
            method.improvement_interval = statistics.improvement_interval(*pair)
        methods.append(method)
    add_profiles(methods, scores, sign)
    left_out = sorted(set().union(*tables) - set(everywhere))
    fewest = min(len(stratum) for strata in scores.values() for stratum in strata)
    return Overall(ranking=ranking, fewest=fewest, methods=methods, left_out=left_out)


def add_profiles(
    methods: Sequence[Method], scores: Mapping[str, list[list[float]]], sign: int
) -> None:
    """Performance profiles at thresholds over the whole range of a metric.

    Where less is better, a run reaches a threshold that it does not exceed.
    """
    values = [v for strata in scores.values() for stratum in strata for v in stratum]
    low, high = min(0.0, *values), max(1.0, *values)
    thresholds = [low + (high - low) * i / 100 for i in range(101)]
    for method in methods:
        strata = [[sign * v for v in stratum] for stratum in scores[method.label]]
        signed = [sign * tau for tau in thresholds]
        shares = statistics.performance_profile(strata, signed).tolist()
        ends = statistics.profile_intervals(strata, signed) or [(s, s) for s in shares]
        rows = zip(thresholds, shares, ends, strict=True)
        method.profile = [(tau, share, *end) for tau, share, end in rows]
