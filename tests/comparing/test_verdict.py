"""Two sentences that say what the runs say, on constructed cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import Comparison, Question, compare_runs
from cl_runner.comparing.verdict import amount, times, verdict
from cl_runner.results.files import read_rows, write_rows

NOISE = (0.01, -0.012, 0.004, -0.003, 0.0085, -0.0074)  # their mean is 0, nearly
Ask = Callable[..., Comparison]


def around(mean: float, n: int = 6) -> list[float]:
    """Accuracies of n seeds; their mean is `mean` for six of them."""
    return [mean + noise for noise in NOISE[:n]]


@pytest.fixture
def ask(run_folder, tmp_path: Path) -> Ask:
    """ask(accs, costs, **question): compares runs with these accuracies, a list per strategy.

    The accuracies of the list are of the seeds 0, 1, ...; those of a dictionary of its keys.
    costs: columns by strategy.
    """

    def question(
        accs: Mapping[str, Sequence[float] | Mapping[int, float]],
        costs: Mapping[str, Mapping[str, float | None]] | None = None,
        *,
        benchmark: str = "toy",
        **asked: object,
    ) -> Comparison:
        for strategy, values in accs.items():
            pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
            for seed, acc in pairs:
                path = run_folder(acc, strategy=strategy, seed=seed, benchmark=benchmark)
                row = read_rows(path / "summary.csv")[0] | (costs or {}).get(strategy, {})
                write_rows(path / "summary.csv", [row])
        return compare_runs(read_runs([str(tmp_path)])[0], Question(**asked))

    return question


COSTS = {
    "naive": {"flops": 1e9, "memory_bytes": 0},
    "er": {"flops": 2.3e9, "buffer_bytes": 100_000, "memory_bytes": 300_000},
    "ewc": {"flops": 1.5e9, "memory_bytes": 800_000},
    "joint": {"flops": 2.5e9, "memory_bytes": 0},
}


def test_the_best_is_said_with_lead_price_and_bounds(ask: Ask) -> None:
    ewc = [acc - 0.4 for acc in around(0.83)[::-1]]
    accs = {"naive": around(0.35), "ewc": ewc, "er": around(0.83), "joint": around(0.95)}
    first, second = verdict(ask(accs, COSTS))
    assert first == (
        "ER is best: it keeps 0.83 of joint's 0.95 (ahead of EWC by 0.40, p < 0.001, 6 seeds); "
        "naive reaches 0.35."
    )
    # A task is learned to 0.9: forgetting is 1.5 (0.9 - ACC).
    assert second == (
        "ER forgets 0.10 (naive 0.82), takes 2.3 times naive's FLOPs and 0.9 times joint's, and "
        "keeps 400 kB besides the network."
    )


def test_a_tie_is_said_and_who_is_behind_both(ask: Ask) -> None:
    derpp = [acc + d for acc, d in zip(around(0.82), (0.02, -0.02, 0.03, 0, 0, 0), strict=True)]
    found = ask({"er": around(0.83), "derpp": derpp, "naive": around(0.35)})
    first, _ = verdict(found)
    assert found.streams[0].groups[1].distinguishable == "no"
    assert first == (
        "ER and DER++ cannot be told apart: ER reaches 0.83, DER++ is 0.005 behind (p = 0.52, 6 "
        "seeds); ER is ahead of naive by 0.48, p < 0.001, 6 seeds."
    )


def test_many_that_cannot_be_told_apart_are_counted(ask: Ask) -> None:
    rng = np.random.default_rng(2)
    accs = {f"s{i}": (0.6 + rng.normal(0, 0.01, 10)).tolist() for i in range(6)}
    first, _ = verdict(ask(accs))
    names, rest = first.split(" cannot be told apart: ")
    assert len(names.split(", ")) == 3 and names.endswith(" and 3 more")
    assert "the others differ from it by 0.0" in rest and "(p = 1, 10 seeds)" in rest


def test_equal_in_every_seed(ask: Ask) -> None:
    first, _ = verdict(ask({"ewc": [0.4] * 5, "naive": [0.4] * 5}))
    assert first == (
        "EWC and naive cannot be told apart: EWC reaches 0.40, as naive in every seed (p = 1, 5 "
        "seeds)."
    )


def test_one_seed_is_no_test(ask: Ask) -> None:
    first, second = verdict(ask({"er": [0.8], "naive": [0.4]}))
    assert first == (
        "ER has the highest ACC: it reaches 0.80; one seed each: no test can tell it from naive; "
        "naive reaches 0.40."
    )
    assert second.startswith("ER forgets 0.15 (naive 0.75), takes 1.0 times naive's time")


def test_too_few_seeds_say_how_many_are_needed(ask: Ask) -> None:
    close = [0.83 - d for d in (0.01, -0.01, 0.005)]
    first, _ = verdict(ask({"er": [0.83] * 3, "derpp": close}))
    assert first == (
        "ER has the highest ACC: it reaches 0.83; 3 seeds are too few to tell it from DER++, 5 "
        "would show a large difference."
    )


def test_seeds_that_are_not_shared_are_said(ask: Ask) -> None:
    first, _ = verdict(ask({"er": {0: 0.8, 1: 0.82}, "ewc": {2: 0.5, 3: 0.52}}))
    assert first.endswith("too few shared seeds: no test can tell it from EWC.")


def test_a_mean_that_the_shared_seeds_contradict_is_said(ask: Ask) -> None:
    """er has the higher mean by a seed that ewc lacks; where both have one, ewc did better."""
    er = dict(enumerate(around(0.5))) | {6: 0.97, 7: 0.97, 8: 0.97}
    ewc = [acc + 0.05 + d for acc, d in zip(around(0.5), NOISE[::-1], strict=True)]
    first, _ = verdict(ask({"er": er, "ewc": ewc}))
    assert first == (
        "ER has the highest ACC: it reaches 0.66; where both have a seed, EWC did better."
    )


def test_one_strategy_alone(ask: Ask) -> None:
    first, second = verdict(ask({"er": around(0.83)}, COSTS))
    assert first == "ER reaches 0.83; there is no other strategy to compare it with."
    assert second == "ER forgets 0.10, takes 2.3 GFLOPs, and keeps 400 kB besides the network."


def test_bounds_alone_are_called_bounds(ask: Ask) -> None:
    first, _ = verdict(ask({"joint": around(0.9), "cumulative": around(0.8)}))
    assert first == "There are only bounds, joint and cumulative: joint reaches 0.90."


def test_naive_may_be_best_and_better_than_joint(ask: Ask) -> None:
    accs = {"naive": around(0.9), "er": around(0.8)[::-1], "joint": around(0.85)}
    first, second = verdict(ask(accs, COSTS))
    assert first == (
        "naive is best: it reaches 0.90, joint 0.85 (ahead of ER by 0.10, p < 0.001, 6 seeds)."
    )
    assert second == (
        "naive forgets nothing, takes 0.4 times joint's FLOPs, and keeps nothing besides the "
        "network."
    )


def test_less_of_forgetting_is_better(ask: Ask) -> None:
    accs = {"naive": around(0.35), "er": around(0.802)[::-1], "joint": around(0.883)}
    first, second = verdict(ask(accs, COSTS, metric="forgetting"))
    assert first == (
        "ER is best: its forgetting is 0.15, joint's 0.03 (ahead of naive by 0.68, p < 0.001, 6 "
        "seeds)."
    )
    assert second.startswith("ER reaches an ACC of 0.80 (naive 0.35), takes 2.3 times naive's")


def test_what_was_not_measured_is_left_out(ask: Ask) -> None:
    gone = dict.fromkeys(("flops", "seconds", "buffer_bytes", "memory_bytes", "forgetting"))
    accs = {"er": around(0.8), "ewc": around(0.5)}
    _, second = verdict(ask(accs, {"er": gone, "ewc": gone}))
    assert second == "What ER costs was not measured."
    with_time = {"er": gone | {"seconds": 1234.5}}
    _, second = verdict(ask({"er": {9: 0.8}}, with_time))
    assert second == "ER takes 1,234 seconds."


def test_runs_that_are_not_complete_are_counted(ask: Ask, run_folder) -> None:
    run_folder(strategy="ewc", seed=7, status="failed")
    run_folder(strategy="er", seed=7, status="running")
    _, second = verdict(ask({"er": around(0.8)}))
    assert second.endswith("; 2 runs are not complete (ER and EWC).")


def test_several_streams_are_named(ask: Ask) -> None:
    ask({"er": around(0.8)}, benchmark="a")
    found = ask({"er": around(0.7)}, benchmark="b")
    sentences = verdict(found)
    assert [s.partition(": ")[0] for s in sentences[::2]] == [s.title for s in found.streams]
    assert len(sentences) == 4
    assert verdict(found.streams[1])[0].startswith("ER reaches 0.70; ")


def test_a_stream_without_any_result_is_said(ask: Ask, run_folder) -> None:
    run_folder(benchmark="a", status="failed")
    found = ask({"er": around(0.7)}, benchmark="b")
    assert verdict(found)[0] == "a, 3 tasks, domain-IL: No complete run has ACC."


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.8284, "ACC", "0.83"),
        (0.0034, "ACC", "0.003"),
        (-0.0001, "BWT", "0.000"),
        (0.0, "ACC", "0.00"),
        (31_879_290_880, "flops", "31.9 GFLOPs"),
        (0, "memory_bytes", "0 B"),
        (383_148_032, "peak_memory_bytes", "383 MB"),
        (1.5, "train_seconds", "1.5 seconds"),
        (89_610, "parameters", "89,610 parameters"),
    ],
)
def test_numbers_have_few_digits_and_a_unit(value: float, metric: str, text: str) -> None:
    assert amount(value, metric) == text


def test_ratios_have_two_digits_that_matter() -> None:
    assert [times(r) for r in (2.345, 1, 12.4, 1234, 0.5, 0.0123)] == [
        *("2.3", "1.0", "12", "1,234", "0.5", "0.012")
    ]
