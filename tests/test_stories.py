"""The pages that tell a story: their commands run, in order, and print what the page shows.

In a block of the page a line that begins with `$ ` is a command, and what follows is what it
prints, where `...` stands for lines that are left out. A block of Python or YAML whose first line
is a comment with a path is a file that the reader writes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]
FEW = ("training.epochs=1", "model.hidden_sizes=[32]", "benchmark.train_fraction=0.5")
NUMBER = r"-?(?:\d[\d,]*)?\.?\d+"


class Step(NamedTuple):
    """A command with what the page says that it prints, or a file with its content."""

    command: str
    told: str
    file: str = ""


def steps(page: str) -> Iterator[Step]:
    """What the reader of a page does, in order."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    for _, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if path := re.match(r"# ([\w/]+\.(?:py|yaml))\n", block):
            yield Step("", block, path[1])
        elif block.startswith("$ "):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, told = re.sub(r" \\\n +", " ", part).partition("\n")
                yield Step(command, told)


def words(text: str) -> list[str]:
    """What is compared: without the times and names that differ from run to run."""
    text = re.sub(r"-[0-9a-f]{8}\b", "-########", text)
    return re.sub(rf"· {NUMBER} s\b|^{NUMBER} s ·", "·", text, flags=re.MULTILINE).split()


def alike(told: str, printed: str) -> bool:
    """Whether two words are equal; numbers with a point may differ in their last digits."""
    if told == printed:
        return True
    pattern = rf"(.*?)({NUMBER})(\D*)"
    ours, theirs = re.fullmatch(pattern, told), re.fullmatch(pattern, printed)
    if not ours or not theirs or "." not in told:
        return False
    numbers = [float(found[2].replace(",", "")) for found in (ours, theirs)]
    same = ours[1].replace("±", "") == theirs[1].replace("±", "") and ours[3] == theirs[3]
    return same and numbers[0] == pytest.approx(numbers[1], abs=0.03, rel=0.1)


def shows(told: Sequence[str], printed: Sequence[str]) -> str:
    """ "" if the page's words are those that were printed, else where they part."""
    parts = [part.split() for part in f" {' '.join(told)} ".split(" ... ")]
    at = 0
    for number, part in enumerate(parts):
        starts = range(at, len(printed) + 1) if number else [at]
        lengths = {start: common(part, printed[start:]) for start in starts}
        start = next((s for s in starts if lengths[s] == len(part)), None)
        if start is None:
            best = max(starts, key=lambda s: lengths[s])
            where = best + lengths[best]
            return f"{part[lengths[best] :][:6]} is not {' '.join(printed[where : where + 8])}"
        at = start + len(part)
    missing = [] if len(parts) > 1 and not parts[-1] else printed[at:]
    return f"not in the page: {' '.join(missing[:20])}" if missing else ""


def common(told: Sequence[str], printed: Sequence[str]) -> int:
    """How many words at the beginning are alike."""
    pairs = zip(told, printed, strict=False)
    return next(
        (i for i, pair in enumerate(pairs) if not alike(*pair)), min(len(told), len(printed))
    )


@pytest.fixture
def do(cl_run, forked, data_root, tmp_path) -> Callable[..., str]:
    """do(step, "key=value", ...): what a step prints; with settings for those that train."""

    def shell(command: str) -> CompletedProcess[str]:
        line = re.sub(r"^python ", f"{sys.executable} ", command)
        line = line.replace("scripts/", f"{REPOSITORY}/scripts/")
        return subprocess.run(
            line, shell=True, check=False, capture_output=True, text=True, cwd=tmp_path
        )

    def function(step: Step, *settings: str) -> str:
        if step.file:
            (tmp_path / step.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / step.file).write_text(step.told, encoding="utf-8")
            return ""
        inner = re.search(r"\$\((.*?)\)", step.command)
        told = shell(inner[1]).stdout.strip() if inner else ""
        command = step.command.replace(inner[0], told) if inner else step.command
        program, *args = shlex.split(command)
        if program == "cl-compare":
            code = "from cl_runner.comparing.cli import main; raise SystemExit(main())"
            done = forked(code, *args, cwd=tmp_path)
        elif program != "cl-run":
            done = shell(command)
        elif args[0] in ("list", "explain", "status", "export", "advise"):
            done = cl_run(*args, cwd=tmp_path)
        else:
            here = "import sys; sys.path.insert(0, '.')\n"  # where plugins are
            common = (f"data.root={data_root}", "device=cpu", *settings)
            done = cl_run(*args, *common, cwd=tmp_path, before=here)
        wrong = step.told.startswith("cl-run: ")
        assert done.returncode == (2 if wrong else 0), f"{step.command}\n{done.stderr}"
        return done.stderr if wrong else done.stdout

    return function


@pytest.mark.slow
def test_the_tutorial_is_what_happens(do) -> None:
    seen = 0
    for step in steps("tutorial.md"):
        assert not shows(words(step.told), words(do(step))), step.command
        seen += 1
    assert seen >= 9


def shorter(command: str) -> str:
    """The same on the embedded digits: one seed, fewer strategies, of lists of numbers the ends."""
    command = re.sub(r" training.epochs=\d+", "", command.replace("split_mnist", "split_digits"))
    command = command.replace("naive,joint,ewc,si,er,er_ace,derpp,pull", "naive,joint,pull")
    command = re.sub(r"(?<=\bseed=)(\d+),[\d,]*", r"\1", command)
    return re.sub(r"(?<=[a-z]=)([\d.]+),[\d.,]*,([\d.]+)(?= |$)", r"\1,\2", command)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["story_student.md", "story_paper.md", "story_engineer.md"])
def test_the_commands_of_a_story_run(do, page) -> None:
    """On less data and with fewer seeds: they do what the page says, at other numbers."""
    seen = 0
    for step in steps(page):
        printed = do(step._replace(command=shorter(step.command)), *FEW)
        assert printed or step.file or not step.told, step.command
        seen += 1
    assert seen >= 5


def test_a_word_that_was_not_printed_is_seen() -> None:
    printed = words("ER 0.832 ±0.028 · 1.2 s\nnaive .180 in run-0123abcd")
    assert not shows(words("ER 0.831 ±0.03 · 9.9 s\nnaive .181 in run-ffffffff"), printed)
    assert not shows(words("... naive .181 ..."), printed)
    assert not shows(words("... in run-ffffffff"), printed)
    assert shows(words("ER 0.732 ±0.028 · 1.2 s ..."), printed)
    assert shows(words("ER 0.832 ±0.028 · naive ..."), printed) == ""
    assert shows(words("ER naive ..."), printed)
    assert shows(words("ER 0.832 ±0.028 · 1.2 s"), printed)
    assert shows(words("... joint ..."), printed)
