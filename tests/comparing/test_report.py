"""The page: what is on it, that nothing of a file is taken for HTML, and how a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from cl_runner import __version__
from cl_runner.comparing import cli, report
from cl_runner.comparing.render import sheets
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import Comparison, Question, compare_runs
from cl_runner.comparing.verdict import verdict
from cl_runner.errors import Diverged, UserError
from cl_runner.results import status

MADE = "2026-11-26 12:00 +0000"
HOSTILE = "</td><script>alert(1)</script>\"'&$x^$"
# A page with these scripts and styles only, that loads nothing.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Page(HTMLParser):
    """What is on a page: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


@pytest.fixture(scope="module")
def comparison(shared_run_folder) -> Comparison:
    """Two streams with two groups each, a hostile setting, a failed run with a hostile reason."""
    for benchmark in ("toy", "other"):
        for strategy, acc in {"er": 0.6, "naive": 0.45}.items():
            for seed in range(2):
                out = shared_run_folder(
                    acc + seed / 20, strategy=strategy, seed=seed, benchmark=benchmark
                )
                overrides = [f"strategy={strategy}", f"+x='{HOSTILE}'", f"seed={seed}"]
                (out / "overrides.yaml").write_text(yaml.safe_dump(overrides), encoding="utf-8")
    shared_run_folder(0.52, strategy="naive", seed=2, training__epochs=10, optimizer__lr=0.5)
    shared_run_folder(0.5, strategy="ewc", strategy__lambda=1, seed=0)
    shared_run_folder(0.5, strategy="ewc", strategy__lambda=HOSTILE, seed=0)
    failed = shared_run_folder(0.5, strategy="si", status="failed")
    status.fail(failed, Diverged(HOSTILE))
    runs = read_runs([str(failed.parent)])[0]
    return compare_runs(runs, Question(baseline="naive"))


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return report.page(comparison, f"cl-compare '{HOSTILE}'", MADE)[0]


@pytest.mark.slow
def test_every_cell_of_every_table_is_on_the_page(comparison: Comparison, page: str) -> None:
    found = Page(page)
    expected = [
        cell for sheet in sheets(comparison) for row in [sheet.header, *sheet.rows] for cell in row
    ]
    assert found.cells[: len(expected)] == expected
    text = "".join(found.words)
    assert "8 complete runs" not in text and "11 complete runs on 2 streams, 1 that are" in text
    assert found.cells[-3:-1] == ["failed", "si seed=0"]
    assert found.cells[-1].startswith(HOSTILE)
    assert "note: toy, 3 tasks, domain-IL: " in text


@pytest.mark.slow
def test_what_comes_from_files_is_text(page: str) -> None:
    found = Page(page)
    assert HOSTILE in "".join(found.words)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert "alert(1)" not in page.partition("<script>")[2]
    assert f"EWC lambda={HOSTILE}" in found.cells


