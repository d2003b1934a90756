"""load_model: the module, and what it is not made of."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from cl_runner.config.weights import digest
from cl_runner.errors import UserError
from cl_runner.exporting.description import Description, read
from cl_runner.exporting.load import load_model
from cl_runner.results.names import MODEL, MODEL_MEMORY
from cl_runner.results.status import write


@pytest.fixture
def copied(trained, tmp_path):
    """copied("images"): a copy of a run that a test may change."""

    def function(name="images"):
        return shutil.copytree(trained(name).folder, tmp_path / name)

    return function


@pytest.mark.parametrize("name", ["images", "tasks", "table", "features", "adapters"])
def test_it_is_as_accurate_as_the_run(trained, name):
    one = trained(name)
    of = [t.index + 1 if name == "tasks" else None for t in one.stream]
    models = [load_model(one.folder, task=task) for task in of]
    assert one.reached(models) == pytest.approx(one.accuracies(), abs=1e-9)
    assert not any(m.training for m in models[0].modules())


def test_it_says_what_it_is(trained):
    model = load_model(trained("images").folder)
    assert model.classes == tuple("0123456789")
    assert model.tasks == tuple(f"task {i}" for i in range(1, 6))
    assert (model.input_shape, model.dtype, model.task) == ((1, 8, 8), torch.uint8, None)
    assert model.card["strategy"]["name"] == "icarl"
    x = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    assert torch.allclose(model(x).sum(1), torch.ones(4))
    assert torch.equal(model(x), model(x))  # nothing is dropped
    for wrong in (x.float(), x[:, 0], x[..., :7]):
        with pytest.raises(ValueError, match=r"the model takes uint8 \[B, 1, 8, 8\], got"):
            model(wrong)


def test_what_is_handed_in_is_what_the_data_set_gives(trained):
    assert load_model(trained("table").folder).input_shape == (16,)
    turned = load_model(trained("adapters").folder)
    assert turned.input_shape == (1, 10, 10)  # as the tasks show them, after padding
    assert any("as a task shows them" in line for line in turned.card["limits"])


def test_a_task_is_asked_for_by_number_or_name(trained):
    folder = trained("tasks").folder
    second, named = load_model(folder, task=2), load_model(folder, task="task 2")
    assert second.classes == named.classes == ("2", "3")
    assert second.task == "task 2"
    for task, message in (
        (None, "must be told the task by --task N or its name, of task 1, task 2"),
        (0, "the run has no task 0; it has task 1"),
        (6, "the run has no task 6; it has task 1"),
        ("x", "the run has no task x; it has task 1"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(folder, task=task)
    with pytest.raises(UserError, match=r"task=1 has no meaning: the run is class-incremental"):
        load_model(trained("images").folder, task=1)


def test_no_data_are_read(copied, monkeypatch):
    folder = copied()
    (folder / "checkpoint.safetensors").unlink()  # nor is that
    monkeypatch.setattr("cl_runner.data.sources.read", pytest.fail)
    monkeypatch.setattr("cl_runner.running.prepare.read", pytest.fail)
    assert load_model(folder).classes


def test_weights_that_were_changed_are_refused(copied):
    folder = copied()
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights.safetensors is not what the run wrote"):
        load_model(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"weights.safetensors is missing"):
        load_model(folder)


def changed(folder, change):
    """Change model.json, and let it vouch for the files that lie there."""
    content = json.loads((folder / MODEL).read_text())
    content["files"] = {name: digest(folder / name) for name in content["files"]}
    change(content)
    (folder / MODEL).write_text(json.dumps(content))


class Trap:
    """Unpickled, it would show."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_a_foreign_pickle_is_not_opened(copied):
    folder = copied()
    torch.save({"layers.0.weight": Trap()}, folder / "weights.safetensors")
    changed(folder, lambda _: None)
    with pytest.raises(UserError, match=r"is no file of safetensors .*the file is damaged"):
        load_model(folder)


