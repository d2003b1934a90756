"""The part `tests` of check_gpu.py: tests/test_cuda.py, and what of it fails for a warning only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from gpu_report import Context, Piece, Settings

ROOT = Path(__file__).resolve().parents[1]
FILES = ("tests/test_cuda.py",)
WORKERS = 6  # of the GPU's processes at once
MARGIN = 5.0  # seconds before the deadline at which the tests are stopped
LINE = re.compile(  # of a test that is done, with pytest-xdist and without
    r"(?:\[gw\d+\].*? )?(?P<first>PASSED|FAILED|ERROR|SKIPPED)? ?(?P<test>\S+\.py::\S.*?)"
    r"(?: (?P<last>PASSED|FAILED|ERROR|SKIPPED)\b.*)?"
)
SUMMARY = re.compile(r"(?:FAILED|ERROR) (?P<test>\S+\.py::.*?) - (?P<message>.*)")
SKIPPED = re.compile(r"SKIPPED \[\d+\] (?P<message>.*)")


def pieces(settings: Settings) -> list[Piece]:
    """The tests; then those that failed once more, with warnings that are none of errors."""
    seconds = 3 if settings.tiny else 45
    allowed = Piece("failed tests, warnings allowed", seconds, again, limit=300)
    return [Piece("tests", seconds, partial(tests, files=FILES), limit=600), allowed]


def tests(context: Context, files: Sequence[str]) -> None:
    """Rows: how many passed, and each that did not."""
    found, messages, ended = pytest(context, files)
    counts = {state: list(found.values()).count(state) for state in ("PASSED", "SKIPPED")}
    bad = [test for test, state in found.items() if state in {"FAILED", "ERROR"}]
    context.memo["bad"] = bad
    on_gpu = context.settings.device == "cuda"
    nothing = not found or (on_gpu and not counts["PASSED"])
    message = "all that there are" if ended else "stopped, since the time was up"
    if nothing or (counts["SKIPPED"] and not on_gpu):
        message = messages.get("", message)
    context.emit(
        "tests passed", counts["PASSED"], state="failed" if nothing else "", message=message
    )
    context.emit("tests skipped", counts["SKIPPED"])
    context.emit("tests failed", len(bad))
    for test in bad:
        context.emit(test, state="failed", message=messages.get(test, "")[:300])


def again(context: Context) -> None:
    """A row: which of the tests that failed pass where warnings are no errors."""
    bad = context.memo.get("bad", [])
    if not bad:
        return
    found, messages, _ = pytest(context, bad, "-W", "default")
    good = [test for test in bad if found.get(test) == "PASSED"]
    rest = {test: messages.get(test, "")[:150] for test in bad if test not in good}
    told = "; ".join(f"{test}: {message}" for test, message in rest.items())
    of = f"of {len(bad)}" + (f"; the others: {told}"[:1000] if rest else "")
    context.emit("failed tests that pass with warnings allowed", len(good), of, message=told[:1000])


def pytest(
    context: Context, what: Sequence[str], *options: str
) -> tuple[dict[str, str], dict[str, str], bool]:
    """How each test ended, what those that failed say, and whether pytest came to its end.

    "" among the messages: why tests were skipped, or the last line of what pytest printed.
    """
    out = context.settings.out
    log = out / f"pytest{len(options)}.txt"
    on_gpu = context.settings.device == "cuda"
    several = ["-p", "xdist.plugin", "-n", str(WORKERS)] if on_gpu and find_spec("xdist") else []
    command = [
        *(sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"),
        *(f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml"), *several, *options),
        *what,
    ]
    with log.open("wb") as output:
        # The checkout's package has no conf/ unless it is installed: it must not come first.
        # Whatever plugins a machine has besides: their warnings would be errors.
        own = {"COLUMNS": "400", "PYTHONSAFEPATH": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        running = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT
        )
        end = time.monotonic() + max(1.0, context.left() - MARGIN)
        while (ended := running.poll()) is None and time.monotonic() < end:
            time.sleep(0.1)
        if ended is None:
            running.terminate()
            try:
                running.wait(3)
            except subprocess.TimeoutExpired:
                running.kill()
    return (*read(log.read_text("utf-8", "replace")), ended is not None)


def read(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """How each test ended and what is said of it, from what pytest printed."""
    found: dict[str, str] = {}
    messages: dict[str, str] = {}
    for line in text.splitlines():
        if match := SUMMARY.fullmatch(line.strip()):
            messages[match["test"]] = match["message"]
        elif match := SKIPPED.fullmatch(line.strip()):
            messages[""] = match["message"]
        elif (match := LINE.fullmatch(line.strip())) and (match["first"] or match["last"]):
            found[match["test"]] = match["first"] or match["last"]
    if not found and text.strip():
        messages[""] = text.strip().splitlines()[-1]
    return found, messages
