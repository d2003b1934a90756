"""What checks a commit elsewhere: `.ci/run` finds its way on each system, and ci.yml calls it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None

REPOSITORY = Path(__file__).parents[1]
WORKFLOW = REPOSITORY / ".github/workflows/ci.yml"
BASH = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
# A Python that makes an environment like Windows's or like the others', and tells what it is asked.
PYTHON = """#!/bin/sh
printf '%s %s\\n' "$(basename "$0")" "$*" >> "$CALLS"
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/$PROGRAMS"
    for name in python ruff mypy; do cp "$0" "$3/$PROGRAMS/$name"; done
fi
if [ "$1 $2" = "-m pytest" ]; then cat; exit "$TESTS_END_WITH"; fi
"""
PYTEST = "python -m pytest -n auto --dist worksteal"


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    text = WORKFLOW.read_text(encoding="utf-8")
    return yaml.load(text, Loader=yaml.BaseLoader)  # which takes the key "on" for no truth value


def test_the_workflow_runs_the_one_command_on_three_systems(workflow):
    (job,) = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert job["runs-on"] == "${{ matrix.os }}"
    (command,) = (step for step in job["steps"] if "run" in step)
    assert command["run"] == ".ci/run"
    assert command["env"]["PYTHON"] == "python"
    assert job["defaults"]["run"]["shell"] == "bash"
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)
    (python,) = (s for s in job["steps"] if s.get("uses", "").startswith("actions/setup-python@"))
    assert python["with"]["python-version"] == "${{ matrix.python }}"


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
def test_the_workflow_takes_every_python_that_the_package_says(workflow):
    (job,) = workflow["jobs"].values()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d", c)]
    assert job["strategy"]["matrix"]["python"] == said


def test_the_workflow_may_only_read_and_names_versions(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] == "true"
    assert set(workflow["on"]) == {"push", "pull_request", "workflow_dispatch"}
    (job,) = workflow["jobs"].values()
    assert "permissions" not in job
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert actions and all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)


@BASH
@pytest.mark.unix
@pytest.mark.parametrize("programs", ["bin", "Scripts"])
@pytest.mark.parametrize("code", [0, 3])
def test_the_command_finds_its_environment_and_passes_on_how_the_tests_end(
    tmp_path, programs, code
):
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON, encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / "environments").mkdir()
    env = os.environ | {
        "PYTHON": str(python),
        "CALLS": str(calls),
        "PROGRAMS": programs,
        "TESTS_END_WITH": str(code),
        "TMPDIR": str(tmp_path / "environments"),
    }
    done = subprocess.run(
        ["bash", REPOSITORY / ".ci/run"],
        env=env,
        cwd=tmp_path,
        input="nobody reads this",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == f"{PYTEST}\n"
    venv, *rest = calls.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(rf"python -m venv {tmp_path}/environments/cl_runner\.\w+", venv)
    assert rest == [
        "python -m pip install torch==2.13.0 torchvision",
        "python -m pip install -e .[dev]",
        "ruff check",
        "ruff format --check",
        "mypy ",
        PYTEST,
    ]
    assert not list((tmp_path / "environments").iterdir())
