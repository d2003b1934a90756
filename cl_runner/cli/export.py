"""`cl-run export`: the model of a complete run as a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from cl_runner.errors import UserError, check
from cl_runner.machine.console import near, say, show
from cl_runner.results.files import write_bytes, write_text

FORMATS = ("safetensors", "pt", "onnx", "torchscript")
USAGE = "cl-run export RUN --to FORMAT FILE [--task N|NAME] [--plugins A,B] [--force]"
HELP = f"""\
{USAGE}

The model of a complete run (made with checkpoint.keep=true) as a file, and beside
it FILE.md, which says what it is. It takes images as the data set gives them (uint8
[B, C, H, W], or float32 [B, D] of tables) and gives probabilities [B, K].

RUN         the folder of one run
--to        pt            a torch.export program: torch.export.load, no cl_runner
            onnx          ONNX, any number of images; pip install 'cl_runner[onnx]'
            torchscript   a traced module: torch.jit.load, also from C++
            safetensors   the tensors by name, no program
FILE        what is written; one that is there is refused
--task      the task that it answers for, by number from 1 or by name: needed where
            the run is task-incremental (one file for each task), refused where not
--plugins   packages of yours that the run was made with and that may be imported
--force     replace FILE and FILE.md

In Python: import cl_runner as cl; cl.load_model(RUN).
Exit code: 0 if it is written, 2 for a mistake; then nothing is."""


class Parser(argparse.ArgumentParser):
    """One that tells a mistake as everything here is told."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"cl-run export: {message}; {USAGE}")


def parser() -> Parser:
    """What `cl-run export` takes."""
    made = Parser(prog="cl-run export", add_help=False, allow_abbrev=False)
    made.add_argument("run", metavar="RUN", type=Path)
    made.add_argument("file", metavar="FILE", type=Path)
    made.add_argument("--to", metavar="FORMAT", choices=FORMATS, required=True)
    made.add_argument("--task", metavar="N|NAME")
    made.add_argument("--plugins", metavar="A,B", default="")
    made.add_argument("--force", action="store_true")
    return made


def main(args: Sequence[str]) -> int:
    """`cl-run export RUN --to FORMAT FILE`: 0, or raises UserError."""
    if {"-h", "--help"} & set(args):
        show(HELP)
        return 0
    asked = parser().parse_args(args)
    card = Path(f"{asked.file}.md")
    check_free(asked.file, card, force=asked.force)
    for name in ("onnx", "onnxscript") if asked.to == "onnx" else ():
        missing = f"--to onnx: {name} is not installed: pip install 'cl_runner[onnx]'"
        check(find_spec(name) is not None, missing)
    from cl_runner.exporting.description import complete_run

    complete_run(asked.run)
    from cl_runner.exporting.card import as_text  # torch, not before the request is valid
    from cl_runner.exporting.formats import written
    from cl_runner.exporting.load import load_model

    plugins = [name for name in asked.plugins.split(",") if name]
    model = load_model(asked.run, task=asked.task, plugins=plugins)
    content = written(model, asked.to)
    before = card.read_bytes() if card.exists() else None
    write_text(card, as_text(model.card))
    try:
        write_bytes(asked.file, content)
    except UserError:
        if before is None:
            card.unlink()
        else:
            write_bytes(card, before)
        raise
    kind = str(model.dtype).removeprefix("torch.")
    shape = ", ".join(map(str, model.input_shape))
    say(
        f"{near(asked.file)}: {len(content):,} bytes of {asked.to}, {kind} [B, {shape}] in, "
        f"probabilities [B, {len(model.classes)}] out; {near(card)}"
    )
    return 0


def check_free(file: Path, card: Path, *, force: bool) -> None:
    """Raise UserError unless a file and its card can be written."""
    folder = file.absolute().parent
    check(folder.is_dir(), f"there is no folder {file.parent}")
    for path in (file, card):
        check(not path.is_dir(), f"{path} is a folder")
        check(force or not path.exists(), f"{path} is there already; --force replaces it")