def test_tensors_of_another_network_are_refused(copied, trained):
    folder = copied()
    for name in ("weights.safetensors", MODEL_MEMORY):
        shutil.copy(trained("table").folder / name, folder / name)
    changed(folder, lambda _: None)
    with pytest.raises(UserError, match=r"its files make no model .*the file is damaged"):
        load_model(folder)


def test_a_description_that_is_none_is_refused(copied):
    folder = copied()
    whole = (folder / MODEL).read_text()

    def at(*path, to):
        def change(content):
            for key in path[:-1]:
                content = content[key]
            content[path[-1]] = to

        return change

    for change, message in (
        (at("format", to=2), "format 2, not 1"),
        (at("format", to="1"), "format is not what it should be"),
        (at("stream", to=[]), "stream is not what it should be"),
        (at("stream", "given_shape", to=[1, 8]), "stream.given_shape is no shape"),
        (at("stream", "given_shape", to=[1, 2**20, 2**20]), "stream.given_shape is no shape"),
        (at("stream", "input_shape", to=[1, 9, 9]), "stream.input_shape fits no image"),
        (at("stream", "scale", to=[float("nan")]), "stream.scale is not finite"),
        (at("stream", "scale", to=[1.0, 1.0]), "not one for each channel"),
        (at("stream", "dtype", to="object"), "stream.dtype is 'object'"),
        (at("stream", "scenario", to="x"), "stream.scenario is 'x'"),
        (at("stream", "tasks", to=[]), "stream.tasks are not those of label"),
        (at("stream", "tasks", 0, "classes", to=[77, 1]), "stream.tasks have no classes"),
        (at("stream", "label", 0, 0, to=77), "outputs that there are not"),
        (at("stream", "label", 0, to=[1]), "stream.label is no table"),
        (at("files", to={"/etc/passwd": "0"}), "files is not what it should be"),
        (at("config", "seed", to="${oc.env:HOME}"), "refers to something else"),
        (at("config", "strategy", "name", to="x"), "x"),
        (at("config", "strategy", "buffer_size", to="x"), "strategy.buffer_size must be"),
        (at("config", "benchmark", to=None), "benchmark"),
        (at("config", "plugins", to=["os"]), r"plugins=\['os'\]: name those that may be imported"),
        (at("config", "plugins", to="os"), "plugins are no list"),
    ):
        (folder / MODEL).write_text(whole)
        changed(folder, change)
        with pytest.raises(UserError, match=message) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
    (folder / MODEL).write_text(whole[:-20])
    with pytest.raises(UserError, match=r"cannot read .*model.json"):
        load_model(folder)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("failed", r"not complete but failed: cl-run resume=.* repeats it"),
        ("interrupted", r"not complete but interrupted: cl-run resume=.* goes on with it"),
        ("running", r"not complete but killed: cl-run resume=.* goes on with it"),
    ],
)
def test_a_run_that_is_not_complete_is_refused(copied, state, message):
    folder = copied()
    write(folder, state)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_what_is_no_run_is_refused(copied, tmp_path):
    folder = copied()
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"model.json is no folder of a run"):
        load_model(folder / MODEL)
    with pytest.raises(UserError, match=r"holds 1 runs: name one of them, such as .*images"):
        load_model(tmp_path)
    (folder / MODEL).unlink()
    with pytest.raises(UserError, match=r"kept no model .*with checkpoint.keep=true"):
        load_model(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is no folder of a run: it has no status.json"):
        load_model(tmp_path / "empty")
    (folder / "jobs.json").write_text(json.dumps({"seed=0": [], "seed=1": []}))
    with pytest.raises(UserError, match=r"images holds 2 runs: name one of them, such as .*seed=0"):
        load_model(folder)


def test_a_description_has_all_of_the_stream_but_its_samples(trained):
    one = trained("tasks")
    found = read(one.folder)
    assert isinstance(found, Description)
    assert torch.equal(torch.tensor(found.label), one.stream.label)
    assert [task.classes for task in found.tasks] == [task.classes for task in one.stream]
    assert [task.test for task in found.tasks] == [len(task.test) for task in one.stream]
