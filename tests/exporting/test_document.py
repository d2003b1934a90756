"""The examples of docs/export.md do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_runner.exporting.formats import written
from cl_runner.exporting.load import load_model
from cl_runner.running.loop import run

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
FILES = dict(re.findall(r"cl-run export run --to (\w+) (\S+)", PAGE.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_every_example_gives_the_same(configure, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    own = "training.epochs=2", "benchmark.train_samples=200", "checkpoint.keep=true"
    run(configure("benchmark=split_digits", "strategy=er", *own), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    model = load_model("run")
    for form, name in FILES.items():
        Path(name).write_bytes(written(model, form))
    images = torch.randint(0, 256, (5, *model.input_shape), dtype=torch.uint8)
    np.save("images.npy", images.numpy())
    assert len(EXAMPLES) == len(FILES) + 1 == 5
    for example in EXAMPLES:
        found: dict[str, object] = {}
        exec(example, found)
        probabilities = torch.as_tensor(found["probabilities"])
        torch.testing.assert_close(probabilities, model(images), rtol=0, atol=1e-5)
