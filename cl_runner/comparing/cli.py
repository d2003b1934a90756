"""The command `cl-compare`. Exit codes: 0 done, 1 verify found discrepancies, 2 a mistake."""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cl_runner.comparing.terminal import printable, printable_lines
from cl_runner.errors import UserError, check
from cl_runner.machine import console
from cl_runner.results.names import COMPARISON
from cl_runner.version import __version__

if TYPE_CHECKING:
    from cl_runner.comparing.table import Comparison

DESCRIPTION = """\
Which strategy, on this stream, at what price? Compares runs of cl-run by their CSV files.

  cl-compare PATH...          tables, tests, and comparison.csv; --html: a page
  cl-compare verify PATH...   compute again what run folders say, by their matrices

PATH is the folder of a run, of a sweep or of anything around them, a
summary.csv, or a pattern. (A folder that is called verify: ./verify)
"""
FORMATS = ("table", "csv", "markdown", "latex", "json")


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as cl-run does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see cl-compare --help")


def parser() -> Parser:
    """The options of the comparison."""
    whole = argparse.RawDescriptionHelpFormatter
    found = Parser(prog="cl-compare", description=DESCRIPTION, formatter_class=whole)
    found.add_argument("paths", nargs="+", metavar="PATH", help="where the runs are")
    found.add_argument("--version", action="version", version=f"cl-compare {__version__}")
    add = found.add_argument
    add("--metric", default="ACC", help="what to sort and test by, any metric or cost (ACC)")
    add(
        "--reading", choices=("task", "domain", "class"), help="read the test data as this scenario"
    )
    add("--where", action="append", default=[], metavar="KEY=VALUE[,VALUE]", help="these runs only")
    add("--by", metavar="KEY[,KEY]", help="group by these settings instead of all that differ")
    add("--baseline", metavar="STRATEGY", help="test against this one, too")
    add("--columns", metavar="A,B,C", help="show these metrics and costs, in this order")
    add("--format", choices=FORMATS, default="table", help="of what is printed (table)")
    add("--out", type=Path, default=Path(COMPARISON), metavar="FILE", help="(comparison.csv)")
    add("--html", type=Path, metavar="FILE", help="write tables, pictures and settings as one page")
    add("--plots", type=Path, metavar="DIR", help="draw pictures into this folder: PNG, SVG, PDF")
    return found


def run(arguments: Sequence[str]) -> int:
    """The exit code. Raises UserError for mistakes."""
    if arguments[:1] == ["verify"]:
        verifier = Parser(prog="cl-compare verify", description="Check run folders.")
        verifier.add_argument("paths", nargs="+", metavar="PATH", help="where the runs are")
        return verify_folders(verifier.parse_args(arguments[1:]).paths)
    return answer(parser().parse_args(arguments), shlex.join(["cl-compare", *arguments]))


def answer(options: argparse.Namespace, command: str) -> int:
    """Read, compare, print, write. The page shows the command."""
    check_out(options.out)
    if options.html is not None:
        from cl_runner.comparing import report

        report.check_page(options.html)
    from cl_runner.comparing import render
    from cl_runner.comparing.runs import read_runs, select, version_notes
    from cl_runner.comparing.table import Question, columns_asked_for, compare_runs
    from cl_runner.results.files import write_text

    runs, notes = read_runs(options.paths)
    runs = select(runs, options.where)
    by = None if options.by is None else tuple(filter(None, options.by.split(",")))
    question = Question(
        metric=options.metric, reading=options.reading, by=by, baseline=options.baseline
    )
    comparison = compare_runs(runs, question)
    comparison.notes += notes + version_notes([run for run in runs if run.complete])
    names = columns_asked_for(options.columns, comparison)
    write_text(options.out, render.csv_text(comparison))  # everything, whatever is shown
    if options.format == "table" and sys.stdout.isatty():
        from rich.console import Console

        render.print_terminal(comparison, Console(highlight=False), names)
    else:
        print_result(formatted(options.format, comparison, names))
    print_note(f"written to {options.out}")
    if options.html is not None:
        made = time.strftime("%Y-%m-%d %H:%M %z")
        page, missing = report.page(comparison, command, made, names)
        write_text(options.html, page)
        without = "" if missing is None else f" without pictures: {missing}"
        print_note(f"report in {options.html}{without}")
    if options.plots is not None:
        from cl_runner.comparing.pictures import draw_pictures

        files = draw_pictures(comparison, options.plots)
        print_note(f"{len(files)} pictures in {options.plots}")
    return 0


def formatted(wanted: str, comparison: Comparison, names: Sequence[str] | None) -> str:
    """The comparison in one of FORMATS."""
    from cl_runner.comparing import latex, render

    return {
        "table": render.plain,
        "csv": render.csv_text,
        "markdown": render.markdown,
        "latex": latex.latex,
        "json": render.json_text,
    }[wanted](comparison, names)


def print_result(text: str) -> None:
    """Print; to a terminal without what would steer it."""
    shown = printable_lines(text) if sys.stdout.isatty() else text
    print(shown.removesuffix("\n"))


def print_note(text: str) -> None:
    """One line beside the results."""
    console.say(printable(text), sys.stderr)


def after_sweep(folder: Path) -> str:
    """The comparison of a sweep's runs: comparison.csv in its folder, and the short table.

    Raises UserError where there is nothing to compare.
    """
    from cl_runner.comparing import render
    from cl_runner.comparing.runs import read_runs
    from cl_runner.comparing.table import Question, compare_runs
    from cl_runner.results.files import write_text

    out = folder / COMPARISON
    check_out(out)
    runs, _ = read_runs([str(folder)])
    comparison = compare_runs(runs, Question())
    write_text(out, render.csv_text(comparison))
    return render.short(comparison)


def check_out(path: Path) -> None:
    """Only a comparison of ours, or no file at all, may be where the new one goes."""
    check(path.absolute().parent.is_dir(), f"--out {path}: there is no folder {path.parent}")
    check(not path.is_dir(), f"--out {path} is a folder; give a file's name")
    if path.exists():
        check(path.is_file(), f"--out {path} is no regular file; choose another name")
        from cl_runner.comparing.render import SIGNATURE

        try:
            with path.open(encoding="utf-8", newline="") as file:
                header = next(csv.reader(file), [])
        except (OSError, ValueError, csv.Error):
            header = []
        ours = tuple(header[: len(SIGNATURE)]) == SIGNATURE
        check(ours, f"--out {path} exists and is no comparison of cl-compare; choose another name")


def verify_folders(paths: Sequence[str]) -> int:
    """1 if a folder says something that its matrices do not."""
    from cl_runner.comparing.verify import verify_runs

    count, found = verify_runs(paths)
    for line in found:
        print_result(line)
    verdict = f"{len(found)} discrepancies" if found else "all in order"
    print_note(f"{count} runs verified: {verdict}")
    return 1 if found else 0


def main() -> None:
    """The entry point of `cl-compare`."""
    console.prepare()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        print_note("cl-compare: interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        console.silence(sys.stdout)
        sys.exit(0)
    except (UserError, OSError) as error:  # the latter of a full disk
        console.silence(sys.stdout)
        print_note(f"cl-compare: {error}")
        sys.exit(2)