@pytest.mark.slow
def test_the_page_allows_its_own_style_and_script_only(page: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.slow
def test_the_answer_and_its_origin_are_on_top(comparison: Comparison, page: str) -> None:
    text = " ".join(" ".join(Page(page.partition("<h2>")[0] + "</body></html>").words).split())
    for stream in comparison.streams:
        assert f"{stream.title}. {' '.join(verdict(stream))} " in text
    assert f"page {MADE}, cl-compare {__version__}" in text
    assert "software cl_runner 1, commit abc" in text and f"cl-compare '{HOSTILE}'" in text


@pytest.mark.slow
def test_marks_are_explained_below_the_table_and_nothing_twice(page: str) -> None:
    part = page.partition("<h2>toy")[2].partition("<h2>")[0]
    quality, _, rest = part.partition("<h3>Mean costs")
    assert quality.count("no test could tell it from the best") == 1
    assert "the best ACC" not in rest and "Wilcoxon" not in page
    assert rest.count("in units of the standard deviation of the differences") == 1  # two tables
    titles = re.findall(r"<h3>(.*?)</h3>", part)
    assert len(titles) == len(set(titles))


@pytest.mark.slow
def test_the_cheapest_is_bold_among_the_costs(run_folder, tmp_path: Path) -> None:
    run_folder(0.6, strategy="er", samples=90)
    run_folder(0.4, strategy="naive", samples=60)
    found = compare_runs(read_runs([str(tmp_path)])[0], Question())
    costs = report.page(found, "cl-compare", MADE)[0].partition("<h3>Mean costs")[2]
    bold = re.findall(r'<td class="best"[^>]*>([^<]*)', costs.partition("</table>")[0])
    assert bold == ["60"]  # naive's samples; not the row of ER


@pytest.mark.slow
def test_pictures_have_their_titles_from_the_page(page: str) -> None:
    pytest.importorskip("matplotlib")
    pictures = [base64.b64decode(text) for text in re.findall(r"base64,([^\"]*)", page)]
    assert len(pictures) >= 7 and all(b"<svg" in picture for picture in pictures)
    # matplotlib writes each text above its outlines.
    assert not any(b"<!-- toy, 3 tasks" in picture for picture in pictures)
    assert any(b"<!-- ER (n" in picture for picture in pictures)
    assert 'alt="Average accuracy on the tasks learned so far: mean, 95 % interval: toy' in page


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    pytest.importorskip("matplotlib")
    found = Page(page)
    links = [
        (tag, value)
        for tag, attributes in found.tags
        for name, value in attributes.items()
        if name in {"src", "href"} and value is not None
    ]
    outside = {v for _, v in links if not v.startswith(("#", "data:"))}
    assert outside == {"https://arxiv.org/abs/2108.13264"}
    assert all(tag == "a" for tag, value in links if value in outside)
    assert sum(tag == "img" for tag, _ in links) >= 7
    assert "url(" not in page and "@import" not in page and "fetch" not in page
    identities = {a["id"] for _, a in found.tags if "id" in a}
    assert {v[1:] for _, v in links if v.startswith("#")} <= identities


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(comparison: Comparison, page: str) -> None:
    assert report.page(comparison, f"cl-compare '{HOSTILE}'", MADE)[0] == page


def test_a_row_says_which_command_repeats_it(run_folder, tmp_path: Path) -> None:
    value = "strategy.note='a b'"
    for seed, more in ((0, []), (1, []), (2, ["verbose=false"])):
        out = run_folder(0.5, seed=seed)
        overrides = ["strategy=er", value, *more, f"seed={seed}"]
        (out / "overrides.yaml").write_text(yaml.safe_dump(overrides), encoding="utf-8")
    bare = run_folder(0.5, seed=3)
    runs = read_runs([str(tmp_path)])[0]
    commands = [shlex.split(command) for command in report.commands_of(runs)]
    assert commands == [
        ["cl-run", "-m", "strategy=er", value, "seed=0,1"],
        ["cl-run", "strategy=er", value, "verbose=false", "seed=2"],
    ]
    assert report.commands_of([run for run in runs if run.folder == bare]) == []
    text, source = report.configuration(runs[0])
    assert yaml.safe_load(text)["optimizer"]["lr"] == 0.1 and "seed 0, config.yaml" in source
    (bare / "config.yaml").unlink()
    text, source = report.configuration(runs[3])
    assert "optimizer.lr: 0.1" in text.splitlines() and "seed 3, from summary.csv" in source


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        (["0.5 ±0.1", "-", "0.25"], "number", ["0.5", "", "0.25"]),
        (["< 0.001", "0.001", "1.2e+13"], "number", ["0.0005", "0.001", "12000000000000.0"]),
        (["144,200", "-0.5", "+3"], "number", ["144200.0", "-0.5", "3.0"]),
        (["paired t", "-"], "text", ["paired t", ""]),
        (["*", "", "~"], "text", ["*", "", "~"]),
        (["-", ""], "text", ["", ""]),
    ],
)
def test_columns_are_sorted_by_their_numbers(column, kind: str, values: list[str]) -> None:
    assert report.kind(column) == kind
    assert [report.value(cell, kind) for cell in column] == values


