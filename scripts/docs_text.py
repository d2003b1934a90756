"""Docstrings, links and keys as Markdown, for the pages that scripts/docs_site.py generates."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "eta": "η",
    "theta": "θ",
    "lambda": "λ",
    "mu": "μ",
    "xi": "ξ",
    "sigma": "σ",
    "tau": "τ",
    "phi": "φ",
    "omega": "ω",
    "Delta": "Δ",
    "Lambda": "Λ",
    "Sigma": "Σ",
    "Omega": "Ω",
}
GREEK_WORD = re.compile(rf"(?<![\w.])(?:{'|'.join(GREEK)})(?![A-Za-z0-9]|_[a-z]{{2}}|_ |=)")
LETTERS = "".join(GREEK.values())
# What an index may hang on: one letter, with a star or a prime, or an operator.
BASE = rf"((?<!\w)(?:[A-Za-z{LETTERS}](?:\*|')?|sum|mean|argmax|argmin|(?:max|min)(?=_.\b))|[|)])"
INDEX = re.compile(rf"{BASE}_(\{{[^}}]+\}}|\([^)]+\)|[A-Za-z0-9]+)(?!\w)")
POWER = re.compile(r"\^(\{[^}]+\}|-?[A-Za-z0-9]+)")
IDENTIFIER = re.compile(
    r"(?<![\w`/.])(?:[a-z][a-z0-9_]*\.)*[a-z][a-z0-9]+(?:_[a-z0-9]+)+(?:\.(?:csv|py|json))?(?![\w/(])"
)
SECTION = "training|eval|strategy|benchmark|optimizer|model|data|budget|guard|checkpoint"
KEY = re.compile(rf"(?<![\w`/.])(?:{SECTION})\.[a-z]+(?![\w/(=.])")
SETTING = re.compile(
    r"(?<![\w`/.'])(?:[a-z][a-z0-9_]*\.)*[a-z][a-z0-9_]{2,}=[a-z0-9](?:[\w./]*\w)?(?![\w(])"
)
ARXIV = re.compile(r"(?<![\d.])(?:arXiv )?(\d\d(?:0[1-9]|1[0-2])\.\d{4,5})(?![\d.]\d)")
GITHUB = re.compile(r"(?<![\w/])github\.com/[\w-]+/[\w-]+")
SIGNS = (("<-", "←"), ("<=", "≤"), (">=", "≥"), (" (x) ", " ⊗ "), ("sqrt(", "√("))
CODE = re.compile(r"(``.+?``|`[^`\n]+`)", re.DOTALL)
LINK = re.compile(r"(^```.*?^```$|`[^`\n]+`)|(\]\()([^)\s]+)(?=\))", re.MULTILINE | re.DOTALL)


# Kinds of lines between which Markdown wants an empty one.
BREAKS = {
    *(("text", "item"), ("text", "equation"), ("equation", "text"), ("equation", "item")),
    *(("item", "text"), ("more", "text")),
}


def from_docstring(docstring: str) -> str:
    """A docstring as Markdown: paragraphs, lists, equations set off, papers linked."""
    whole = re.sub(r"arXiv\n( *)(?=\d)", r"\n\1arXiv ", docstring)
    return "\n".join(prose(part) for part in laid_out(whole))


def laid_out(docstring: str) -> Iterator[str]:
    """Its lines, with the empty lines that Markdown wants around lists and equations."""
    before = "text"
    for line in textwrap.dedent(docstring).splitlines():
        indent = len(line) - len(line.lstrip())
        if not line:
            kind = "empty"
        elif line.startswith("- "):
            kind = "item"
        elif indent and before in ("item", "more"):
            kind = "more"
        else:
            kind = "equation" if indent else "text"
        if "empty" not in (kind, before) and (before, kind) in BREAKS:
            yield ""
        yield {"equation": f"> {line.strip()}  ", "more": f"    {line.strip()}"}.get(kind, line)
        before = before if kind == "empty" and before in ("item", "more") else kind


def prose(text: str) -> str:
    """One line or more of plain text as Markdown; what stands between backticks stays code."""
    return "".join(
        part if i % 2 else linked(mathematics(part)) for i, part in enumerate(CODE.split(text))
    )


def mathematics(text: str) -> str:
    """Equations in plain text with Greek letters, indices and exponents."""
    lead = re.match(r"(?:> |- | +)*", text)
    start = lead[0] if lead else ""
    text = GREEK_WORD.sub(lambda found: GREEK[found[0]], text[len(start) :])
    for sign, letter in SIGNS:
        text = text.replace(sign, letter)
    text = escaped(text)
    text = INDEX.sub(lambda found: f"{found[1]}<sub>{inner(found[2])}</sub>", text)
    text = POWER.sub(lambda found: f"<sup>{inner(found[1])}</sup>", text)
    text = text.replace("sum<sub>", "∑<sub>")
    for name in (SETTING, IDENTIFIER, KEY):
        parts = CODE.split(text)
        parts[::2] = [name.sub(lambda found: f"`{found[0]}`", part) for part in parts[::2]]
        text = "".join(parts)
    parts = CODE.split(re.sub(r" \* ", " · ", text))
    parts[::2] = [re.sub(r"([*_])", r"\\\1", part) for part in parts[::2]]
    return start + "".join(parts)


def inner(index: str) -> str:
    """An index without its braces."""
    return index.strip("{}")


def escaped(text: str) -> str:
    """Without what HTML and Markdown take for their own, but for stars and underscores."""
    return re.sub(r"([\[\]])", r"\\\1", html.escape(text, quote=False))


def linked(text: str) -> str:
    """With a link for every arXiv number and every repository on GitHub."""
    text = ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return GITHUB.sub(lambda found: f"[{found[0]}](https://{found[0]})", text)


def keys(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of the lines of a YAML file; a comment may go on below its key."""
    key, default, about = "", "", ""
    for line in lines:
        if found := re.match(r"(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line):
            if key:
                yield key, default, about
            key, default, about = found[1], found[2], found[3] or ""
        elif "#" in line:
            about += f" {line.partition('#')[2].strip()}"
    if key:
        yield key, default, about


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; "" without rows."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])


def relinked(markdown: str, target: Callable[[str], str]) -> str:
    """With every link that stands outside of code led to `target(link)`."""
    return LINK.sub(
        lambda found: found[1] or f"{found[2]}{target(found[3])}",
        markdown,
    )


def links(markdown: str) -> Iterator[str]:
    """Every link that stands outside of code."""
    return (found[3] for found in LINK.finditer(markdown) if found[3])
