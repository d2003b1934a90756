"""What a run leaves that another run of the same configuration must leave, too."""

from __future__ import annotations

from pathlib import Path

from cl_runner.results.columns import reproducible
from cl_runner.results.files import read_rows


def outcome(out: Path) -> dict[str, object]:
    """All CSV files of a run: bytes, but of two of them the cells that can be reproduced."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in sorted(out.glob("*.csv"))}
    for name in ("summary.csv", "costs.csv"):
        rows = read_rows(out / name)
        files[name] = [[(k, v) for k, v in row.items() if reproducible(k)] for row in rows]
    return files
