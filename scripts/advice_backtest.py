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
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import pandas as pd
from reproduce import ROOT, into_page

from cl_runner.advising import predict
from cl_runner.advising.advice import first
from cl_runner.advising.predict import BOUNDS, Case, Expected, Table
from cl_runner.advising.tables import RESULTS, STREAMS, read

LEVELS = {"data": "data set and kind", "nothing": "data set"}
CSV, REGRET = ROOT / "results" / "advice.csv", ROOT / "results" / "advice_regret.csv"
PAGE = ROOT / "docs" / "advise.md"
SCENARIOS = ("class", "domain", "task")
ORDERS: dict[str, Callable[[Expected], float]] = {
    "accuracy": lambda e: -e.score,
    "position": lambda e: -(e.position if e.position is not None else 0.0),
    "rank": lambda e: e.rank,
}


def regrets(case: Case, rest: Table, advised: str) -> dict[str, Any]:
    """What the best strategy has more than that which a rule takes."""
    c = predict.chance(case.stream)
    acc = {n: r["ACC"] if r["ACC"] is not None else c for n, r in case.truth.items()}
    acc = {n: a for n, a in acc.items() if n not in BOUNDS}
    best = max(acc, key=lambda n: acc[n])
    average = best_on_average(case, rest)
    return {
        "best": best,
        "best_ACC": acc[best],
        "advised": advised,
        "regret": round(acc[best] - acc[advised], 4),
        "regret_er": round(acc[best] - acc["er"], 4),
        "on_average": average,
        "regret_on_average": round(acc[best] - acc[average], 4),
        "regret_random": round(acc[best] - mean(acc.values()), 4),
    }


def best_on_average(case: Case, rest: Table) -> str:
    """The strategy of the best mean rank on all streams that are left, of the same scenario."""
    ranks: dict[str, list[float]] = {}
    for stream in rest.streams:
        if stream["scenario"] != case.stream["scenario"]:
            continue
        rows = rest.of(stream)
        for name in rows:
            rank = None if name in BOUNDS else predict.rank_of(name, rows)
            if rank is not None and name in case.truth:
                ranks.setdefault(name, []).append(rank)
    return min(ranks, key=lambda n: (mean(ranks[n]), n))


def tested(
    table: Table, level: str, k: int, order: Callable[[Expected], float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of both files for one way of leaving out."""
    rows, of_streams = [], []
    for case in predict.left_out(table, level, k):
        gone = [s for s in table.streams if predict.is_gone(s, case.stream, level)]
        rest = table.without(gone)
        scenario = case.stream["scenario"]
        others = [o for o in predict.left_out(rest, level, k) if o.stream["scenario"] == scenario]
        q = predict.factor(predict.errors(others))
        key = {
            "left_out": LEVELS[level],
            "stream": case.stream["stream"],
            "scenario": scenario,
            "distance": round(case.distance, 3),
            "farthest_known": round(max(o.distance for o in others), 3),
        }
        c = predict.chance(case.stream)
        ways = [e for n, e in case.expected.items() if n not in BOUNDS and n in case.truth]
        if not ways:
            continue
        of_streams.append(key | regrets(case, rest, min(ways, key=order).strategy))
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
                    "inside": int(low <= row["ACC"] <= high),
                }
            )
    return rows, of_streams


def summaries(rows: pd.DataFrame, of_streams: pd.DataFrame) -> list[dict[str, Any]]:
    """Coverage and regret by way of leaving out and scenario, and over all scenarios."""
    found = []
    for level in LEVELS.values():
        for scenario in (*SCENARIOS, "all"):
            own, streams = (
                f[(f.left_out == level) & (f.scenario.eq(scenario) | (scenario == "all"))]
                for f in (rows, of_streams)
            )
            found.append(
                {
                    "left out": level,
                    "scenario": scenario,
                    "streams": len(streams),
                    "predictions": len(own),
                    "coverage": own.inside.mean(),
                    "width": (own.high - own.low).median(),
                    "error": (own.ACC - own.expected).abs().median(),
                    "regret": streams.regret.mean(),
                    "always er": streams.regret_er.mean(),
                    "best on average": streams.regret_on_average.mean(),
                    "random": streams.regret_random.mean(),
                }
            )
    return found


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """A table of the page."""
    head = list(found[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found:
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def variants(table: Table) -> list[dict[str, Any]]:
    """Coverage and regret over all scenarios for other numbers of streams and other orders."""
    found = []
    for k in (3, 5, 8):
        for name, order in ORDERS.items():
            for level, gone in LEVELS.items():
                rows, of_streams = map(pd.DataFrame, tested(table, level, k, order))
                found.append(
                    {
                        "streams": k,
                        "order by": name,
                        "left out": gone,
                        "coverage": rows.inside.mean(),
                        "width": (rows.high - rows.low).median(),
                        "regret": of_streams.regret.mean(),
                    }
                )
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
    shown = markdown(summaries(pd.DataFrame(rows), pd.DataFrame(of_streams)))
    print(shown)
    into_page(marked("backtest"), shown, PAGE)
    if chosen.variants:
        shown = markdown(variants(table))
        print(shown)
        into_page(marked("variants"), shown, PAGE)


def marked(name: str) -> tuple[str, str]:
    """The two markers of a table in the page."""
    return f"<!-- {name}: made by scripts/advice_backtest.py -->", f"<!-- end of {name} -->"


if __name__ == "__main__":
    main()
