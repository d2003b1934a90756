"""Run experiments of published cells over five seeds and hold the means against the papers.

    python scripts/reproduce.py                          all of results/reproduction.csv, again
    python scripts/reproduce.py hsu2018/ewc_split_task   one, or some of results/published.csv
    python scripts/reproduce.py --from multirun/...      finished sweeps, instead of running

What results/published.csv has beyond results/reproduction.csv waits for a GPU and is run when it is
named. Each is `cl-run -m experiment=NAME seed=0,1,2,3,4`. Writes results/reproduction.csv and the
table in docs/reproduction.md between its two markers, or the rows of what is named or found; exits
with 1 if a mean lies outside its interval, which is the published mean +- max(0.02, 3 SD sqrt(1/5 +
1/n)), narrower near chance and ceiling; without a published SD +- 0.02.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from cl_runner.cli import choices, renamed

ROOT = Path(__file__).resolve().parents[1]
MARKERS = ("<!-- reproduction: made by scripts/reproduce.py -->", "<!-- end of reproduction -->")
PAGE = ROOT / "docs" / "reproduction.md"
SEEDS = "0,1,2,3,4"


def run(experiments: list[str], folder: Path, threads: int) -> None:
    """One sweep over the experiments and the seeds, in `folder`."""
    command = [
        str(Path(sys.executable).with_name("cl-run")),
        *("-m", f"experiment={','.join(experiments)}", f"seed={SEEDS}"),
        *(f"threads={threads}", "verbose=false", f"hydra.sweep.dir={folder}"),
    ]
    subprocess.run(command, check=True)


def read(folders: list[Path]) -> pd.DataFrame:
    """The summaries of all complete runs below the folders, with the experiment of each."""
    rows = []
    for path in (p for folder in folders for p in sorted(folder.glob("*/summary.csv"))):
        overrides = list(OmegaConf.load(path.with_name("overrides.yaml")))
        given = [o.split("=", 1)[1] for o in overrides if o.startswith("+experiment=")]
        names = [renamed.current(name) for name in given]
        summary = pd.read_csv(path)
        if names and summary.loc[0, "status"] == "complete":
            rows.append(summary.assign(experiment=names[0]))
    return pd.concat(rows, ignore_index=True)


def compare(published: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """A row per published cell that was run."""
    rows = []
    for cell in published.itertuples():
        own = runs[runs.experiment.isin(same_runs(cell.experiment))].drop_duplicates("seed")
        if len(own):
            values = own[cell.column]
            rows.append(
                {
                    **cell._asdict(),
                    "our_mean": values.mean(),
                    "our_sd": values.std(),
                    "our_n": len(values),
                    "seconds": own.seconds.median(),
                    "inside": bool(cell.low <= values.mean() <= cell.high),
                }
            )
    return pd.DataFrame(rows).drop(columns="Index")


def wanted(named: list[str], old: pd.DataFrame) -> list[str]:
    """The experiments to run: those that are named, or else those that were run before."""
    return named or list(old.experiment)


def merged(table: pd.DataFrame, old: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The old table with the rows of `table` in the place of its own, ordered as published."""
    kept = old[~old.experiment.isin(table.experiment)]
    rows = pd.concat([kept, table], ignore_index=True).set_index("experiment")
    return rows.loc[[name for name in published.experiment if name in rows.index]].reset_index()


def same_runs(experiment: str) -> list[str]:
    """The experiments whose runs are those of one: itself, and that which it takes whole.

    The task-incremental reading of a class-incremental run is such an experiment.
    """
    paths = [f"experiment/{experiment}", *choices.bases(f"experiment/{experiment}")]
    parts = [path.partition("/") for path in paths]
    return [name for group, _, name in parts if group == "experiment"]


def markdown(table: pd.DataFrame) -> str:
    """The page's table."""
    lines = [
        "| strategy | stream | scenario | published | here | interval | `experiment=` |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        spread = "" if math.isnan(row.our_sd) else f" ± {row.our_sd:.4f}"
        told = "" if math.isnan(row.sd) else f" ± {row.sd:.4f} (n = {int(row.n)})"
        mark = "" if row.inside else " **outside**"
        lines.append(
            f"| {row.strategy} | {row.stream} | {row.scenario} | {row.mean:.4f}{told} "
            f"| {row.our_mean:.4f}{spread} (n = {row.our_n}){mark} "
            f"| {row.low:.3f} to {row.high:.3f} | `{row.experiment}` |"
        )
    return "\n".join(lines)


def into_page(markers: tuple[str, str], text: str, page: Path = PAGE) -> None:
    """Replace what stands between two markers of docs/reproduction.md."""
    before, rest = page.read_text(encoding="utf-8").split(markers[0])
    after = rest.split(markers[1])[1]
    page.write_text(f"{before}{markers[0]}\n{text}\n{markers[1]}{after}", encoding="utf-8")


def run_or_read(
    about: str, run: Callable[[Path], None], read: Callable[[Path], pd.DataFrame]
) -> pd.DataFrame:
    """What `read` makes of the sweeps that `run` leaves in a folder, or that `--from` names.

    about: the docstring of the script whose command line this is.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--from", dest="folder", type=Path, help="finished sweeps")
    folder = parser.parse_args().folder
    if folder is not None:
        return read(folder)
    with tempfile.TemporaryDirectory() as temporary:
        run(Path(temporary))
        return read(Path(temporary))


def main() -> None:
    """Run or read, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", help="default: those run before")
    parser.add_argument("--from", dest="folders", nargs="+", type=Path, help="finished sweeps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    arguments = parser.parse_args()
    everything = published = pd.read_csv(ROOT / "results" / "published.csv", dtype={"n": "Int64"})
    unknown = set(arguments.experiments) - set(published.experiment)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}; see results/published.csv")
    file = ROOT / "results" / "reproduction.csv"
    old = pd.read_csv(file, dtype={"n": "Int64"})
    if arguments.experiments:
        published = published[published.experiment.isin(arguments.experiments)]
    if arguments.folders:
        table = compare(published, read(arguments.folders))
    else:
        published = published[published.experiment.isin(wanted(arguments.experiments, old))]
        with tempfile.TemporaryDirectory() as folder:
            run(list(published.experiment), Path(folder), arguments.threads)
            table = compare(published, read([Path(folder)]))
    some = arguments.experiments or arguments.folders
    whole = merged(table, old, everything) if some else table
    whole.to_csv(file, index=False)
    into_page(MARKERS, markdown(whole))
    print(markdown(table))
    sys.exit(0 if table.inside.all() else 1)


if __name__ == "__main__":
    main()
