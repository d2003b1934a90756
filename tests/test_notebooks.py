"""The notebooks of examples/: they run, they show what they say, and tell nothing of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
NAMES = [path.name for path in EXAMPLES]
FEWER = {  # seeds and steps, where they are executed
    "range(1, 5)": "range(1, 2)",
    "range(5)": "range(2)",
    '"benchmark=split_digits"': '"benchmark=split_digits", "training.iterations=20"',
    'benchmark="split_digits"': 'benchmark="split_digits", training__iterations=20',
    '"benchmark=permuted_digits"': '"benchmark=permuted_digits", "training.iterations=20"',
}
SHOWN = {  # what the output of some cell has
    "first_steps.ipynb": ("<Run naive seed=0: complete", "untrained", "ER", "weights.safetensors"),
    "paper_table.ipynb": ("25 runs", "\\begin{tabular}", "DER++", "after_task", "report.html"),
}
each = pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)


def cells_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(notebook: Any) -> list[list[str]]:
    """For each cell what it shows: names of streams, and types of data."""
    return [
        sorted(
            {o.get("name", "") for o in outputs} | {k for o in outputs for k in o.get("data", ())}
        )
        for outputs in (cell["outputs"] for cell in cells_of(notebook))
    ]


def text_of(notebook: Any) -> str:
    """All that is shown, as text."""
    texts = [o.get("text") or o.get("data") for c in cells_of(notebook) for o in c["outputs"]]
    return json.dumps(texts, ensure_ascii=False)


def test_there_are_two():
    assert sorted(SHOWN) == NAMES


@each
def test_what_is_kept_is_small_and_whole(path):
    """Each cell was executed, in order, without an error; and no path of a machine is there."""
    content = path.read_text(encoding="utf-8")
    assert len(content.encode()) < 300_000
    assert not re.search(r"/(?:home|root|tmp|work|Users|usr|opt)/", content)
    notebook = json.loads(content)
    cells = cells_of(notebook)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(o["output_type"] != "error" for cell in cells for o in cell["outputs"])
    assert all(not cell["metadata"] for cell in cells)
    assert sum("image/png" in kind for kind in kinds(notebook)) >= 1
    # In JSON a backslash is two.
    assert all(json.dumps(words)[1:-1] in text_of(notebook) for words in SHOWN[path.name])


@pytest.mark.slow
@each
def test_a_notebook_runs_and_shows_the_same(path, data_root, tmp_path, monkeypatch):
    """On fewer seeds and steps: in each cell the same kinds of output, pictures among them."""
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[dev]'")
    pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[dev]'")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    import notebooks

    monkeypatch.setenv("CL_RUNNER_DATA", str(data_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses its own
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in cells_of(notebook):
        for few, less in FEWER.items():
            cell["source"] = "".join(cell["source"]).replace(few, less)
    copy = tmp_path / path.name
    copy.write_text(json.dumps(notebook), encoding="utf-8")
    assert copy.read_text(encoding="utf-8").count("iterations=20") in (1, 3)
    (tmp_path / "folder").mkdir()
    made = notebooks.executed(copy, tmp_path / "folder")
    assert kinds(made) == kinds(json.loads(path.read_text(encoding="utf-8")))
    assert "ER" in text_of(made)
