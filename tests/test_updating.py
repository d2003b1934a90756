"""The engineer's story (docs/updating.md), from images month by month to one paragraph."""

from __future__ import annotations

import re
from pathlib import Path

import make_inbox
import numpy as np
import pytest
from PIL import Image

from cl_runner.results.files import read_rows

PAGE = Path(__file__).parents[1] / "docs" / "updating.md"
WAYS = ("naive", "er", "cumulative", "from_scratch")


@pytest.fixture(scope="module")
def inbox(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("story") / "inbox"
    assert make_inbox.write(folder) == len(list(folder.rglob("*.png"))) > 1700
    return folder


def test_the_inbox_has_a_new_class_and_drifts(inbox) -> None:
    assert sorted(path.name for path in inbox.iterdir()) == list(make_inbox.MONTHS)
    since = [month for month in make_inbox.MONTHS if (inbox / month / "7").exists()]
    assert since == list(make_inbox.MONTHS[2:])
    names = [path.name for path in inbox.rglob("*.png")]
    assert len(names) == len(set(names))  # no image is in two months
    ends = []
    for month in make_inbox.MONTHS:
        pixels = [np.asarray(Image.open(path)) for path in (inbox / month).rglob("*.png")]
        ends.append((int(np.max(pixels)), int(np.max(pixels)) - int(np.min(pixels))))
    assert ends[0] == (255, 255)
    assert ends == sorted(ends, reverse=True) and len(set(ends)) == len(ends)


@pytest.mark.slow
def test_the_story_ends_with_a_paragraph(cl_run, forked, inbox, data_root, tmp_path) -> None:
    """Two seeds and few epochs: what is said is true of these runs, and said as the page says."""
    common = (
        *("benchmark=folders", f"data.path={inbox}", f"data.root={data_root}", "device=cpu"),
        *("training.epochs=3", "optimizer=adam", "threads=1"),
    )
    done = cl_run(
        *("-m", f"strategy={','.join(WAYS)}", "seed=0,1", "hydra.sweep.dir=updated"),
        *(*common, "model.hidden_sizes=[64]"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "2025-03 is the first with '7'" in done.stdout
    rows = read_rows(tmp_path / "updated" / "summary.csv")
    assert len(rows) == 8 and {row["status"] for row in rows} == {"complete"}
    one = next((tmp_path / "updated").glob("*from_scratch*"))
    assert list(read_rows(one / "accuracy_matrix.csv")[0])[-6:] == list(make_inbox.MONTHS)
    done = forked("from cl_runner.comparing.cli import main; main()", "updated", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    paragraph = done.stdout.splitlines()[1]
    assert "Training from scratch takes" in paragraph
    told = " ".join(PAGE.read_text(encoding="utf-8").split())
    (start,) = re.findall(r"^Which way to update, by [\w ]+: ", paragraph)
    assert start in told
    kept = "all data so far for from scratch and cumulative"
    assert kept in told and all(part in paragraph for part in ("all data so far for ", " nothing"))
    ratio = {
        way: np.mean([float(row["flops"]) for row in rows if row["strategy"] == way])
        for way in WAYS
    }
    assert ratio["cumulative"] == ratio["from_scratch"]
    assert f"naive {ratio['naive'] / ratio['from_scratch']:.1f} and" in paragraph
