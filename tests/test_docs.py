"""The documents say what is there: links, commands, keys, strategies, numbers, modules."""

from __future__ import annotations

import ast
import csv
import importlib
import inspect
import re
import shlex
import subprocess
import textwrap
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import orderings
import pandas as pd
import pytest
import reproduce
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig

import cl_runner
from cl_runner import strategies
from cl_runner.cli import advise, catalogue, choices, export
from cl_runner.cli.typed import flags, understood
from cl_runner.comparing import cli as compare
from cl_runner.config.outline import checked
from cl_runner.errors import UserError
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.l2 import L2

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
DOCS = sorted(REPOSITORY.glob("docs/*.md"))
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md", *DOCS]
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def text_of(page: str | Path) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def fenced(page: str | Path) -> list[tuple[str, str]]:
    """(language, content) of each code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def prose(page: str | Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def rows(page: str | Path) -> Iterator[list[str]]:
    """The cells of every line of every table."""
    for line in prose(page).splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# Form


def test_the_readme_is_one_page():
    lines = text_of(README).splitlines()
    assert len(lines) <= 150
    assert all(len(line) <= 100 for line in lines if not line.startswith("|"))


@pytest.mark.parametrize("page", DOCS, ids=[page.name for page in DOCS])
def test_a_page_begins_with_what_it_is_about(page):
    title, empty, first, *_ = text_of(page).splitlines()
    assert title.startswith("# ") and empty == "" and first.startswith("This page ")


def test_the_index_has_every_page():
    linked = re.findall(r"\]\((\w+\.md)\)", text_of("docs/README.md"))
    assert sorted(linked) == sorted({page.name for page in DOCS} - {"README.md"})


@cache
def anchors(page: Path) -> set[str]:
    """Those that a heading has on the usual hosts."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@each_page
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_every_path_is_there(page):
    """Of this repository; those with capitals or stars stand for several."""
    roots = "cl_runner|conf|docs|examples|hydra_plugins|results|scripts|tests"
    for path in re.findall(rf"(?<![\w/.-])((?:{roots})/[\w/.-]*\w)", text_of(page)):
        if path == path.lower():
            assert (REPOSITORY / path).exists(), path


# Strategies


ALL = strategies.available()
TABLE = {code(row[0])[0]: row for row in rows("docs/strategies.md") if code(row[0])}
SHORT = {row[0].split(":")[0]: row for row in rows(README) if len(row) == 3 and code(row[1])}


def keys_of(name: str) -> set[str]:
    """The keys that the table lists for a strategy, those that it takes from others included."""
    found: set[str] = set()
    for part in TABLE[name][2].split(", "):
        of = re.fullmatch(r"those of `(\w+)`(?: without `(\w+)`)?", part)
        if of:
            found |= keys_of(of[1]) - {of[2]}
        elif part:
            found |= set(code(part.removeprefix("and of `ewc` ")))
    return found


def test_both_tables_have_every_strategy_and_no_other():
    assert sorted(TABLE) == sorted(ALL)
    assert {family: tuple(code(row[1])) for family, row in SHORT.items()} == catalogue.FAMILIES
    first = [code(row[0])[0] for row in rows("docs/strategies.md") if code(row[0])]
    assert len(first) == len(set(first))


@pytest.mark.parametrize("name", ALL)
def test_a_strategys_keys_are_its_fields(name):
    """All of them, but for those that it takes from another and refuses to use."""
    own = {field.name.rstrip("_") for field in fields(strategies.find(name))} - {"name"}
    listed = keys_of(name)
    assert listed <= own
    changed = {"weighting": "task_share", "policy": "ring", "per_class": 2}
    for key in own - listed:
        settings = {"name": name, key: changed[key]}
        settings |= {"buffer_size": None} if key == "per_class" else {}
        with pytest.raises(UserError, match=r"has no meaning for|must be reservoir for"):
            strategies.build(settings)


@pytest.mark.parametrize("name", ALL)
def test_a_strategys_scenarios_are_in_its_row(name):
    scenarios = strategies.find(name).scenarios
    told = re.search(r"\((task|domain|class)(, domain)?\)", TABLE[name][1])
    architecture = text_of("docs/strategies.md").partition("## Architecture")[2]
    if f"| `{name}` |" in architecture:
        assert scenarios == ("task",)
    elif told:
        assert scenarios == tuple(told[0].strip("()").split(", "))
    else:
        assert len(scenarios) == 3


