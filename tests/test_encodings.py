"""A terminal or a pipe that is not UTF-8 fails nothing: what it lacks becomes a question mark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "benchmark.train_samples=60"),
    *("training.iterations=2", "training.batch_size=8", "model.hidden_sizes=[8]"),
    *("threads=1", "device=cpu"),
)
COMMANDS = {
    "run": (*TINY, "hydra.run.dir='Ω run'"),
    "sweep": ("-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep"),
    "status": ("status", "Ω run", "sweep"),
    "list": ("list",),
    "explain": ("explain", "ewc"),
    "help": ("--help",),
    "config": ("--cfg", "job", "data.path='Ω'"),
    "mistake": (*TINY, "model.hidden_sizes=[0]", "hydra.run.dir='Ω run'", "resume=true"),
    "compare": ("sweep", "Ω run"),
    "verify": ("verify", "sweep", "Ω run"),
}
COMPARE = "from cl_runner.comparing.cli import main\nmain()"


@pytest.fixture(scope="module", params=["cp1252", "ascii"])
def said(
    request: pytest.FixtureRequest,
    cl_run_started: Callable[..., object],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, tuple[int, bytes, bytes]]]:
    """An encoding, and what each command gives there: exit code, standard output and error."""
    encoding, folder = request.param, tmp_path_factory.mktemp("encoding")
    as_there = (
        "import sys\n"
        f"sys.stdout.reconfigure(encoding={encoding!r}, errors='strict')\n"
        f"sys.stderr.reconfigure(encoding={encoding!r}, errors='backslashreplace')\n"
    )
    found = {}
    for name, command in COMMANDS.items():
        before = as_there + (COMPARE if name in ("compare", "verify") else "")
        process = cl_run_started(*command, cwd=folder, before=before)
        code = process.wait()
        found[name] = (code, *(Path(stream).read_bytes() for stream in process.streams))
    return encoding, found


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_fails_because_it_cannot_be_encoded(said, command):
    encoding, found = said
    code, out, err = found[command]
    assert code == (2 if command == "mistake" else 0), err
    assert b"Unicode" not in err and b"Traceback" not in err
    assert out or command in ("mistake", "verify")
    out.decode(encoding)


def test_what_the_encoding_has_is_printed_and_the_rest_is_a_question_mark(said):
    encoding, found = said
    dot, both = ("·", "±") if encoding == "cp1252" else ("?", "?")
    out = found["run"][1].decode(encoding)
    assert f" s {dot} results in ? run" in out
    assert f" {both}" in found["compare"][1].decode(encoding)
