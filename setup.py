"""The README as a package index shows it, where a relative link leads nowhere.

Everything else about the package is in pyproject.toml. Once `[project.urls]` there names the
`Repository`, links and pictures lead to it; until then links are plain text and pictures left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def repository(pyproject: str) -> str:
    """The address of the repository that pyproject.toml names; "" where it names none."""
    found = re.search(r'^Repository *= *"([^"]+)"', pyproject, re.MULTILINE)
    return found[1].rstrip("/") if found else ""


def absolute(readme: str, address: str) -> str:
    """A text of Markdown whose relative links lead to a repository at an address, if it has one.

    They are written as most hosts of git have them: `ADDRESS/blob/HEAD/PATH`, of pictures `raw`.
    """

    def link(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        if target.startswith(("https://", "#")):
            return found[0]
        if not address:
            return "" if picture else text
        return f"{picture}[{text}]({address}/{'raw' if picture else 'blob'}/HEAD/{target})"

    return LINK.sub(link, readme)


if __name__ == "__main__":
    setup(
        long_description=absolute(
            (ROOT / "README.md").read_text(encoding="utf-8"),
            repository((ROOT / "pyproject.toml").read_text(encoding="utf-8")),
        ),
        long_description_content_type="text/markdown",
    )
