"""One comparison in five formats: the same numbers, and nothing hidden."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from cl_runner.comparing import latex, render, terminal
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import Comparison, Question, columns_asked_for, compare_runs
from cl_runner.errors import Diverged, UserError
from cl_runner.results import status
from cl_runner.results.files import read_rows, write_rows


@pytest.fixture
def comparison(run_folder, tmp_path: Path) -> Comparison:
    for seed, more in enumerate((0.0, 0.02, 0.05)):
        run_folder(0.3 + 2 * more, strategy="naive", seed=seed)
        run_folder(0.9 + more, strategy="joint", seed=seed)
        run_folder(0.6 - more, strategy="er", seed=seed, strategy__policy="class_balanced")
        run_folder(0.59 + more, strategy="er", seed=seed, strategy__policy="ring")
    run_folder(0.5, strategy="ewc")
    failed = run_folder(0.5, strategy="ewc", seed=1, status="failed")
    status.fail(failed, Diverged("the loss became NaN"))
    return compare_runs(read_runs([str(tmp_path)])[0], Question(baseline="naive"))


def row(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start) and "±" in line]
    return line


def test_the_plain_table_says_all(comparison: Comparison) -> None:
    text = render.plain(comparison)
    assert "\x1b" not in text
    assert "\n\ntoy, 3 tasks, domain-IL\n" in text
    best = row(text, "ER policy=ring")
    assert best.split()[2:6] == ["*", "3", "0.613", "±0.063"]
    assert row(text, "ER policy=class_balanced").split()[2] == "?"  # three seeds cannot tell
    assert row(text, "naive").split()[1] == "3"  # no mark: it is worse
    assert re.search(r"^EWC +\? +1 +1 +0\.500 ", text, re.MULTILINE)
    assert "paired t" in text and "Cohen's d" in text
    assert "no test: too few shared seeds" in text
    assert "few seeds (3): the t-test relies on normal differences" in text
    assert "1 runs are not complete and not averaged in:\n  failed: ewc seed=1, the loss" in text
    assert "against the baseline, naive" in text
    assert "* the best ACC" in text and "bold" not in text  # there is none
    assert "- \\* the best ACC" in render.markdown(comparison)


def test_csv_can_be_read_and_recognised(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(render.csv_text(comparison))))
    assert tuple(rows[0])[: len(render.SIGNATURE)] == render.SIGNATURE
    assert [r["strategy"] for r in rows] == ["joint", "er", "er", "ewc", "naive"]
    ring = rows[1]
    assert (ring["strategy.policy"], ring["n"], ring["position"] != "") == ("ring", "3", True)
    assert rows[3]["ACC_low"] == ""  # one run: missing is empty
    assert float(ring["ACC"]) == pytest.approx(0.59 + 0.07 / 3)


def test_json_is_json_with_null_for_what_is_missing(comparison: Comparison) -> None:
    found = json.loads(render.json_text(comparison), parse_constant=pytest.fail)  # no NaN
    assert [g["distinguishable_from_best"] for g in found["groups"]] == [
        *("bound", "best", "too_few", "untested", "yes")
    ]
    assert found["incomplete"][0]["status"] == "failed"
    assert found["groups"][3]["ACC_low"] is None
    assert found["question"]["baseline"] == "naive"


def test_markdown_rows_have_the_cells_of_their_header(comparison: Comparison) -> None:
    text = render.markdown(comparison)
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert "| **ER policy=ring** | \\* | 3 |  | **0.613 ±0.063** |" in text
    assert "| ER policy=class_balanced | ? | 3 |  | 0.577 ±0.063 |" in text


def test_latex_is_a_table_that_siunitx_reads(comparison: Comparison) -> None:
    text = latex.latex(comparison)
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body.count("\\begin{table}") == body.count("\\end{table}") == 1  # one per stream
    assert "\\label{tab:toy-3-tasks-domain-il}" in body
    (layout,) = [line for line in body if line.startswith("\\begin{tabular}")]
    assert layout.startswith("\\begin{tabular}{l S[table-format=1] S[table-format=1.3(3)] S[")
    rows = [line.removesuffix(" \\\\").split(" & ") for line in body if "&" in line]
    assert [len(row) for row in rows] == [len(rows[0])] * 6
    assert rows[0] == ["{strategy}", "{n}", "{ACC}", "{forgetting}", "{memory B}"]
    assert rows[1][:3] == ["joint", "3", "0.923(63)"]  # the bound is not bold, and set apart
    assert body[body.index(" & ".join(rows[1]) + " \\\\") + 1] == "\\midrule"
    assert rows[2][:3] == ["\\textbf{ER policy=ring}", "3", "\\bfseries 0.613(63)"]
    assert rows[3][0] == "ER policy=class\\_balanced$^?$"
    assert rows[4][:3] == ["EWC$^?$", "1", "0.500"]
    assert not set("±~<>") & set("".join(body))


@pytest.mark.parametrize(
    ("cells", "kind", "shown"),
    [
        (["0.828 ±0.009", "-"], "S[table-format=1.3(1)]", ["0.828(9)", "{--}"]),
        (["-0.5", "12,345"], "S[table-format=-5.1]", ["-0.5", "12345"]),
        (["0.500 ±1.250"], "S[table-format=1.3(4)]", ["0.500(1250)"]),
        (["0.500 ±0.000"], "S[table-format=1.3(1)]", ["0.500(0)"]),
        (["< 0.001", "2"], "r", ["$<$ 0.001", "2"]),
        (["1.2e+09"], "r", ["1.2e+09"]),
    ],
)
def test_latex_numbers(cells, kind: str, shown: list[str]) -> None:
    assert latex.column_format(cells) == kind
    assert [latex.cell(c, bold=False, number=kind != "r") for c in cells] == shown


@pytest.mark.slow
def test_latex_compiles(comparison: Comparison, tmp_path: Path) -> None:
    if (
        shutil.which("pdflatex") is None
        or not subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).stdout
    ):
        pytest.skip("no pdflatex with siunitx here")
    head = "\\documentclass{article}\n\\usepackage{booktabs, siunitx}\n\\begin{document}\n"
    text = f"{head}{latex.latex(comparison)}\n\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout  # it fits the page


def test_a_name_with_specials_survives_every_format(run_folder, tmp_path) -> None:
    for name in ("a|b", "c_d&e"):
        run_folder(0.5, strategy__policy=name, folder=f"f{len(name)}")
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    assert "policy=a\\|b" in render.markdown(found)
    assert "policy=c\\_d\\&e" in latex.latex(found)
    assert "policy=c_d&e" in render.plain(found)


def test_too_few_seeds_for_a_bootstrap_are_said(run_folder, tmp_path: Path) -> None:
    for benchmark in "xy":
        for strategy, acc in {"a": 0.6, "b": 0.5}.items():
            run_folder(acc, benchmark=benchmark, strategy=strategy)
    said = "the bootstrap intervals over the streams are too narrow"
    text = render.plain(compare_runs(read_runs([str(tmp_path)])[0], Question()))
    assert f"few seeds (1, at least 5 are wanted): {said}" in text
    (line,) = [line for line in text.splitlines() if re.match(r"a +1\.00", line)]
    assert line.split() == ["a", "1.00", "0.6000", "-", "-", "-"]  # no interval of one run
    for benchmark in "xy":
        for strategy, acc in {"a": 0.6, "b": 0.5}.items():
            for seed in range(1, 5):
                run_folder(acc + seed / 100, benchmark=benchmark, strategy=strategy, seed=seed)
    assert said not in render.plain(compare_runs(read_runs([str(tmp_path)])[0], Question()))


def test_costs_of_many_digits_are_short() -> None:
    assert render.amount(123456789012.0, whole=True) == "1.23e+11"
    assert render.amount(144200.0, whole=True) == "144,200"
    assert render.amount(0.00008, whole=False) == "< 0.001"


def test_flops_and_bytes_are_in_a_unit_for_the_whole_column(run_folder, tmp_path: Path) -> None:
    """So that a column can be compared and sorted; comparison.csv has every digit."""
    costs = {"naive": (2_500_000_000, 0, None), "er": (31_879_290_880, 1500, 383_148_032)}
    for strategy, values in costs.items():
        names = ("flops", "memory_bytes", "peak_memory_bytes")
        path = run_folder(0.5, strategy=strategy) / "summary.csv"
        write_rows(path, [read_rows(path)[0] | dict(zip(names, values, strict=True))])
    found = compare_runs(read_runs([str(tmp_path)])[0], Question(metric="flops"))
    quality, price = render.sheets(found)[:2]
    assert price.header[:5] == ["strategy", "GFLOPs", "memory kB", "seconds", "peak memory MB"]
    cells = {row[0]: [row[1], row[2], row[4]] for row in price.rows}
    assert cells == {"naive": ["2.5", "0", "-"], "ER": ["31.9", "1.5", "383"]}
    assert price.columns[1].bold == price.columns[2].bold == [True, False]  # the cheapest
    assert price.columns[3].bold == price.columns[4].bold == [False, False]  # no two differ
    assert (quality.header[3], [row[3] for row in quality.rows]) == ("GFLOPs", ["2.5", "31.9"])
    rows = csv.DictReader(io.StringIO(render.csv_text(found)))
    assert [float(row["flops"]) for row in rows] == [2_500_000_000, 31_879_290_880]


def test_a_stream_without_complete_runs_is_shown_as_such(run_folder, tmp_path: Path) -> None:
    run_folder(0.5)
    run_folder(0.5, benchmark="lost", status="failed")
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    lines = [line.split() for line in render.plain(found).splitlines()]
    at = lines.index(["lost,", "3", "tasks,", "domain-IL"])
    assert lines[at + 1 : at + 3] == [["strategy", "n", "incomplete"], ["ER", "0", "1"]]
    assert "lost" in shown(found, 80)
    text = latex.latex(found)
    assert text.count("begin{table}") == 1 and "% 1 runs are not complete" in text


def test_a_small_p_is_said_without_a_second_sign() -> None:
    assert [render.said_p(p) for p in (0.0001, 0.0123)] == ["p < 0.001", "p = 0.012"]


def test_there_is_no_minus_zero() -> None:
    assert (render.number(-0.0004), render.number(-0.0006)) == ("0.000", "-0.001")


def test_metrics_within_tasks_and_calibration_have_columns(run_folder, tmp_path: Path) -> None:
    for strategy, low in (("er", 0.2), ("naive", 0.1)):
        out = run_folder(0.5, strategy=strategy)
        write_rows(out / "summary.csv", [read_rows(out / "summary.csv")[0] | {"min_ACC": low}])
        rows = [{"after_task": 3, "reading": "domain", "split": "test", "NLL": low, "Brier": 1}]
        write_rows(out / "calibration.csv", [rows[0] | {"ECE": 0.5}])
    for metric, first in (("min_ACC", "er"), ("NLL", "naive")):  # more, and less, is better
        found = compare_runs(read_runs([str(tmp_path)])[0], Question(metric=metric))
        sheet = render.sheets(found)[0]
        assert {"min ACC", "NLL", "Brier", "ECE"} <= set(sheet.header)
        assert sheet.rows[0][0].lower() == first and sheet.columns[0].bold == [True, False]


# On a terminal.


def shown(comparison: Comparison, width: int, names: list[str] | None = None) -> str:
    """What a terminal without colours gets."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    render.print_terminal(comparison, console, names)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_cell_is_folded_or_cut(comparison: Comparison, width: int) -> None:
    text = shown(comparison, width)
    assert max(map(len, text.splitlines()[:-1])) <= width  # the last one ends with a path
    for sheet in render.sheets(comparison):
        parts, left = terminal.fitted(sheet.columns, sheet.fixed, width, several=False)
        (kept,) = parts
        assert kept + left == sheet.columns  # they leave from the right
        for row in list(zip(*(c.cells for c in kept), strict=True)):
            cells = [re.escape(cell) for cell in row if cell]
            assert re.search(f"^{' +'.join(cells)}$", text, re.MULTILINE), row
        if left:
            names = ", ".join(c.name or c.title for c in left)
            assert f"not shown at a width of {width}: {names};" in " ".join(text.split())
    assert ("not shown" in text) == (width < 200)
    assert "not shown" not in render.plain(comparison)


