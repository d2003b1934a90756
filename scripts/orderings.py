"""The orderings that the field agrees on, on Split MNIST with our presets and five seeds.

    python scripts/orderings.py                     run them (about ten minutes on two cores)
    python scripts/orderings.py --from multirun/... read finished sweeps instead

Class-incremental: joint > DER++ > ER > LwF > naive, iCaRL within 0.03 of ER, generative replay over
LwF, EWC and SI within 0.03 of naive. Task-incremental: PackNet, progressive and separate networks
forget exactly nothing. Writes results/orderings.csv and the table in docs/reproduction.md between
its two markers; exits with 1 if one of these does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd
from reproduce import ROOT, into_page, read, run

MARKERS = ("<!-- orderings: made by scripts/orderings.py -->", "<!-- end of orderings -->")
CLASS = ("joint", "derpp", "er", "icarl", "generative_replay", "lwf", "si", "ewc", "naive")
TASK = ("packnet", "pnn", "separate")
NAMES = [
    *(f"preset/split_mnist_class/{strategy}" for strategy in CLASS),
    *(f"preset/split_mnist_task/{strategy}" for strategy in TASK),
]
CLOSE = 0.03


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per preset: mean and standard deviation over the seeds."""
    rows = []
    for name in NAMES:
        own = runs[runs.experiment == name].drop_duplicates("seed")
        rows.append(
            {
                "experiment": name,
                "n": len(own),
                "ACC": own.ACC.mean(),
                "ACC_sd": own.ACC.std(),
                "forgetting": own.forgetting.mean(),
                "largest_forgetting": own.forgetting.max(),
            }
        )
    return pd.DataFrame(rows)


def failures(rows: pd.DataFrame) -> list[str]:
    """What does not hold."""
    acc = {
        n.removeprefix("preset/split_mnist_class/"): v
        for n, v in zip(rows.experiment, rows.ACC, strict=True)
    }
    claims = {
        "joint > DER++": acc["joint"] > acc["derpp"],
        "DER++ > ER": acc["derpp"] > acc["er"],
        "iCaRL near ER": abs(acc["icarl"] - acc["er"]) < CLOSE,
        "ER > LwF": acc["er"] > acc["lwf"],
        "generative replay > LwF": acc["generative_replay"] > acc["lwf"],
        "LwF > EWC, SI and naive": acc["lwf"] > max(acc["ewc"], acc["si"], acc["naive"]),
        "EWC = naive": abs(acc["ewc"] - acc["naive"]) < CLOSE,
        "SI = naive": abs(acc["si"] - acc["naive"]) < CLOSE,
    }
    for row in rows.itertuples():
        if "split_mnist_task/" in row.experiment:
            claims[f"{row.experiment} forgets nothing"] = row.largest_forgetting == 0
    claims |= {f"{row.experiment} has five seeds": row.n == 5 for row in rows.itertuples()}
    return [claim for claim, holds in claims.items() if not holds]


def markdown(rows: pd.DataFrame) -> str:
    """The page's table."""
    lines = ["| `experiment=` | ACC | forgetting |", "|---|---|---|"]
    for row in rows.itertuples():
        acc = f"{row.ACC:.4f} ± {row.ACC_sd:.4f}"
        lines.append(f"| `{row.experiment}` | {acc} | {row.forgetting:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Run or read, check, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folders", nargs="+", type=Path, help="finished sweeps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    arguments = parser.parse_args()
    if arguments.folders:
        rows = table(read(arguments.folders))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(NAMES, Path(folder), arguments.threads)
            rows = table(read([Path(folder)]))
    rows.to_csv(ROOT / "results" / "orderings.csv", index=False)
    into_page(MARKERS, markdown(rows))
    print(markdown(rows))
    wrong = failures(rows)
    print("\n".join(f"does not hold: {claim}" for claim in wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
