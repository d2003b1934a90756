"""The hook by which mkdocs makes the site of docs/: links, generated pages, navigation.

A page is written for two readers. In the repository its links lead to files; in the site README.md,
CONTRIBUTING.md and CHANGELOG.md are pages as well, and every other file that a page links to (CSV,
scripts, tests) is taken into the site, or linked in the repository's own address if pyproject.toml
has one (`Repository` of its URLs). So no page needs to know of the site.

A strategy, a benchmark and the reference of the code have pages that scripts/docs_pages.py makes
when the site is built; their names in the tables of other pages become links to them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import docs_pages
from docs_text import links, relinked
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cl_runner.cli.catalogue import FAMILIES
from cl_runner.cli.choices import options

ROOT = Path(__file__).parents[1]
# Files of the repository that are pages of the site by other names; other pages keep theirs.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "documents.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
TAKEN = "files"  # the folder of the site for files that are no pages
CELL = re.compile(r"`(\w+)`(?:, `\w+`)*")


def generated() -> dict[str, str]:
    """Every page that is made of the code: its path in the site -> its Markdown."""
    pages = {f"strategy/{n}.md": docs_pages.strategy_page(n) for n in options("strategy")}
    pages |= {f"benchmark/{n}.md": docs_pages.benchmark_page(n) for n in options("benchmark")}
    pages |= {f"code/{n}.md": docs_pages.module_page(n) for n in docs_pages.MODULES}
    return {**pages, "keys.md": docs_pages.keys_page()}


def origin(src_uri: str) -> str:
    """The path in the repository of a page of the site, as its links see it."""
    return next((o for o, page in PAGES.items() if page == src_uri), f"docs/{src_uri}")


def repository() -> str:
    """The address of the repository's files, from pyproject.toml; "" if there is none."""
    urls = (url.partition(", ") for url in metadata("cl_runner").get_all("Project-URL") or [])
    address = next((address for label, _, address in urls if label == "Repository"), "")
    return f"{address.rstrip('/')}/blob/main/" if address else ""


def in_site(src_uri: str, link: str) -> str:
    """A link of a page, as the site has it."""
    path, sign, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", link):
        return link
    file = posixpath.normpath(posixpath.join(posixpath.dirname(origin(src_uri)), path))
    if file in PAGES or file.startswith("docs/"):
        target = PAGES.get(file, file.removeprefix("docs/"))
    elif repository():
        return f"{repository()}{file}{sign}{anchor}"
    else:
        target = f"{TAKEN}/{file}"
    return posixpath.relpath(target, posixpath.dirname(src_uri) or ".") + sign + anchor


def outside(src_uri: str, markdown: str) -> Iterator[str]:
    """The files of the repository that a page links to and that are no pages."""
    for link in links(markdown):
        target = posixpath.normpath(
            posixpath.join(posixpath.dirname(src_uri), in_site(src_uri, link).partition("#")[0])
        )
        if target.startswith(f"{TAKEN}/"):
            yield target.removeprefix(f"{TAKEN}/")


def named(src_uri: str, markdown: str) -> str:
    """With the names of strategies and benchmarks that fill a cell of a table as links."""
    known = {n: f"strategy/{n}.md" for n in options("strategy")}
    known |= {n: f"benchmark/{n}.md" for n in options("benchmark")}

    def cell(found: re.Match[str]) -> str:
        names = re.findall(r"\w+", found[0])
        if not all(name in known for name in names):
            return found[0]
        start = posixpath.dirname(src_uri) or "."
        return ", ".join(f"[`{n}`]({posixpath.relpath(known[n], start)})" for n in names)

    def line(text: str) -> str:
        if not text.startswith("| "):
            return text
        first, *others = re.split(r"(?<!\\)\|", text[1:])
        several = [c if "`, `" not in c else CELL.sub(cell, c) for c in others]
        return "|" + "|".join([CELL.sub(cell, first), *several])

    return "\n".join(line(text) for text in markdown.split("\n"))


# What mkdocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation by the generated pages."""
    strategies = [
        {family.capitalize(): [{docs_pages.people(n): f"strategy/{n}.md"} for n in members]}
        for family, members in FAMILIES.items()
    ]
    kinds: dict[str, list[dict[str, str]]] = {}
    for name in options("benchmark"):
        kind = re.sub(r"_(digits|letter|(fashion_)?mnist|cifar100?|npz|folder)$", "", name)
        kinds.setdefault(kind.replace("_", " "), []).append({name: f"benchmark/{name}.md"})
    alone = [pages[0] for pages in kinds.values() if len(pages) == 1]
    benchmarks = [
        *({kind.capitalize(): pages} for kind, pages in kinds.items() if len(pages) > 1),
        {"Others": alone},
    ]
    code = [{title: f"code/{n}.md"} for n, (title, *_) in docs_pages.MODULES.items()]
    more = {
        "Strategies": strategies,
        "Benchmarks": benchmarks,
        "Python": code[:1],
        "Extend": code[1:],
    }
    for section in config.nav or []:
        for title, pages in section.items():
            if title in more:
                pages.extend(more[title])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README and its like, the generated pages, and the files that pages link to."""
    index = files.get_file_from_path("README.md")
    if index is not None:
        files.remove(index)
    texts = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in PAGES.items()}
    texts |= generated()
    for src_uri, text in texts.items():
        files.append(File.generated(config, src_uri, content=text))
    taken: set[str] = set()
    for file in files.documentation_pages():
        taken.update(outside(file.src_uri, file.content_string))
    for path in sorted(taken):
        files.append(File.generated(config, f"{TAKEN}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead every link of a page to where the site has it."""
    src_uri = page.file.src_uri
    return named(src_uri, relinked(markdown, lambda link: in_site(src_uri, link)))
