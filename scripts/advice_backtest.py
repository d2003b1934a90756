"""How good the advice of `cl-run advise` would have been for streams that it does not know.

    python scripts/advice_backtest.py              seconds; reads cl_runner/advising/*.csv
    python scripts/advice_backtest.py --variants   also what other choices would have given

Each stream of the table is left out in turn, with all streams of the same data set and kind of
change, or with all of the same data set, in every scenario; the rest predicts it. The width of the
intervals is that which leaving out streams of the rest gives: nothing that was measured on a
stream, or on its relatives, has a part in its prediction. Writes results/advice.csv (a row per
stream left out and strategy), results/advice_regret.csv (a row per stream left out) and the tables
in docs/advise.md between their markers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import product
from statistics import mean
from typing import Any

import pandas as pd
from reproduce import ROOT, into_page

from cl_runner.advising import predict
from cl_runner.advising.advice import first
from cl_runner.advising.predict import BOUNDS, Case, Expected, Table
from cl_runner.advising.similar import WORDS
from cl_runner.advising.tables import RESULTS, STREAMS, read

LEVELS = {"kind": "stream", "data": "data set and kind", "nothing": "data set"}
CSV, REGRET = ROOT / "results" / "advice.csv", ROOT / "results" / "advice_regret.csv"
PAGE = ROOT / "docs" / "advise.md"
# The strategies among which one is taken, by those that are left out.
AMONG = {"all": (), "those that train the network": ("ncm", "slda", "ridge")}
SCENARIOS = ("class", "domain", "task")
ORDERS: dict[str, Callable[[Expected], float]] = {
    "accuracy": lambda e: -e.score,
    "position": lambda e: -(e.position if e.position is not None else 0.0),
    "rank": lambda e: e.rank,
}


def regrets(
    case: Case, rest: Table, order: Callable[[Expected], float]
) -> Iterator[dict[str, Any]]:
    """What the best strategy has more than that which a rule takes, among some strategies each.

    A strategy that diverged has the accuracy of a guess.
    """
    c = predict.chance(case.stream)
    acc = {n: r["ACC"] if r["ACC"] is not None else c for n, r in case.truth.items()}
    for among, gone in AMONG.items():
        own = {n: a for n, a in acc.items() if n in case.expected and n not in (*BOUNDS, *gone)}
        advised = min(own, key=lambda n: (order(case.expected[n]), n))
        best, average = max(own, key=lambda n: own[n]), best_on_average(own, case, rest)
        yield {
            "among": among,
            "best": best,
            "best_ACC": own[best],
            "advised": advised,
            "regret": round(own[best] - own[advised], 4),
            "regret_er": round(own[best] - own["er"], 4),
            "on_average": average,
            "regret_on_average": round(own[best] - own[average], 4),
            "regret_random": round(own[best] - mean(own.values()), 4),
        }


def best_on_average(names: Collection[str], case: Case, rest: Table) -> str:
    """Of some strategies that of the best mean rank on the streams left of the same scenario."""
    rows = [rest.of(s) for s in rest.streams if s["scenario"] == case.stream["scenario"]]
    ranks = {n: [predict.rank_of(n, own) for own in rows if n in own] for n in names}
    known = {n: [rank for rank in own if rank is not None] for n, own in ranks.items()}
    return min((n for n in names if known[n]), key=lambda n: (mean(known[n]), n))


def tested(
    table: Table, level: str, k: int, order: Callable[[Expected], float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of both files for one way of leaving out."""
    rows, of_streams = [], []
    for case in predict.left_out(table, level, k):
        gone = [s for s in table.streams if predict.is_gone(s, case.stream, level)]
        rest = table.without(gone)
        scenario = case.stream["scenario"]
        others = predict.left_out(rest, level, k)
        q = predict.factor(predict.errors(others))
        distances = [o.distance for o in others if o.stream["scenario"] == scenario]
        key = {
            "left_out": LEVELS[level],
            "stream": case.stream["stream"],
            "scenario": scenario,
            "data": case.stream["data"],
            "distance": round(case.distance, 3),
            "farthest_known": round(max(distances), 3),
        }
        c = predict.chance(case.stream)
        of_streams += [key | regret for regret in regrets(case, rest, order)]
        for name, row in case.truth.items():
            if name not in case.expected or row["ACC"] is None:
                continue
            own = case.expected[name]
            low, high = predict.interval(own, q, c)
            rows.append(
                key
                | {
                    "strategy": name,
                    "ACC": row["ACC"],
                    "expected": round(predict.accuracy(own.score, c), 4),
                    "low": round(low, 4),
                    "high": round(high, 4),
                    "inside": int(round(low, 4) <= row["ACC"] <= round(high, 4)),
                    "gain": predict.position(name, case.truth),
                    "expected_gain": own.position,
                }
            )
    return rows, of_streams


