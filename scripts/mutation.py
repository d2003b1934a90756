"""How many changes to the methods do their own tests notice?

    pip install mutmut==3.8.1
    python scripts/mutation.py DIR                            all (hours on one core)
    python scripts/mutation.py DIR --only losses,er,ewc       some files; the others' rows stay
    python scripts/mutation.py DIR --only er --again          its survivors without a reason, again
    python scripts/mutation.py DIR --page                     only the page, from the two tables

mutmut changes one operator, number, argument or name at a time in a file of functional/ or
strategies/, and runs the quick tests that belong to the file and reach the function (`tests_of`).
It works in DIR, on copies of the last commit, and goes on there where it was stopped. Writes
results/mutants.csv: for each file the number of mutants and of those that were noticed;
results/survivors.csv: those that were not, each with a reason that is kept from run to run; and the
tables of docs/mutation.md (alone, of the files as they are, with --page). Exits with 1 if fewer
than 90 % of all are noticed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from reproduce import ROOT

# Only lines that hold nothing but words are left out: parts of messages.
CONFIGURATION = """
[tool.mutmut]
source_paths = ["cl_runner"]
only_mutate = ["{file}"]
also_copy = ["conf", "hydra_plugins", "README.md", "docs", "scripts", "results"]
do_not_mutate_patterns = ['^\\s+f?"[^"]*"[,)]*$']
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-m", "not slow", {plugins}]
"""
PLUGINS = ("no:cacheprovider", "no:xdist", "no:unraisableexception", "quick_first")
COUNTS = ROOT / "results" / "mutants.csv"
SURVIVORS = ROOT / "results" / "survivors.csv"
PAGE = ROOT / "docs" / "mutation.md"
NO_REASON = "no reason yet: to be run again, with the tests that were written since"
FOUND = "## What was found\n"  # the page from here on is written here
NOTICED = ("killed", "timeout", "segfault")
WANTED = 0.9
# Besides the tests of the same name: what is shared is tested where it is used.
MORE = {
    "__init__": ("tests/test_config.py", "tests/test_plugins.py"),
    "base": ("tests/strategies/test_naive.py", "tests/strategies/test_lwf.py"),
    "er": ("tests/strategies/test_replay_augmented.py", "tests/strategies/test_derpp.py"),
    "ewc": ("tests/strategies/test_er_ewc.py", "tests/strategies/test_imm.py"),
    "exemplars": ("tests/strategies/test_icarl.py",),
    "features": ("tests/functional/test_exemplars.py", "tests/strategies/test_icarl.py"),
    "frozen": ("tests/strategies/test_packnet.py", "tests/strategies/test_lwf.py"),
    "costs": ("tests/strategies/test_generative_replay.py",),
    "generative": ("tests/strategies/test_generative_replay.py",),
    "generators": ("tests/strategies/test_generative_replay.py", "tests/strategies/test_bir.py"),
    "gradients": ("tests/functional/test_projection.py",),
    "growing": ("tests/strategies/test_den.py",),
    "icarl": ("tests/strategies/test_er.py",),
    "importance": ("tests/functional/test_importance.py",),
    "losses": ("tests/strategies/test_lwf.py", "tests/strategies/test_derpp.py"),
    "mer": ("tests/strategies/test_replay_augmented.py",),
    "overlap": ("tests/strategies/test_ewc.py",),
    "penalty": ("tests/strategies/test_ewc.py", "tests/strategies/test_mas.py"),
    "pixels": ("tests/strategies/test_generative_replay.py",),
    "scholar": ("tests/strategies/test_generative_replay.py", "tests/strategies/test_bir.py"),
    "projection": ("tests/strategies/test_gem.py", "tests/strategies/test_gpm.py"),
    "replay": ("tests/strategies/test_er.py", "tests/strategies/test_memory_kinds.py"),
}


def files() -> list[Path]:
    """What is changed, relative to the repository."""
    rooms = (ROOT / "cl_runner" / r for r in ("functional", "strategies", "strategies/parts"))
    found = [path.relative_to(ROOT) for room in rooms for path in sorted(room.glob("*.py"))]
    return [path for path in found if (ROOT / path).read_text(encoding="utf-8").count("\n") > 1]


def tests_of(file: Path) -> list[str]:
    """The files of tests that belong to a file."""
    room = f"tests/{file.parts[1]}"
    names = (file.stem, "bounds", "memory_kinds", "step_output")  # the latter are on all strategies
    own = [f"{room}/test_{name}.py" for name in names]
    return [*(path for path in own if (ROOT / path).exists()), *MORE.get(file.stem, ())]


def copy(file: Path, folder: Path) -> None:
    """The last commit, configured for mutmut, which keeps what it knows of unchanged functions."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["git", "archive", "HEAD"]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=folder, check=True, input=archive.stdout)
    plugins = ", ".join(f'"-p", "{name}"' for name in PLUGINS)
    text = CONFIGURATION.format(file=file.as_posix(), tests=tests_of(file), plugins=plugins)
    own = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(own + text, encoding="utf-8")


