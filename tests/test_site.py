"""The site of the documents: it is built without a complaint, and its links lead somewhere."""

from __future__ import annotations

import html
import inspect
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import choosing
import docs_pages
import docs_picture
import pytest
import yaml
from docs_text import from_docstring, keys, links, prose, relinked, table

from cl_runner.cli import catalogue
from cl_runner.cli.choices import body, options, text
from cl_runner.strategies import available

REPOSITORY = Path(__file__).parents[1]
needs_mkdocs = "the site needs pip install 'cl_runner[docs]'"


# Markdown


def test_a_docstring_becomes_markdown() -> None:
    shown = from_docstring(
        "Loss + lambda / 2 sum_p F_p (theta_p - theta*_p)^2\n"
        "(A et al. 2017, 1612.00796, eq. 3).\n"
        "\n"
        "Two modes:\n"
        "- mode `a_b`: gamma is kept, as in\n"
        "  strategy=ewc, until buffer_size\n"
        "- b\n"
        "What is next:\n"
        "    W <- W U^T,\n"
        "with <x> as before."
    )
    assert shown.splitlines() == [
        "Loss + λ / 2 ∑<sub>p</sub> F<sub>p</sub> (θ<sub>p</sub> - θ\\*<sub>p</sub>)<sup>2</sup>",
        "(A et al. 2017, [arXiv 1612.00796](https://arxiv.org/abs/1612.00796), eq. 3).",
        "",
        "Two modes:",
        "",
        "- mode `a_b`: γ is kept, as in",
        "    `strategy=ewc`, until `buffer_size`",
        "- b",
        "",
        "What is next:",
        "",
        "> W ← W U<sup>T</sup>,  ",
        "",
        "with &lt;x&gt; as before.",
    ]


@pytest.mark.parametrize("name", available())
def test_no_docstring_is_taken_for_markup(name) -> None:
    """Every star and underscore outside of code is escaped, every word is still there."""
    docstring = inspect.cleandoc(catalogue.docstring(name))
    shown = from_docstring(docstring)
    outside = re.sub(r"`[^`]*`|\]\([^)]*\)", "", shown)
    assert not re.search(r"(?<!\\)[*_]", outside)
    plain = html.unescape(re.sub(r"</?su[bp]>", " ", shown))
    assert set(re.findall(r"[a-z]{4,}", docstring)) - set(re.findall(r"[a-z]{4,}", plain)) <= {
        *("alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "sigma", "omega"),
        *("elta", "ambda", "igma", "mega", "sqrt"),  # of those that begin with a capital
    }


def test_keys_with_their_comments() -> None:
    lines = ["name: er", "size: 500   # samples,", "            # of all", "per: null", "a: [1, 2]"]
    assert list(keys(lines)) == [
        ("name", "er", ""),
        ("size", "500", "samples, of all"),
        ("per", "null", ""),
        ("a", "[1, 2]", ""),
    ]


@pytest.mark.parametrize("name", options("strategy"))
def test_a_strategys_page_has_all_of_its_keys(name) -> None:
    file = yaml.safe_load("\n".join(body(text("strategy", name))))
    found = {key: default for key, default, _ in keys(body(text("strategy", name)))}
    assert found.keys() == file.keys()
    assert all(yaml.safe_load(found[key]) == file[key] for key in file)
    page = docs_pages.strategy_page(name)
    assert all(f"`strategy.{key}`" in page for key in file.keys() - {"name"})
    assert "## What it does" in page and "<svg" in page and "## What it costs" in page
    cells = {row["experiment"] for row in docs_pages.records("reproduction")}
    own = [cell for cell in cells if docs_pages.strategy_of(cell) == name]
    assert ("## Published numbers" in page) == bool(own)
    assert all(f"| `{cell}` |" in page.partition("## Published numbers")[2] for cell in own)


def test_code_is_not_linked() -> None:
    page = "see [a](b.md#c) and `[x](y.md)`\n```\n[u](v.md)\n```\n"
    assert list(links(page)) == ["b.md#c"]
    assert relinked(page, lambda _: "z") == page.replace("b.md#c", "z")


def test_a_table_and_prose() -> None:
    assert table(("a",), []) == ""
    assert table(("a", "b"), [("x|y", "z")]).splitlines()[2] == "| x\\|y | z |"
    assert prose("lr_factor, b_1, s_max") == "`lr_factor`, b<sub>1</sub>, s<sub>max</sub>"


def test_the_picture_shows_the_numbers() -> None:
    row = docs_picture.Row("Split digits, class", 0.18, 0.86, 0.83)
    svg = docs_picture.accuracies("A<B", [row])
    assert "A&lt;B" in svg and ">0.830</text>" in svg
    start, width = docs_picture.LABEL, docs_picture.PLOT
    own = re.search(r'class="own" cx="([\d.]+)" cy="42"', svg)
    assert own and float(own[1]) == pytest.approx(start + 0.83 * width, abs=0.1)
    without = docs_picture.accuracies("a", [row._replace(naive=None)])
    assert without.count('class="naive"') == 1  # of the key


# Tables of docs/choosing.md


@pytest.mark.parametrize("name", choosing.TABLES)
def test_the_tables_of_choosing_are_those_of_results(name) -> None:
    before, after = choosing.markers(name)
    page = choosing.PAGE.read_text(encoding="utf-8")
    assert page.partition(before)[2].partition(after)[0].strip() == choosing.TABLES[name]()


# The site


def in_navigation(entries: list) -> set[str]:
    found = set()
    for entry in entries:
        for value in entry.values():
            found |= {value} if isinstance(value, str) else in_navigation(value)
    return found


def test_the_navigation_has_every_page() -> None:
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    settings = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), loader)
    made = {"index.md", "documents.md", "contributing.md", "changelog.md", "keys.md"}
    pages = {path.name for path in REPOSITORY.glob("docs/*.md")} - {"README.md"}
    assert in_navigation(settings["nav"]) == pages | made


