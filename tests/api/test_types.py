"""What a user's type checker and editor see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
from pathlib import Path

import cl_runner as cl

run: cl.Run = cl.run("strategy=ewc", seed=0, training__epochs=2, out=Path("run"), resume=True)
runs: cl.Runs = cl.sweep("strategy=ewc,er", seed=[0, 1, 2], out="sweep")
loaded = cl.load_runs(["run", Path("sweep")])
first: cl.Run = loaded[0]
some: cl.Runs = loaded[1:].where(strategy="er", seed=[0, 1]).failed
folders: list[Path] = [one.folder for one in some]
comparison: cl.Comparison = cl.compare([run, runs, "more"], baseline="naive", metrics=["ACC"])
text: str = comparison.verdict + comparison.to_latex() + run.status + first.reason
names: list[str] = comparison.figures
page: Path = comparison.to_html("page.html")
split = run.config["training"]
try:
    model = cl.load_model(run)
    model.eval()
except cl.UserError as error:
    print(error, cl.__version__)
except cl.Diverged:
    pass
reveal_type(cl.run)
reveal_type(run.model)
"""
WRONG = """
import cl_runner as cl

cl.run(3)
cl.run("seed=1").folders
cl.nothing()
number: int = cl.load_runs("a")[0]
"""


@pytest.mark.slow
def test_a_strict_checker_takes_a_program_and_finds_what_is_wrong(tmp_path):
    """With the settings and the cache of this repository, which CI has filled by then."""
    pytest.importorskip("mypy", reason="mypy is not installed: pip install '.[dev]'")
    for name, text in (("right.py", PROGRAM), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [str(tmp_path / name) for name in ("right.py", "wrong.py")]
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *files]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    lines = done.stdout.replace(f"{tmp_path}/", "").splitlines()
    right = [line for line in lines if "right.py" in line]
    assert all("note: Revealed type is" in line for line in right) and len(right) == 2, done
    assert "-> cl_runner.api.runs.Run" in right[0].replace('"', "")
    assert right[1].endswith('Module"')
    wrong = [line.split(":")[1] for line in lines if "wrong.py" in line and "error" in line]
    assert wrong == ["4", "5", "6", "7"], done.stdout