def mutmut(folder: Path, *arguments: str) -> str:
    """What mutmut says."""
    scripts = str(ROOT / "scripts")  # of quick_first
    done = subprocess.run(
        ["mutmut", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": scripts},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{folder}: mutmut failed\n{done.stdout[-5000:]}{done.stderr}")
    return done.stdout


def results(folder: Path) -> pd.DataFrame:
    """A row per mutant: name, status."""
    rows = re.findall(r"^\s*(\S+): (.+)$", mutmut(folder, "results", "--all", "true"), re.MULTILINE)
    return pd.DataFrame(rows, columns=["name", "status"])


def reasons_of(names: pd.Series) -> pd.Series:
    """What the table of survivors says of each mutant; empty where it says nothing."""
    if not SURVIVORS.exists():
        return names.map(lambda _: "")
    reasons = pd.read_csv(SURVIVORS, keep_default_na=False).set_index("name").reason
    return names.map(reasons).fillna("")


def mutate(file: Path, folder: Path, again: bool) -> pd.DataFrame:
    """Run mutmut on one file, or `again` on its survivors that have no reason yet."""
    copy(file, folder)
    run = ("run", "--max-children", "1")
    mutmut(folder, *run)
    rows = results(folder)
    names = rows.name[~rows.status.isin(NOTICED) & (reasons_of(rows.name) == "")]
    if again and len(names):
        mutmut(folder, *run, *names)
        rows = results(folder)
    noticed = int(rows.status.isin(NOTICED).sum())
    print(f"{file}: {noticed} of {len(rows)}", flush=True)
    return rows.assign(file=file.as_posix())


def kept(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those of the table at `path` on other files."""
    if not path.exists():
        return rows
    old = pd.read_csv(path, keep_default_na=False)
    return pd.concat([old[~old.file.isin(rows.file)], rows]).sort_values("file", kind="stable")


def found(counts: pd.DataFrame, survivors: pd.DataFrame) -> str:
    """The tables of the page: each file and each room, then the survivors by reason."""
    lines = ["| files | mutants | noticed | share |", "|---|---:|---:|---:|"]
    names = counts.file.str.removeprefix("cl_runner/")
    for room, own in counts.assign(file=names).groupby(names.str.split("/").str[0]):
        rows = [(f"`{row.file}`", row.mutants, row.noticed) for row in own.itertuples()]
        rows.append((f"**{room}/**", own.mutants.sum(), own.noticed.sum()))
        lines += [f"| {name} | {n} | {noticed} | {noticed / n:.1%} |" for name, n, noticed in rows]
    lines += ["", "The survivors, by reason:", ""]
    lines += ["| what the change does | mutants | where |", "|---|---:|---|"]
    stems = survivors.file.str.extract(r"(\w+)\.py$")[0]
    functions = survivors.name.str.extract(r"\.x(?:ǁ\w+ǁ|_)(\w+)__mutmut_\d+$")[0]
    survivors = survivors.assign(where="`" + stems + "." + functions + "`")
    groups = [(len(own), reason, set(own["where"])) for reason, own in survivors.groupby("reason")]
    for n, reason, where in sorted(groups, key=lambda group: (-group[0], group[1])):
        lines.append(f"| {reason or NO_REASON} | {n} | {', '.join(sorted(where))} |")
    return "\n".join(lines) + "\n"


def write_page() -> None:
    """The tables of the page, from those of results/."""
    before = PAGE.read_text(encoding="utf-8").partition(FOUND)[0]
    tables = (pd.read_csv(path, keep_default_na=False) for path in (COUNTS, SURVIVORS))
    PAGE.write_text(f"{before}{FOUND}\n{found(*tables)}", encoding="utf-8")


def main() -> None:
    """Run, write, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the copies are kept")
    parser.add_argument("--only", help="names of files, without .py")
    parser.add_argument("--again", action="store_true", help="the survivors, with new tests")
    parser.add_argument("--jobs", type=int, default=2, help="files at once, a thread each")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if arguments.page:
        return write_page()
    only = arguments.only.split(",") if arguments.only else None
    chosen = [file for file in files() if only is None or file.stem in only]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        parts = pool.map(
            lambda f: mutate(f, arguments.folder / f"{f.parent.name}-{f.stem}", arguments.again),
            chosen,
        )
        rows = pd.concat(parts)
    noticed = rows.status.isin(NOTICED)
    counts = rows.assign(noticed=noticed).groupby("file", sort=False)["noticed"]
    counts = counts.agg(mutants="size", noticed="sum").reset_index()
    counts = kept(COUNTS, counts)
    counts.to_csv(COUNTS, index=False)
    survivors = rows.loc[~noticed, ["file", "name", "status"]]
    survivors = survivors.assign(reason=reasons_of(survivors.name))
    kept(SURVIVORS, survivors).to_csv(SURVIVORS, index=False)
    write_page()
    share = counts.noticed.sum() / counts.mutants.sum()
    print(f"{counts.noticed.sum()} of {counts.mutants.sum()} mutants are noticed: {share:.1%}")
    sys.exit(1 if share < WANTED else 0)


if __name__ == "__main__":
    main()