def test_without_matplotlib_the_page_says_that_there_are_no_pictures(
    comparison: Comparison, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text, missing = report.page(comparison, "cl-compare", MADE)
    assert missing is not None and "pip install 'cl_runner[plots]'" in missing
    assert "<img" not in text and "No pictures: drawing needs matplotlib" in text
    assert text.count("<table") == len(sheets(comparison)) + 1


@pytest.mark.slow
def test_the_command_writes_it_and_overwrites_only_its_own(
    run_folder, tmp_path, monkeypatch
) -> None:
    run_folder(0.5)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["runs", "--html", "r.html"]) == 0
    assert cli.run(["runs", "--html", "r.html"]) == 0
    assert "cl-compare runs --html r.html" in Path("r.html").read_text(encoding="utf-8")
    Path("mine.html").write_text("<p>mine", encoding="utf-8")
    for name, said in (
        ("mine.html", "exists and is no page of cl-compare"),
        ("runs", "is a folder"),
        ("no/r.html", "there is no folder no"),
    ):
        with pytest.raises(UserError, match=f"--html {name}.*{said}"):
            cli.run(["runs", "--html", name])
    assert Path("mine.html").read_text(encoding="utf-8") == "<p>mine"


def test_damaged_files_are_one_line_and_no_page(run_folder, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    out = run_folder(0.5)
    text = (out / "accuracy_matrix.csv").read_text(encoding="utf-8")
    (out / "accuracy_matrix.csv").write_text(text[: len(text) // 2], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"accuracy_matrix\.csv is not an accuracy matrix of cl-run"
    ):
        cli.run(["runs", "--html", "r.html"])
    assert not Path("r.html").exists()


# In a browser.


@pytest.fixture
def browser(tmp_path: Path):
    """browser(scripts=True) -> a headless Chromium."""
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    assert selenium
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser here: install chromium and chromium-driver")
    opened = []

    def start(*, scripts: bool = True):
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in (*FLAGS, f"--user-data-dir={tmp_path / f'profile{len(opened)}'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        found = webdriver.Chrome(options=options, service=Service(driver))
        opened.append(found)
        found.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        return found

    yield start
    for one in opened:
        one.quit()


@pytest.mark.slow
def test_in_a_browser_headers_sort_and_nothing_goes_wrong(browser, page: str, tmp_path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    driver = browser()
    driver.get(path.as_uri())

    def column(name: str) -> list[str]:
        return driver.execute_script(
            """const table = document.querySelector("table.sortable");
            const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
            const place = names.indexOf(arguments[0]);
            return [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);""",
            name,
        )

    def click(name: str) -> None:
        buttons = driver.find_elements("css selector", "table.sortable th button")
        next(b for b in buttons if b.text == name).click()

    before = column("ACC")
    numbers = sorted(float(cell.split()[0]) for cell in before)
    for name, wanted in (("ACC", numbers[::-1]), ("ACC", numbers)):
        click(name)
        assert [float(cell.split()[0]) for cell in column(name)] == wanted
    click("strategy")
    assert column("strategy") == sorted(column("strategy"), reverse=True)
    aria = [e.get_attribute("aria-sort") for e in driver.find_elements("css selector", "th")]
    assert aria.count("descending") == 1 and aria.count("ascending") == 0
    assert driver.get_log("browser") == []
    first_column = """const box = document.querySelector(".scroll");
        box.scrollLeft = 1000;
        const own = box.querySelector("td").getBoundingClientRect();
        return [Math.round(own.left - box.getBoundingClientRect().left), box.scrollLeft > 0]"""
    for width in (1200, 400):  # tables scroll in their own box, the page does not
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wider = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
        assert driver.execute_script(wider) == 0
        assert driver.execute_script(first_column) == [0, width == 400]
    unloaded = "return [...document.images].filter((i) => !i.naturalWidth).length"
    assert driver.execute_script(unloaded) == 0
    shades = "return getComputedStyle(document.body).backgroundColor"
    for scheme, colour in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 24, 27)")):
        wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
        assert driver.execute_script(shades) == colour


@pytest.mark.slow
def test_without_scripts_every_table_is_there(browser, page: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    driver = browser(scripts=False)
    driver.get(path.as_uri())
    assert driver.find_elements("css selector", "th button") == []  # no button that does nothing
    tables = driver.find_elements("tag name", "table")
    assert len(tables) == page.count("<table") and all(t.is_displayed() for t in tables)
    first = driver.find_elements("css selector", "details")[0]
    assert not first.find_element("tag name", "pre").is_displayed()
    first.find_element("tag name", "summary").click()
    assert first.find_element("tag name", "pre").text.startswith("cl-run ")
    assert driver.get_log("browser") == []