def test_where_links_lead_in_the_site(monkeypatch) -> None:
    pytest.importorskip("mkdocs", reason=needs_mkdocs)
    import docs_site

    monkeypatch.setattr(docs_site, "repository", lambda: "")
    assert docs_site.in_site("sweeps.md", "compare.md#tests") == "compare.md#tests"
    assert docs_site.in_site("sweeps.md", "../README.md") == "index.md"
    assert docs_site.in_site("sweeps.md", "README.md") == "documents.md"
    assert docs_site.in_site("sweeps.md", "#seeds") == "#seeds"
    assert docs_site.in_site("index.md", "docs/sweeps.md") == "sweeps.md"
    assert docs_site.in_site("strategy/er.md", "../../results/costs.csv") == (
        "../files/results/costs.csv"
    )
    monkeypatch.setattr(docs_site, "repository", lambda: "https://host/blob/main/")
    assert docs_site.in_site("sweeps.md", "../results/costs.csv") == (
        "https://host/blob/main/results/costs.csv"
    )
    assert docs_site.named("strategies.md", "| `er` | `er`, `ewc` | `er` |\n`er`") == (
        "| [`er`](strategy/er.md) | [`er`](strategy/er.md), [`ewc`](strategy/ewc.md) | `er` |\n`er`"
    )
    assert docs_site.named("a.md", "| `er`, `unknown` |") == "| `er`, `unknown` |"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason=needs_mkdocs)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site) -> None:
    """Every link of every page leads to a file of the site, and to an anchor of it."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    anchors = {path: set(re.findall(r'\bid="?([^"\s>]+)', page)) for path, page in pages.items()}
    assert len(pages) > len(options("strategy")) + len(options("benchmark"))
    for path, page in pages.items():
        for tag, link in re.findall(r'<(\w+)\b[^>]*?\b(?:href|src)="?([^"\s>]+)', page):
            target, _, anchor = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:", target):
                assert tag == "a", link
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            file = site / target.lstrip("/") if target.startswith("/") else file
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{path}: {link}"
            assert not anchor or file not in anchors or anchor in anchors[file], f"{path}: {link}"


@pytest.mark.slow
def test_the_site_has_what_the_code_has(site) -> None:
    for name in options("strategy"):
        page = (site / "strategy" / name / "index.html").read_text(encoding="utf-8")
        assert page.count("<svg class=accuracies") + page.count('<svg class="accuracies"') == 1
    for name in options("benchmark"):
        assert (site / "benchmark" / name / "index.html").is_file()
    table_ = (site / "strategies" / "index.html").read_text(encoding="utf-8")
    assert all(f"strategy/{name}/" in table_ for name in options("strategy"))
    assert "def grad_and_value" not in table_
    assert "grad_and_value" in (site / "code" / "strategy" / "index.html").read_text("utf-8")
