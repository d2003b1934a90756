"""The model of docs/models.md, written as its text says: weights, frozen parts, features."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cl_runner.results.files import read_rows

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
QUICK = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "benchmark.train_samples=60"),
    *("training.epochs=2", "strategy.buffer_size=20", "device=cpu", "threads=1"),
)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with the package of the page, and tiny.pt, weights for other classes."""
    blocks = dict(re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
    assert set(blocks) == {"my_lib/tiny.py", "my_lib/conf/model/tiny.yaml"}
    for name, content in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    from my_lib.tiny import Net

    torch.save(Net(1, 8, 3).state_dict(), tmp_path / "tiny.pt")
    yield tmp_path
    for name in [m for m in sys.modules if m.partition(".")[0] == "my_lib"]:
        del sys.modules[name]


@pytest.mark.slow
def test_the_model_of_the_page_goes_the_whole_way(cl_run, data_root, page):
    """Its YAML has none of the keys of all models, and the command sets two of them."""
    (command,) = re.findall(r"^PYTHONPATH=\. cl-run (plugins=\[my_lib\] .*)$", PAGE, re.MULTILINE)
    found = f"import sys; sys.path.insert(0, {str(page)!r})"
    common = (*shlex.split(command), *QUICK, f"data.root={data_root}", "checkpoint.keep=true")
    for more in (("hydra.run.dir=first",), ("hydra.run.dir=second", "model.cache_features=false")):
        done = cl_run(*common, *more, cwd=page, before=found, PYTHONPATH=".")
        assert done.returncode == 0, done.stderr
        told = "trains on features that are computed once, 8 numbers of each of"
        assert (told in done.stdout) == ("hydra.run.dir=first" in more)
        assert "the output layer is new: fc.weight is float32 [3, 8] there" in done.stdout
    on, off = (read_rows(page / name / "summary.csv")[0] for name in ("first", "second"))
    assert float(on["ACC"]) == pytest.approx(float(off["ACC"]), abs=0.01)
    assert int(on["parameters"]) == 90 and int(on["buffer_bytes"]) == 20 * 8 * 4
    resumed = cl_run("plugins=[my_lib]", "resume=first", cwd=page, before=found, PYTHONPATH=".")
    assert resumed.returncode == 0 and "complete, nothing to do" in resumed.stdout