def test_columns_that_were_asked_for_make_further_tables(comparison: Comparison) -> None:
    names = ["forgetting", "BWT", "ACC", "parameters", "FWT", "seconds"]
    text = shown(comparison, 70, names)
    own, _, tests = text.partition("against the best")
    headers = [line.split() for line in own.splitlines() if line.startswith("strategy")]
    assert len(headers) > 1 and all(header[:2] == ["strategy", "n"] for header in headers)
    assert [name for header in headers for name in header if name in names] == names
    assert own.count("ER policy=ring  ") == len(headers) and "seconds" not in tests
    assert "not shown" not in own


def test_a_label_that_is_too_long_breaks_between_its_settings(run_folder, tmp_path) -> None:
    for value in "ab":
        run_folder(0.5, strategy__policy=value * 30, strategy__weighting=value * 30)
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    label = f"ER policy={'a' * 30}"
    rows = re.findall(f"^{label} .+\n.+$", shown(found, 60), re.MULTILINE)
    assert [row.split() for row in rows][:1] == [
        [*label.split(), "*", "1", "0.500", f"weighting={'a' * 30}"]
    ]


def test_choosing_columns(run_folder, tmp_path: Path) -> None:
    for seed in (0, 1):
        run_folder(0.5 + seed / 10, seed=seed, steps=7)
    path = next((tmp_path / "runs").glob("*/summary.csv"))
    write_rows(path, [read_rows(path)[0] | {"validation_ACC": 0.25}])
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    assert columns_asked_for(None, found) is None
    names = columns_asked_for(" validation_ACC,,samples,ACC,samples", found)
    assert names == ["validation_ACC", "samples", "ACC"]
    sheet = render.sheets(found, names)[0]
    assert sheet.header == ["strategy", "", "n", "validation ACC", "samples", "ACC"]
    assert sheet.rows == [["ER", "*", "2", "0.250", "60", "0.550 ±0.635"]]
    (row,) = csv.DictReader(io.StringIO(render.csv_text(found, names)))
    assert (row["validation_ACC"], row["samples"], row["n"]) == ("0.25", "60.0", "2")
    assert "forgetting" not in row and "position" not in row
    (group,) = json.loads(render.json_text(found, names))["groups"]
    assert (group["samples"], "forgetting" in group) == (60, False)
    for render_it in (render.markdown, latex.latex, render.plain):
        assert "validation ACC" in render_it(found, names)
        assert "forgetting" not in render_it(found, names)
    for text, said in (
        ("forgeting", "--columns forgeting: no run has it; did you mean forgetting?"),
        ("benchmark", "--columns benchmark: no run has it; known are ACC, "),
        (",", "--columns: write metrics or costs with commas between"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(said)}") as error:
            columns_asked_for(text, found)
        assert "\n" not in str(error.value)


def test_the_usual_columns_repeat_nothing(run_folder, tmp_path: Path) -> None:
    """BWT is forgetting with another sign, the worst case is the least accuracy with the last."""
    more = {"min_ACC": 0.2, "worst_case_ACC": 0.2}
    path = run_folder(0.5) / "summary.csv"
    write_rows(path, [read_rows(path)[0] | more])
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    header = render.sheets(found)[0].header
    assert {"forgetting", "min ACC"} <= set(header)
    assert not {"BWT", "worst case ACC"} & set(header)
    assert (
        "BWT"
        in render.sheets(compare_runs(read_runs([str(tmp_path)])[0], Question(metric="BWT")))[
            0
        ].header
    )
    assert {"BWT", "worst_case_ACC"} <= set(
        next(csv.DictReader(io.StringIO(render.csv_text(found))))
    )


def test_the_best_of_each_column_is_bold_in_its_direction(comparison: Comparison) -> None:
    sheet = render.sheets(comparison)[0]
    bold = {
        c.title: [r for r, b in zip(sheet.columns[0].cells, c.bold, strict=True) if b]
        for c in sheet.columns
    }
    assert bold["strategy"] == bold["ACC"] == bold["position"] == ["ER policy=ring"]
    assert bold["forgetting"] == ["ER policy=ring"]  # the least; joint, with none, is a bound
    assert bold["learning accuracy"] == []  # all the same
    assert bold["intransigence"] == ["EWC"]  # the least
    assert bold["n"] == []


def test_nothing_steers_the_terminal(run_folder, tmp_path: Path) -> None:
    """Whoever made the comparison, though what is read from files has been looked at."""
    evil = "a\x1b[2Jb\x9b31m\u202ec"
    run_folder(0.5)
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    found.streams[0].groups[0].settings["strategy.policy"] = evil
    found.notes.append(evil)
    texts = (render.plain(found), shown(found, 80), render.markdown(found), render.short(found))
    for text in texts:
        assert "a\\x1b[2Jb\\x9b31m\\u202ec" in text
        assert all(c.isprintable() or c == "\n" for c in text)
    assert "\x1b" not in latex.latex(found)


def test_texts_are_broken_between_words_by_their_width_on_the_screen() -> None:
    assert terminal.broken("one two three", 7) == ["one two", "three"]
    assert terminal.broken("a/long/path-that/stays x", 5) == ["a/long/path-that/stays", "x"]
    assert terminal.broken("one two three", 8, "  ") == ["one two", "  three"]
    assert terminal.cells_wide("数字e\u0301") == 5
    columns = [terminal.TextColumn(title="a", cells=["数字", "abcd"], bold=[False] * 2)]
    columns.append(terminal.TextColumn(title="b", cells=["1", "22"], bold=[False] * 2))
    assert terminal.text(terminal.lines(columns)) == "a      b\n数字   1\nabcd  22"
