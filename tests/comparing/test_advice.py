"""Which way to update: what the paragraph says, and what it does not, on constructed runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from cl_runner.comparing.advice import NEXT, advice
from cl_runner.comparing.render import plain, verdicts
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import Comparison, Question, compare_runs
from cl_runner.results.files import read_rows, write_rows

NOISE = (0.01, -0.012, 0.004, -0.003, 0.0085, -0.0074)  # their mean is 0, nearly
Ask = Callable[..., Comparison]
COSTS = {
    "from_scratch": {"flops": 40e9, "train_seconds": 60, "memory_bytes": 0},
    "cumulative": {"flops": 40e9, "train_seconds": 61, "memory_bytes": 0},
    "er": {"flops": 16e9, "train_seconds": 30, "buffer_bytes": 32_000, "memory_bytes": 400},
    "naive": {"flops": 8e9, "train_seconds": 12, "memory_bytes": 0},
    "joint": {"flops": 9e9, "train_seconds": 9, "memory_bytes": 0},
}


def around(mean: float, n: int = 6) -> list[float]:
    return [mean + noise for noise in NOISE[:n]]


def shaken(mean: float) -> list[float]:
    """Around the same mean, but seed by seed not as `around`."""
    return [mean + noise for noise in NOISE[::-1]]


@pytest.fixture
def ask(run_folder, tmp_path: Path) -> Ask:
    """ask(accs, **question): compares runs with these accuracies, a list per strategy, and COSTS.

    next_: values of NEXT by strategy; by default it was not measured.
    """

    def question(
        accs: Mapping[str, Sequence[float]],
        *,
        costs: Mapping[str, Mapping[str, float | None]] = COSTS,
        next_: Mapping[str, Sequence[float]] | None = None,
        **asked: object,
    ) -> Comparison:
        for strategy, values in accs.items():
            for seed, acc in enumerate(values):
                path = run_folder(acc, strategy=strategy, seed=seed)
                row = read_rows(path / "summary.csv")[0] | costs.get(strategy, {})
                row[NEXT] = next_[strategy][seed] if next_ else None
                write_rows(path / "summary.csv", [row])
        return compare_runs(read_runs([str(tmp_path)])[0], Question(**asked))

    return question


def told(found: Comparison) -> list[str]:
    return advice(found.streams[0])


def test_a_cheap_way_that_is_as_good_is_recommended(ask: Ask) -> None:
    accs = {"from_scratch": around(0.83), "er": shaken(0.82), "naive": around(0.4)[::-1]}
    standing, prices, choice = told(ask(accs | {"joint": around(0.95)}))
    assert standing == (
        "Which way to update, by ACC: from scratch has the highest, 0.83 (0.82 to 0.84, 6 seeds); "
        "ER cannot be told from it (0.01 apart, p = 0.22, 6 seeds); naive is 0.43 behind (p < "
        "0.001)."
    )
    assert prices == (
        "Training from scratch takes 40 GFLOPs and 60 seconds; ER 0.4 and 0.5, naive 0.2 and 0.2 "
        "times as much. To be kept besides the network: all data so far for from scratch, 32.4 kB "
        "for ER, nothing for naive."
    )
    assert choice == (
        "Without other limits: ER, as good as from scratch for all that these seeds tell, at 0.4 "
        "times its FLOPs."
    )


def test_what_is_behind_is_not_recommended_however_cheap(ask: Ask) -> None:
    accs = {"from_scratch": around(0.83), "er": shaken(0.7), "naive": shaken(0.4)}
    standing, _, choice = told(ask(accs))
    assert "cannot be told" not in standing
    assert "ER is 0.13 behind (p < 0.001); naive is 0.43 behind (p < 0.001)." in standing
    assert choice == "Without other limits: from scratch, for all others are behind."


def test_what_costs_the_same_is_no_reason(ask: Ask) -> None:
    accs = {"from_scratch": around(0.83), "cumulative": shaken(0.83)}
    *_, choice = told(ask(accs))
    assert choice == "Without other limits: cumulative, for those like it are no cheaper."


def test_another_way_may_be_better_than_from_scratch(ask: Ask) -> None:
    accs = {"from_scratch": around(0.6), "cumulative": shaken(0.8), "naive": around(0.3)}
    standing, prices, choice = told(ask(accs))
    assert "cumulative has the highest, 0.80" in standing
    assert "from scratch is 0.20 behind (p < 0.001)" in standing
    assert prices == (
        "Training from scratch takes 40 GFLOPs and 60 seconds; cumulative 1.0 and 1.0, naive 0.2 "
        "and 0.2 times as much. To be kept besides the network: all data so far for from scratch "
        "and cumulative, nothing for naive."
    )
    assert choice == "Without other limits: cumulative, for all others are behind."


@pytest.mark.parametrize(
    ("n", "why"),
    [
        (1, "one seed each: no test can tell it from ER"),
        (3, "3 seeds are too few to tell it from ER, 5 would show a large difference"),
    ],
)
def test_too_few_seeds_recommend_nothing(ask: Ask, n: int, why: str) -> None:
    standing, _, choice = told(ask({"from_scratch": around(0.83, n), "er": shaken(0.83)[:n]}))
    assert why in standing
    assert choice == "Which of from scratch and ER to choose, these seeds do not tell: run more."


def test_a_doubtful_way_spoils_the_choice_among_those_that_are_told(ask: Ask) -> None:
    """er is as good by six seeds; of naive there is one seed, so nobody knows."""
    accs = {"from_scratch": around(0.83), "er": shaken(0.82), "naive": [0.82]}
    *_, choice = told(ask(accs))
    assert choice == "Which of from scratch and naive to choose, these seeds do not tell: run more."


def test_the_next_tasks_count_where_they_were_measured(ask: Ask) -> None:
    """By ACC er is behind; by the accuracy until the next update it is the best."""
    accs = {"from_scratch": around(0.83), "er": shaken(0.7)}
    later = {"from_scratch": shaken(0.6), "er": around(0.75)}
    found = ask(accs, next_=later)
    standing, _, choice = told(found)
    assert standing.startswith(
        "Which way to update, by next task accuracy: ER has the highest, 0.75 (0.74 to 0.76, 6 "
    )
    assert choice == "Without other limits: ER, for all others are behind."
    assert "by forgetting: " in told(ask({}, next_=later, metric="forgetting"))[0]


def test_it_is_said_only_beside_from_scratch(ask: Ask) -> None:
    found = ask({"cumulative": around(0.83), "er": around(0.8), "naive": around(0.4)})
    assert told(found) == [] and len(verdicts(found)) == 1
    found = ask({"from_scratch": around(0.85), "joint": around(0.9)})
    assert len(verdicts(found)) == 2 and "joint" not in verdicts(found)[1]
    assert verdicts(found)[1] in plain(found)


def test_from_scratch_alone_is_no_choice(ask: Ask) -> None:
    assert told(ask({"from_scratch": around(0.85), "joint": around(0.9)})) == []


def test_a_cost_says_nothing_of_what_a_way_is_worth(ask: Ask) -> None:
    assert told(ask({"from_scratch": around(0.85), "er": around(0.9)}, metric="flops")) == []


def test_what_was_not_measured_is_left_out(ask: Ask) -> None:
    gone = dict.fromkeys(("flops", "train_seconds", "buffer_bytes", "memory_bytes"))
    accs = {"from_scratch": around(0.83), "er": shaken(0.82)}
    _, prices, choice = told(ask(accs, costs={"from_scratch": gone, "er": gone}))
    assert prices == (
        "To be kept besides the network: all data so far for from scratch, an unmeasured amount "
        "for ER."
    )
    assert choice == "Without other limits: from scratch, for those like it are no cheaper."


def test_many_ways_are_counted_not_listed(ask: Ask) -> None:
    names = [f"s{i}" for i in range(9)]
    accs = {name: shaken(0.7 - i / 20) for i, name in enumerate(names)}
    standing, prices, _ = told(ask({"from_scratch": around(0.83), **accs}))
    assert "s3 is 0.28 behind (p < 0.001); 5 more are further behind." in standing
    assert prices.endswith("nothing for s0, s1, s2 and 2 more.")
