"""One comparison in five formats: the same numbers, and nothing hidden."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from cl_runner import status
from cl_runner.compare import render
from cl_runner.compare.runs import read_runs
from cl_runner.compare.table import Comparison, Question, compare
from cl_runner.errors import Diverged
from cl_runner.results import read_rows, write_rows


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
    return compare(read_runs([str(tmp_path)])[0], Question(baseline="naive"))


def row(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start) and "±" in line]
    return line


def test_the_plain_table_says_all(comparison: Comparison) -> None:
    text = render.plain(comparison)
    assert "\x1b" not in text
    assert text.startswith("toy, 3 tasks, domain-IL\n")
    best = row(text, "er policy=ring")
    assert best.split()[2:6] == ["*", "3", "0.613", "±0.063"]
    assert row(text, "er policy=class_balanced").split()[2] == "?"  # three seeds cannot tell
    assert row(text, "naive").split()[1] == "3"  # no mark: it is worse
    assert re.search(r"^ewc +\? +1 +1 +0\.500 ", text, re.MULTILINE)
    assert "paired t" in text and "Cohen's d" in text
    assert "no test: too few shared seeds" in text
    assert "few seeds (3): the t-test relies on normal differences" in text
    assert "1 runs are not complete and not averaged in:\n  failed: ewc seed=1, the loss" in text
    assert "against the baseline, naive" in text


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
    assert "| **er policy=ring** | \\* | **3** |" in text
    assert "| er policy=class_balanced | ? | 3 |" in text


def test_latex_is_balanced_and_escaped(comparison: Comparison) -> None:
    text = render.latex(comparison)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.count("\\begin{tabular}") == body.count("\\end{tabular}") > 0
    assert "\\textbf{er policy=ring}" in body
    assert "class\\_balanced" in body
    assert not re.search(r"(?<!\\)[_%#]", body)
    assert not set("±<>") & set(body.replace("$<$", ""))
    for line in re.findall(r".*&.*", body):
        assert line.endswith("\\\\")


def test_a_name_with_specials_survives_every_format(run_folder, tmp_path) -> None:
    for name in ("a|b", "c_d&e"):
        run_folder(0.5, strategy__policy=name, folder=f"f{len(name)}")
    found = compare(read_runs([str(tmp_path)])[0], Question())
    assert "policy=a\\|b" in render.markdown(found)
    assert "policy=c\\_d\\&e" in render.latex(found)
    assert "policy=c_d&e" in render.plain(found)


def test_too_few_seeds_for_a_bootstrap_are_said(run_folder, tmp_path: Path) -> None:
    for benchmark in "xy":
        for strategy, acc in {"a": 0.6, "b": 0.5}.items():
            run_folder(acc, benchmark=benchmark, strategy=strategy)
    said = "the bootstrap intervals over the streams are too narrow"
    text = render.plain(compare(read_runs([str(tmp_path)])[0], Question()))
    assert f"few seeds (1, at least 5 are wanted): {said}" in text
    (line,) = [line for line in text.splitlines() if re.match(r"a +1\.00", line)]
    assert line.split() == ["a", "1.00", "0.6000", "-", "-", "-"]  # no interval of one run
    for benchmark in "xy":
        for strategy, acc in {"a": 0.6, "b": 0.5}.items():
            for seed in range(1, 5):
                run_folder(acc + seed / 100, benchmark=benchmark, strategy=strategy, seed=seed)
    assert said not in render.plain(compare(read_runs([str(tmp_path)])[0], Question()))


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
    found = compare(read_runs([str(tmp_path)])[0], Question(metric="flops"))
    quality, price = render.sheets(found)[:2]
    assert price.header[3:] == ["GFLOPs", "parameters", "memory kB", "peak memory MB"]
    cells = {row[0]: row[3:] for row in price.rows}
    assert cells == {"naive": ["2.5", "100", "0", "-"], "er": ["31.9", "100", "1.5", "383"]}
    assert (quality.header[3], [row[3] for row in quality.rows]) == ("GFLOPs", ["2.5", "31.9"])
    rows = csv.DictReader(io.StringIO(render.csv_text(found)))
    assert [float(row["flops"]) for row in rows] == [2_500_000_000, 31_879_290_880]


def test_there_is_no_minus_zero() -> None:
    assert (render.number(-0.0004), render.number(-0.0006)) == ("0.000", "-0.001")


def test_metrics_within_tasks_and_calibration_have_columns(run_folder, tmp_path: Path) -> None:
    for strategy, low in (("er", 0.2), ("naive", 0.1)):
        out = run_folder(0.5, strategy=strategy)
        write_rows(out / "summary.csv", [read_rows(out / "summary.csv")[0] | {"min_ACC": low}])
        rows = [{"after_task": 3, "reading": "domain", "split": "test", "NLL": low, "Brier": 1}]
        write_rows(out / "calibration.csv", [rows[0] | {"ECE": 0.5}])
    for metric, first in (("min_ACC", "er"), ("NLL", "naive")):  # more, and less, is better
        found = compare(read_runs([str(tmp_path)])[0], Question(metric=metric))
        sheet = render.sheets(found)[0]
        assert {"min ACC", "NLL", "Brier", "ECE"} <= set(sheet.header)
        assert sheet.rows[0][0] == first and sheet.bold == [True, False]