def summaries(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Coverage by way of leaving out and scenario, and over all scenarios."""
    found = []
    for level in LEVELS.values():
        for scenario in (*SCENARIOS, "all"):
            own = rows[
                (rows.left_out == level) & (rows.scenario.eq(scenario) | (scenario == "all"))
            ]
            found.append(
                {
                    "left out": level,
                    "scenario": scenario,
                    "streams": len(own.drop_duplicates(["stream", "scenario"])),
                    "predictions": len(own),
                    "coverage": own.inside.mean(),
                    "width": (own.high - own.low).median(),
                    "error": (own.ACC - own.expected).abs().median(),
                    "error of gain": (own.gain - own.expected_gain).abs().median(),
                }
            )
    return found


def by_data(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Coverage and error by data set, where all streams of it were left out."""
    found = []
    for data, own in rows[rows.left_out == LEVELS["nothing"]].groupby("data"):
        found.append(
            {
                "data set": data,
                "streams": len(own.drop_duplicates(["stream", "scenario"])),
                "coverage": own.inside.mean(),
                "width": (own.high - own.low).median(),
                "mean of ACC - expected": (own.ACC - own.expected).mean(),
            }
        )
    return found


def regret_summaries(of_streams: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean regrets by way of leaving out, by the strategies among which is chosen, and scenario."""
    found = []
    for level in LEVELS.values():
        for among in AMONG:
            for scenario in (*SCENARIOS, "all"):
                own = of_streams[
                    (of_streams.left_out == level)
                    & (of_streams.among == among)
                    & (of_streams.scenario.eq(scenario) | (scenario == "all"))
                ]
                found.append(
                    {
                        "left out": level,
                        "among": among,
                        "scenario": scenario,
                        "streams": len(own),
                        "advised": own.regret.mean(),
                        "at most": own.regret.max(),
                        "always er": own.regret_er.mean(),
                        "best on average": own.regret_on_average.mean(),
                        "random": own.regret_random.mean(),
                    }
                )
    return found


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """A table of the page."""
    head = list(found[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found:
        cells = [shown(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A cell; what is not there is empty."""
    if not isinstance(value, float):
        return str(value)
    return "" if pd.isna(value) else f"{value:.3f}"


def variants(table: Table) -> list[dict[str, Any]]:
    """Coverage and regret over all scenarios by other distances, numbers of streams and orders."""
    found, as_it_is = [], WORDS["data"]
    for weight, k in product((0.0, as_it_is), (3, 5, 8)):
        WORDS["data"] = weight
        for (name, order), (level, gone) in product(ORDERS.items(), LEVELS.items()):
            rows, of_streams = map(pd.DataFrame, tested(table, level, k, order))
            regret = of_streams.groupby("among").regret.mean()
            found.append(
                {
                    "another data set": weight,
                    "streams": k,
                    "order by": name,
                    "left out": gone,
                    "coverage": rows.inside.mean(),
                    "width": (rows.high - rows.low).median(),
                    **{f"regret among {among}": float(regret[among]) for among in AMONG},
                }
            )
    WORDS["data"] = as_it_is
    return found


def main() -> None:
    """Leave out, write, and put the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", action="store_true", help="other choices, too")
    chosen = parser.parse_args()
    table = predict.table_of(read(STREAMS), read(RESULTS))
    rows, of_streams = [], []
    for level in LEVELS:
        more, regret = tested(table, level, predict.K, first)
        rows += more
        of_streams += regret
    pd.DataFrame(rows).to_csv(CSV, index=False)
    pd.DataFrame(of_streams).to_csv(REGRET, index=False)
    for name, found in (
        ("backtest", summaries(pd.DataFrame(rows))),
        ("by data", by_data(pd.DataFrame(rows))),
        ("regret", regret_summaries(pd.DataFrame(of_streams))),
    ):
        print(markdown(found))
        into_page(marked(name), markdown(found), PAGE)
    if chosen.variants:
        tried = markdown(variants(table))
        print(tried)
        into_page(marked("variants"), tried, PAGE)


def marked(name: str) -> tuple[str, str]:
    """The two markers of a table in the page."""
    return f"<!-- {name}: made by scripts/advice_backtest.py -->", f"<!-- end of {name} -->"


if __name__ == "__main__":
    main()