def cells_of(name: str) -> list[str]:
    """The experiments that a strategy is held against."""
    return [cell for cell in code(TABLE[name][4]) if "/" in cell]


def reproduction() -> list[dict[str, str]]:
    with (REPOSITORY / "results" / "reproduction.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_published_cells_are_those_that_were_reproduced():
    reproduced = [row["experiment"] for row in reproduction() if row["inside"] == "True"]
    assert sorted(cell for name in ALL for cell in cells_of(name)) == sorted(reproduced)


@pytest.mark.parametrize("family", catalogue.FAMILIES)
def test_the_readme_counts_a_familys_cells(family):
    """Of those that were run, how many lie inside their interval."""
    inside = [
        row["inside"] == "True"
        for row in reproduction()
        if choices.chosen(f"experiment/{row['experiment']}")["strategy"]
        in catalogue.FAMILIES[family]
    ]
    assert SHORT[family][2] == (f"{sum(inside)} of {len(inside)}" if inside else "-")


@pytest.mark.parametrize("name", [name for name in ALL if TABLE[name][4] != "-"])
def test_what_a_strategy_is_held_against_is_a_cell_or_a_test(name):
    rest = re.sub(r"`[\w/]+/\w+`(, |; )?", "", TABLE[name][4])
    assert not rest or re.match(r"(by hand|guarantee): \w", rest)
    assert not rest or (REPOSITORY / "tests" / "strategies" / f"test_{name}.py").exists()


# Numbers


def without_head(table: str) -> list[str]:
    return table.splitlines()[2:]


@pytest.mark.parametrize("script", [reproduce, orderings], ids=["reproduction", "orderings"])
def test_the_tables_of_reproduction_are_those_of_results(script):
    before, after = script.MARKERS
    shown = text_of("docs/reproduction.md").partition(before)[2].partition(after)[0].strip()
    table = pd.read_csv(REPOSITORY / "results" / f"{before.split()[1].strip(':')}.csv")
    assert without_head(shown) == without_head(script.markdown(table))


def test_a_script_replaces_its_own_part_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- y -->\nb\n", encoding="utf-8")
    reproduce.into_page(("<!-- x -->", "<!-- y -->"), "new", page)
    assert page.read_text(encoding="utf-8") == "a\n<!-- x -->\nnew\n<!-- y -->\nb\n"


@pytest.mark.slow
def test_the_readmes_run_is_what_the_command_prints(cl_run, data_root, tmp_path):
    """But for the seconds, and the last digits, which are a machine's own."""
    told = cl_run(f"data.root={data_root}", "device=cpu", cwd=tmp_path).stdout
    shown = next(block for _, block in fenced(README) if block.startswith("$ cl-run\n"))
    number = r"-?\d*\.\d+"
    ours, theirs = (t.rpartition("\n")[0].rpartition("\n")[0] for t in (shown, told))
    ours = ours.partition("\n")[2]
    assert re.sub(rf" *{number}", "", ours) == re.sub(rf" *{number}", "", theirs)
    numbers = [[float(n) for n in re.findall(number, t)] for t in (ours, theirs)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.02)


# Commands

ELSEWHERE = {  # with packages and folders of the reader's: tests/test_plugins.py runs it
    "cl-run plugins=[my_lib] strategy=halfway strategy.share=0.3",
    "cl-run -m plugins=[my_lib] benchmark=light_digits strategy=naive,ewc",
    "cl-run plugins=[my_lib] model=bottleneck model.narrow=8",
    # tests/test_own_models.py
    (
        "cl-run plugins=[my_lib] model=tiny model.weights=tiny.pt model.freeze=all_but_head "
        "strategy=icarl"
    ),
    # tests/test_stories.py runs these; the last is a mistake, shown as one
    "cl-run plugins=[near] strategy=pull benchmark=split_digits hydra.run.dir=try",
    (
        "cl-run -m plugins=[near] benchmark=split_digits,permuted_digits "
        "strategy=naive,joint,ewc,si,er,er_ace,derpp,pull optimizer.lr=0.03,0.1,0.3 seed=100,101 "
        "benchmark.validation_fraction=0.2 hydra.sweep.dir=tune"
    ),
    "cl-run -m plugins=[near] experiment=$(python choose.py) seed=0,1 hydra.sweep.dir=final",
    "cl-run strategy=er strategy.bufer=50",
}


def commands(page: str | Path) -> list[str]:
    """Every `cl-run ...` and `cl-compare ...` of the code blocks, and those within the lines.

    Of the latter, those without a placeholder in capitals or dots, and no mere names.
    """
    found = []
    for _, block in fenced(page):
        for line in block.replace("\\\n", " ").splitlines():
            found += re.findall(r"^(?:\$ |[A-Z]+=\S+ )*(cl-(?:run|compare)\b(?!:).*)", line)
            found += re.findall(r"\$\((cl-run [^)]*)\)", line)
    inline = re.findall(r"`(cl-(?:run|compare) [^`]*)`", prose(page))
    others = r"\.\.\.|\b[A-Z]{3,}\b|=[A-Z]\b|^cl-run (explain|status)$"
    return found + [line for line in inline if not re.search(others, line)]


COMMANDS = {line: name for name in NAMES for line in commands(name)}


def one_by_one(override: Override) -> list[str]:
    """What a sweep makes of an override: every option of a group, a key's first and last value."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.is_interval_sweep():
        interval: Any = override.value()
        assert isinstance(interval, IntervalSweep)
        return [f"{key}={interval.start}", f"{key}={interval.end}"]
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return values if "." not in key and key != "seed" else [values[0], values[-1]]


def jobs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Of a sweep: the first job, and those that differ from it in one choice."""
    choices = [one_by_one(o) for o in OverridesParser.create().parse_overrides(list(overrides))]
    first = [options[0] for options in choices]
    yield first
    for i, options in enumerate(choices):
        yield from ([*first[:i], other, *first[i + 1 :]] for other in options[1:])


def configuration(
    compose: Callable[..., DictConfig], job: Sequence[str], *, skip: bool
) -> DictConfig:
    """A job's; with missing_keys=skip without the keys that its choices lack."""
    kept = list(job)
    while True:
        try:
            return compose(*kept)
        except HydraException as error:
            key = getattr(error.__cause__, "full_key", None)
            if not skip or not any(o.startswith(f"{key}=") for o in kept):
                raise
            kept = [o for o in kept if not o.startswith(f"{key}=")]


LEFT_OUT = r"hydra[./]|resume=|model\.weights="


@pytest.mark.slow
@pytest.mark.usefixtures("_pretrained")
@pytest.mark.parametrize("line", COMMANDS, ids=[f"{n}: {c[:60]}" for c, n in COMMANDS.items()])
def test_every_command_is_understood(line, composed_in_parts, data_root, capsys):
    """Composed and checked as far as that goes without data and without running.

    Left out are overrides of Hydra's own, whose plugins need not be installed, and those that name
    what another command has left: resume=FOLDER, model.weights=FOLDER.
    """
    program, *args = shlex.split(line, comments=True)
    if program == "cl-compare":
        compare.parser().parse_args(args[1:] if args[0] == "verify" else args)
    elif args[:1] in (["list"], ["explain"]):
        assert catalogue.main(args[0], args[1:]) == 0
        assert capsys.readouterr().out
    elif args[:1] == ["advise"]:
        assert advise.main(args[1:]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    elif args[:1] == ["export"]:
        export.parser().parse_args(args[1:])
    elif args[:1] == ["status"]:
        assert len(args) > 1 and not any(arg.startswith("-") for arg in args)
    elif " ".join([program, *args]) not in ELSEWHERE:
        options: Namespace = flags(understood(args))
        if options.help or options.shell_completion:
            return
        own = [o for o in flags(args).overrides if not re.match(LEFT_OUT, o)]
        own = [f"+{o}" if o.startswith("experiment=") else o for o in own]
        skip = "missing_keys=skip" in own
        # Somebody's data are not here; that they are there is all that is asked of them.
        own = [f"data.path={data_root}" if o.startswith("data.path=") else o for o in own]
        for job in jobs(own):
            cfg = configuration(composed_in_parts, [*job, f"data.root={data_root}"], skip=skip)
            checked(cfg)


def test_there_are_commands_and_those_that_are_run_elsewhere():
    lines = {" ".join(shlex.split(line, comments=True)) for line in COMMANDS}
    assert len(lines) > 30
    assert lines >= ELSEWHERE


def test_every_option_of_cl_compare_is_in_its_table():
    told = {option for row in rows("docs/compare.md") for option in re.findall(r"--\w+", row[0])}
    told |= set(re.findall(r"--out", prose("docs/compare.md")))
    known = {o for action in compare.parser()._actions for o in action.option_strings}
    assert told == {o for o in known if o.startswith("--")} - {"--help", "--version"}


# Code


@pytest.mark.slow
def test_the_examples_of_python_run(data_root, tmp_path, monkeypatch, capsys):
    """One after another, as a reader would type them, in an empty folder."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CL_RUNNER_DATA", str(data_root))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = [text for language, text in fenced("docs/python.md") if language == "python"]
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number}", "exec"), names)
    names["axes"].figure.clear()
    shown = capsys.readouterr().out
    assert "unknown option strategy=ewcc (did you mean ewc?)" in shown
    assert "<Runs: 6 runs>" in shown and names["comparison"].verdict in shown
    assert {"first", "sweep", "average.pdf", "report.html"} <= {p.name for p in tmp_path.iterdir()}
    assert len(blocks) > 8


def test_what_the_documents_import_is_there():
    seen = 0
    for page in PAGES:
        for block in (text for language, text in fenced(page) if language == "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cl_runner"):
                    module = importlib.import_module(str(node.module))
                    assert all(hasattr(module, alias.name) for alias in node.names)
                    seen += 1
    assert seen >= 4


def plain(source: str) -> dict[str, str]:
    """Functions of a source by name, without annotations and docstrings."""
    found = {}
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in node.args.args:
                argument.annotation = None
            if ast.get_docstring(node):
                node.body = node.body[1:]
            found[node.name] = ast.unparse(node)
    return found


def test_l2_is_what_the_document_shows():
    shown = next(block for _, block in fenced("docs/extending.md") if "def loss(" in block)
    actual = plain(inspect.getsource(L2))
    assert plain(shown) == {name: actual[name] for name in ("quadratic", "loss", "end_task")}


def test_the_map_has_every_method_of_a_strategy():
    told = {code(row[0])[0] for row in rows("docs/architecture.md") if row[0].startswith("`")}
    methods = {n for n, f in vars(Strategy).items() if inspect.isfunction(f) and n[0] != "_"}
    others = {"notes", "remarks", "needs_borders", "needs_tasks", "pictures", "tables"}
    others |= {"without_model", "takes_features", "settled"}
    assert {name for name in told if re.fullmatch(r"[a-z_]+", name)} == methods - others
    assert len(methods - others) == 11
    assert all(f"`{name}`" in prose("docs/architecture.md") for name in others)


OTHER_WORDS = {"list", "explain", "status", "ALLOWED"}  # in the map, that are no files


def test_the_map_has_every_room_and_every_file_of_it():
    package = REPOSITORY / "cl_runner"
    named = [
        (code(row[0]), {n for cell in row[1:] for n in code(cell)})
        for row in rows("docs/architecture.md")
    ]
    told = {names[0]: words for names, words in named if names and names[0].endswith(("/", ".py"))}
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert told.keys() == {path.name for path in package.glob("*.py")} - {"__init__.py"} | rooms
    for room in rooms:
        files = {path.stem for path in (package / room).glob("[!_]*.py")}
        words = {word for word in told[room] if word.isidentifier()} - (OTHER_WORDS - files)
        if room == "strategies/":  # docs/strategies.md has them
            assert words == {"base"}
        else:
            assert words == files, room


def test_the_readmes_tree_has_every_folder():
    (tree,) = [block for _, block in fenced(README) if "cl_runner/strategies/" in block]
    told = [line.split()[0] for line in tree.splitlines()]
    files = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {f"{path.split('/')[0]}/" for path in files if "/" in path and path[0] != "."}
    folders |= {f"cl_runner/{p.parent.name}/" for p in REPOSITORY.glob("cl_runner/*/__init__.py")}
    assert sorted(told) == sorted(folders)


def test_the_citation_is_of_this_version_and_its_authors():
    told = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= told.keys()
    assert (told["title"], told["version"]) == ("cl_runner", cl_runner.__version__)
    assert f"Copyright (c) 2026 {told['authors'][0]['name']}" in text_of("LICENSE")


def test_the_tests_command_of_the_readme_is_the_one_that_ci_takes():
    lines = [line for _, block in fenced(README) for line in block.splitlines()]
    command = next(line for line in lines if line.startswith("python -m pytest"))
    assert command == "python -m pytest -n auto --dist worksteal"
