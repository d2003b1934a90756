"""Each format, read back without us, is as accurate as the run was."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from cl_runner.cli import export
from cl_runner.exporting.formats import WRITERS, written
from cl_runner.exporting.load import load_model

pytestmark = [
    pytest.mark.slow,  # torch's exporters take seconds to import
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def images(trained):
    return trained("images")


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory):
    """exported("onnx"): the file of the model of `images`."""
    folder, model = tmp_path_factory.mktemp("exported"), load_model(images.folder)

    def function(form):
        path = folder / form
        if not path.exists():
            path.write_bytes(written(model, form))
        return path

    return function


def ends_with(trained, models):
    assert trained.reached(models) == pytest.approx(trained.accuracies(), abs=1e-9)


def same(trained, model, other, atol=1e-6):
    """The same classes, but for ties."""
    for task in trained.stream:
        x, _ = trained.test(task.index)
        with torch.no_grad():
            ours, theirs = model(x), torch.as_tensor(other(x))
        assert theirs.shape == ours.shape
        assert torch.allclose(ours, theirs, rtol=0, atol=atol)
        taken = ours.gather(1, theirs.argmax(1)[:, None])[:, 0]
        assert torch.allclose(taken, ours.amax(1), rtol=0, atol=atol)


def test_the_formats_of_the_command_are_those_that_are_written():
    assert set(export.FORMATS) == set(WRITERS)


def test_a_program_runs_where_cl_runner_is_not(images, exported, tmp_path):
    np.savez(tmp_path / "x.npz", *(images.test(t.index)[0].numpy() for t in images.stream))
    code = f"""
import sys, warnings
sys.modules["cl_runner"] = None  # whoever imports it fails
warnings.simplefilter("ignore")
import json, numpy as np, torch
card = {{"card": ""}}
model = torch.export.load({str(exported("pt"))!r}, extra_files=card).module()
x = np.load({str(tmp_path / "x.npz")!r})
out = [model(torch.from_numpy(x[name])).numpy() for name in x.files]
np.savez({str(tmp_path / "out.npz")!r}, *out)
print(json.loads(card["card"])["name"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (0, "icarl on split_digits\n"), done.stderr
    found = np.load(tmp_path / "out.npz")
    answers = iter([found[name] for name in found.files])
    ends_with(images, [lambda _: next(answers)] * len(images.stream))


def test_onnx_runs_in_its_runtime(images, exported):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(exported("onnx"))
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [1, 8, 8])
    assert (found.name, found.shape[1:]) == ("probabilities", [10])
    assert isinstance(given.shape[0], str)  # an open number of images
    assert json.loads(session.get_modelmeta().custom_metadata_map["card"])["name"]

    def model(x):
        return session.run(None, {"images": x.numpy()})[0]

    ends_with(images, [model] * len(images.stream))
    # Its resizing rounds a few pixels otherwise, by a 255th, where they lie between two numbers.
    same(images, load_model(images.folder), model, atol=1e-3)


def test_torchscript_is_loaded_by_torch_alone(images, exported):
    files = {"card": ""}
    model = torch.jit.load(exported("torchscript"), _extra_files=files)
    assert json.loads(files["card"])["name"] == "icarl on split_digits"
    ends_with(images, [model] * len(images.stream))
    same(images, load_model(images.folder), model)


class Plain(nn.Module):
    """The network of `images`, written by hand, up to its features."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(256, 16), nn.Linear(16, 10)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(16)])

    def forward(self, x):
        return F.relu(self.norms[0](self.layers[0](x.flatten(1))))


def test_safetensors_make_a_module_that_has_the_names(images, exported):
    tensors = load_file(exported("safetensors"))
    means = tensors.pop("memory.means")
    net = Plain().eval()
    head = {k: v for k, v in tensors.items() if k not in net.state_dict()}
    assert not head
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    # Nearest means take the place of the output layer, on which nothing depends but ties.
    assert not unexpected
    assert set(missing) <= {"norms.0.num_batches_tracked"}
    with safe_open(exported("safetensors"), "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert (card["input"]["resize"], card["input"]["pad_to"]) == (12, [16, 16])
    scale, shift = (torch.tensor(card["input"][name])[:, None, None] for name in ("scale", "shift"))

    def model(x):
        x = F.interpolate(x.float(), size=(12, 12), mode="bilinear", antialias=True).round()
        with torch.no_grad():
            features = F.normalize(net(F.pad(x, (2, 2, 2, 2)) * scale + shift))
        return -torch.cdist(features, means)

    ends_with(images, [model] * len(images.stream))


@pytest.mark.parametrize("name", ["tasks", "table", "adapters"])
@pytest.mark.parametrize("form", ["pt", "torchscript", "onnx"])
def test_tables_tasks_and_adapters_are_exported(trained, name, form):
    one = trained(name)
    for i in range(2 if form == "pt" else 1):
        model = load_model(one.folder, task=i + 1 if name == "tasks" else None)
        content = written(model, form)
        x, _ = one.test(i)
        x = x if x.shape[2] > 1 else x[:, 0, 0]
        if form == "pt":
            found = torch.export.load(io.BytesIO(content)).module()(x)
        elif form == "torchscript":
            found = torch.jit.load(io.BytesIO(content))(x)
        else:
            runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
            session = runtime.InferenceSession(content)
            found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        torch.testing.assert_close(found, model(x), rtol=0, atol=1e-5)
