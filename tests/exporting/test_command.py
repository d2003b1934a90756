"""`cl-run export`: what it writes, and every mistake in one line with nothing half written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open

from cl_runner.cli import export
from cl_runner.errors import UserError
from cl_runner.exporting.load import load_model
from cl_runner.strategies.base import tasks_of
from cl_runner.strategies.icarl import ICaRL


def ask(*args):
    return export.main([str(arg) for arg in args])


@pytest.mark.slow
def test_it_writes_a_file_and_its_card(trained, tmp_path, capsys):
    folder, file = trained("tasks").folder, tmp_path / "second.safetensors"
    assert ask(folder, "--to", "safetensors", file, "--task", "task 2") == 0
    said = capsys.readouterr().out
    assert "bytes of safetensors, uint8 [B, 1, 8, 8] in, probabilities [B, 2] out" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.name, f"{file.name}.md"]
    with safe_open(file, "pt") as found:
        card = json.loads(found.metadata()["card"])
        assert "convolutions.0.weight" in found.keys()  # noqa: SIM118 - it is no dictionary
    assert card == load_model(folder, task=2).card
    assert card["output"] == {"task": "task 2", "classes": ["2", "3"], "columns": [2, 3]}
    text = (tmp_path / f"{file.name}.md").read_text()
    assert text.startswith("# packnet on split_digits\n")
    for part in (
        "probabilities, `float32` [B, 2], of the classes in this order:\n  2, 3.",
        "## Limits",
        "It must be told the task",
        "Licence:\n  not stated in scikit-learn's copy",
        "cl-run benchmark=split_digits",
        f"config_hash {card['config_hash']}",
        "| ACC |",
    ):
        assert part in text, part
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"second.safetensors is there already; --force replaces"):
        ask(folder, "--to", "safetensors", file, "--task", 1)
    assert file.read_bytes() == before
    assert ask(folder, "--to", "safetensors", file, "--task", 1, "--force") == 0
    assert file.read_bytes() != before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("RUN", "--to", "pickle", "FILE"), "argument --to: invalid choice: 'pickle'"),
        (("RUN", "FILE"), "required: --to; cl-run export RUN --to FORMAT FILE"),
        (("RUN", "--to", "pt"), "required: FILE"),
        (("RUN", "--to", "pt", "FILE", "--tsk", "1"), "unrecognized arguments"),
        (("RUN", "--to", "pt", "nowhere/FILE"), "there is no folder .*nowhere"),
        (("RUN", "--to", "pt", "."), " is a folder"),
        (("RUN", "--to", "pt", "FILE", "--task", "1"), "task=1 has no meaning"),
        (("nowhere", "--to", "pt", "FILE"), "there is no folder nowhere"),
        ((".", "--to", "pt", "FILE"), "is no folder of a run"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(trained, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    run = trained("images").folder
    with pytest.raises(UserError, match=message) as caught:
        ask(*(run if arg == "RUN" else arg for arg in args))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_card_that_is_there_is_not_replaced(trained, tmp_path):
    (tmp_path / "m.pt.md").write_text("mine")
    with pytest.raises(UserError, match=r"m.pt.md is there already"):
        ask(trained("images").folder, "--to", "pt", tmp_path / "m.pt")


def test_onnx_that_is_not_installed_is_told_before_anything_is_done(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"onnx is not installed: pip install 'cl_runner\[onnx\]'"):
        ask(trained("images").folder, "--to", "onnx", tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_told(trained, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        ask(trained("images").folder, "--to", "safetensors", tmp_path / "m")
    tmp_path.chmod(0o700)


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(trained, tmp_path, monkeypatch):
    replace = Path.replace

    def full(path, target):
        if Path(target).name == "m":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*m: No space left on device"):
        ask(trained("images").folder, "--to", "safetensors", tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_code_2(cl_run, tmp_path):
    done = cl_run("export", "nowhere", "--to", "onnx", "m.onnx", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "cl-run: there is no folder nowhere\n"


def test_help_is_a_screen_and_tells_every_option(cl_run, tmp_path):
    done = cl_run("export", "--help", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 90
    told = {o for a in export.parser()._actions for o in a.option_strings}
    assert all(option in done.stdout for option in told)
    assert all(form in done.stdout for form in export.FORMATS)
    general = cl_run("--help", cwd=tmp_path).stdout
    assert "cl-run export RUN" in general


@pytest.mark.slow
def test_what_cannot_be_traced_is_told_with_its_strategy(trained, tmp_path, monkeypatch):
    def predict(_self, s, x, task, env):
        return env.net(s.theta, x, tasks_of(x, task)) * float(x.sum())

    monkeypatch.setattr(ICaRL, "predict", predict)
    message = r"strategy=icarl with model=mlp cannot be exported --to pt: torch cannot trace it"
    with pytest.raises(UserError, match=message):
        ask(trained("images").folder, "--to", "pt", tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_trace_of_several_networks_is_refused(trained, monkeypatch):
    """None of ours asks two; one of somebody else's may."""

    def predict(_self, s, x, task, env):
        tasks = tasks_of(x, task)
        return env.net(s.theta, x, tasks) + env.net(s.theta + 1, x, tasks)

    monkeypatch.setattr(ICaRL, "predict", predict)
    with pytest.raises(UserError, match=r"strategy=icarl cannot be exported: its predictions ask"):
        load_model(trained("images").folder)
