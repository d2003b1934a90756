"""A folder that somebody else has made is resumed, compared and looked at; nothing in it executes.

Each attack has a witness: a pickle that leaves a file where it is loaded.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from cl_runner.cli import resume as resume_command
from cl_runner.cli.resume import RESUMED, configuration_of, continued
from cl_runner.config.parse import validate
from cl_runner.config.versions import BASE
from cl_runner.errors import UserError
from cl_runner.machine.reading import yaml_values
from cl_runner.results.names import CHECKPOINT
from cl_runner.running import checkpoint, loop

BIN = Path(sys.executable).parent
TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "training.iterations=2"),
    *("model.hidden_sizes=[8]", "training.batch_size=8", "verbose=false", "strategy=er"),
    "strategy.buffer_size=10",
)


class Loaded:
    """Pickled, it makes the file PWNED in the current folder of whoever loads it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch PWNED",)


@pytest.fixture
def call(cl_run) -> Callable[..., subprocess.CompletedProcess[str]]:
    """call("resume=e", cwd=...): what the command does."""
    return cl_run


def one_line(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"cl-run: .+\n", result.stderr), result.stderr
    assert words in result.stderr


@pytest.fixture(scope="module")
def made(data_root, tmp_path_factory) -> Path:
    """A run that could go on: its checkpoint is there, its last results are not."""
    out = tmp_path_factory.mktemp("made")
    overrides = [*TOY, "checkpoint.keep=true", "threads=1", f"data.root={data_root}"]
    with initialize_config_module("cl_runner.conf", **BASE):
        config = validate(compose("config", overrides))
    loop.run(config, out, overrides)
    (out / "status.json").unlink()
    (out / "c.pickle").write_bytes(pickle.dumps(Loaded()))
    return out


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """Such a run, to be tampered with."""
    return shutil.copytree(made, tmp_path / "e")


@pytest.fixture
def hostile(folder) -> Callable[..., Path]:
    """hostile(override, ..., key=value, ...): overrides added to, and keys of the configuration."""

    def function(*overrides: str, **keys: object) -> Path:
        there = yaml_values(folder / "overrides.yaml")
        (folder / "overrides.yaml").write_text(OmegaConf.to_yaml([*there, *overrides]))
        config = yaml_values(folder / "config.yaml")
        (folder / "config.yaml").write_text(OmegaConf.to_yaml({**config, **keys}))
        return folder

    return function


# Overrides of a folder are text


@pytest.mark.slow
def test_what_overrides_yaml_says_is_not_done(call, hostile, tmp_path):
    """A flag, a group by its path, a folder of configurations: Hydra would load the pickle."""
    folder = hostile(
        "--experimental-rerun=e/c.pickle",
        "--config-dir=e",
        f"+experiment=../../../../../../../../../..{tmp_path}/e/x",
        "hydra.callbacks.x={_target_: os.system, command: touch PWNED}",
        "strategy=unknown",
        "[" * 40,
    )
    callback = {"_target_": "joblib.load", "filename": str(folder / "c.pickle")}
    x = OmegaConf.to_yaml({"hydra": {"callbacks": {"z": callback}}})
    (folder / "x.yaml").write_text(f"# @package _global_\n{x}")
    result = call("resume=e", "verbose=true", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "goes on in task 3" in result.stdout
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental", "--exp"])
def test_no_pickle_of_hydras_is_loaded_at_all(call, tmp_path, flag):
    """argparse takes the beginnings of flags for them."""
    (tmp_path / "c.pickle").write_bytes(pickle.dumps(Loaded()))
    for args in ((f"{flag}=c.pickle",), (flag, "c.pickle"), (f"{flag}=c.pickle", "resume=e")):
        one_line(call(*args, cwd=tmp_path), "--experimental-rerun executes what its file says")
    assert {path.name for path in tmp_path.iterdir()} == {"c.pickle"}


@pytest.mark.slow
def test_a_checkpoint_writes_no_file_but_the_runs_own(call, folder, tmp_path):
    path = folder / CHECKPOINT
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = json.loads(header["content"])
    content["tables"] |= {"../../pwn": [{"a": 1}], f"{tmp_path}/other": [{"a": 1}]}
    text = json.dumps(content)
    header |= {"content": text, "checksum": checkpoint.checksum(text, tensors)}
    safetensors.torch.save_file(tensors, path, header)
    one_line(call("resume=e", cwd=tmp_path), f"{path} does not fit this run: tables must be costs")
    assert not [p for p in tmp_path.parent.rglob("*.csv") if p.stem in {"pwn", "other"}]


@pytest.mark.unix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "checkpoint.safetensors"])
def test_a_pipe_in_the_folder_is_told_and_not_waited_for(call, folder, tmp_path, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    one_line(call("resume=e", cwd=tmp_path), f"{folder / name} is no regular file")


# The configuration of a folder is data


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"hydra": {"callbacks": {"x": {"_target_": "os.system"}}}}, "unknown key hydra"),
        ({"defaults": [{"/hydra/launcher": "joblib"}]}, "unknown key defaults"),
        ({"_target_": "os.system"}, "unknown key _target_"),
        ({"model": {"_target_": "os.system", "name": "mlp"}}, "unknown key model._target_"),
        ({"strategy": {"name": "er", "_target_": "os.system"}}, "unknown key strategy._target_"),
        ({"strategy": "er"}, "strategy must be a group of keys"),
        ({"seed": "x"}, "seed must be int"),
        ({"threads": {}}, "threads must be int, or null, got {}"),
        ({"data": {"root": "${oc.env:HOME}"}}, "has references, ${...}"),
        ({"data": {"root": "$${seed}{oc.env:HOME}"}}, "has references, ${...}"),
        ({"plugins": ["antigravity"]}, "would import antigravity: if you trust what is called"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_configuration_that_is_none_of_ours_is_one_line(hostile, keys, said):
    folder = hostile(**keys)
    with pytest.raises(UserError) as caught:
        continued([f"resume={folder}"])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a", "", "a: &a [1]\nb: *a", "!!python/name:os.system"])
def test_yaml_that_is_no_configuration_is_one_line(folder, text):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"e/config\.yaml") as caught:
        continued([f"resume={folder}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
def test_without_its_files_there_is_no_run(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"there is no run, for there is no {name} of cl-run"):
        continued([f"resume={folder}"])


def test_a_strategys_name_is_no_path(hostile, tmp_path):
    """Else the keys of a YAML file anywhere would be looked at, for what may be set."""
    (tmp_path / "evil.yaml").write_text("a0: &a [x]\na1: *a\n")
    for name in (f"{tmp_path}/evil", "../../evil"):
        folder = hostile(strategy={"name": name})
        assert configuration_of(folder, None)["strategy"] == {"name": name}


# What goes on beside it


@pytest.fixture
def resumed(folder, monkeypatch):
    """resumed(arg, ...): the arguments for Hydra, and what they compose."""

    def function(*args: str) -> tuple[list[str], object]:
        found = continued([*args, f"resume={folder}"])
        stored = {}
        monkeypatch.setattr(
            resume_command.ConfigStore, "store", lambda _, **about: stored.update(about)
        )
        continued([*args, f"resume={folder}"])
        assert stored["name"] == RESUMED
        return found, stored["node"]

    return function


def test_the_folders_own_configuration_is_what_goes_on(folder, resumed):
    args, node = resumed("threads=2")
    where = [f"hydra.run.dir={folder}", "resume=true"]
    assert args == [f"--config-name={RESUMED}", "threads=2", *where]
    stored = yaml_values(folder / "config.yaml")
    assert {key: node[key] for key in stored} == stored
    assert node["hydra"] == yaml_values(Path(__file__).parents[2] / "conf" / "config.yaml")["hydra"]
    assert [d for d in node["defaults"] if d != "_self_"] != []
    choices = [choice for choice in node["defaults"] if choice != "_self_"]
    assert all("hydra/" in str(choice) for choice in choices if choice != {"logger": "none"})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["strategy=si"], "strategy=si cannot change"),
        (["~model"], "~model cannot change"),
        (["+benchmark=split_mnist"], "benchmark=split_mnist cannot change"),
        (["--config-name=other"], "no --config-name"),
        (["-cn", "other"], "no --config-name"),
        (["-m"], "resume=FOLDER is for one run"),
        (["--multir"], "resume=FOLDER is for one run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_would_make_another_run_of_it_is_refused(folder, args, said):
    with pytest.raises(UserError, match=re.escape(said)):
        continued([*args, f"resume={folder}"])


def test_packages_are_imported_only_if_the_command_names_them(hostile):
    folder = hostile(plugins=["my_strategies"])
    with pytest.raises(UserError, match=r"add plugins=\[my_strategies\]"):
        continued([f"resume={folder}", "hydra.verbose=false"])
    found = continued(["plugins=[my_strategies]", f"resume={folder}"])
    assert found[1] == "plugins=[my_strategies]"
    node = configuration_of(folder, ["my_strategies"])
    assert node["plugins"] == []  # what is imported is what the command says
    assert list(node) == list(yaml_values(folder / "config.yaml"))


@pytest.mark.slow
def test_keys_that_change_no_result_may_stand_beside_the_folder(call, folder, tmp_path):
    result = call("resume=e", "threads=2", "verbose=true", "checkpoint.every=5", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "goes on in task 3" in result.stdout
    assert yaml_values(folder / "config.yaml")["threads"] == 1
    for args, said in (
        (("seed=4",), "seed is 0 there and 4 here"),
        (("strategy.buffer_size=11",), "strategy.buffer_size is 10 there and 11 here"),
        (("seeds=[0,1]",), "seeds is not set there and [0, 1] here"),
        (("plugins=[antigravity]",), "plugins is not set there and ['antigravity'] here"),
    ):
        one_line(call("resume=e", *args, cwd=tmp_path), said)


@pytest.mark.slow
def test_a_folder_of_seeds_goes_on_from_itself_and_takes_more(call, data_root, tmp_path):
    args = (*TOY, f"data.root={data_root}", "threads=1", "hydra.run.dir=s", "seeds=[0,1]")
    result = call(*args, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert yaml_values(tmp_path / "s/config.yaml")["benchmark"]["seed"] == "${seed}"
    before = {path: path.read_bytes() for path in tmp_path.glob("s/seed=*/summary.csv")}
    for seed in (0, 1):
        assert yaml_values(tmp_path / f"s/seed={seed}/config.yaml")["benchmark"]["seed"] == seed
    result = call("resume=s", "seeds=[0,1,2]", "verbose=true", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("complete, nothing to do") == 2
    assert {path: path.read_bytes() for path in before} == before
    assert yaml_values(tmp_path / "s/config.yaml")["seeds"] == [0, 1, 2]
    own = yaml_values(tmp_path / "s/seed=2/overrides.yaml")
    assert own == [*args[:-2], "verbose=true", "seed=2"]
    one_line(call("resume=s", "training.iterations=3", cwd=tmp_path), "iterations is 2 there and 3")
    one_line(call(*TOY, "hydra.run.dir=s", "resume=true", cwd=tmp_path), "another configuration")


# The other commands


@pytest.mark.unix
@pytest.mark.slow
def test_the_other_commands_wait_for_no_pipe_and_expand_no_alias(call, folder, tmp_path):
    (folder / "status.json").write_text("[" * 100_000)
    (folder / "config.yaml").write_text(
        "a0: &a0 [x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    )
    result = call("status", "e", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, "")

    def compare(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "cl-compare", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    result = compare("verify", "e")
    assert result.returncode == 1
    assert "anchors or aliases" in result.stdout
    for name in ("--out", "--html"):
        os.mkfifo(tmp_path / f"pipe{name}")
        for path in ("/dev/full", "/dev/zero", f"pipe{name}"):
            result = compare("e", name, path)
            assert result.returncode == 2
            line = f"cl-compare: {name} {path} is no regular file; choose another name\n"
            assert result.stderr == line
    (folder / "summary.csv").unlink()
    os.mkfifo(folder / "summary.csv")
    result = compare("e")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "summary.csv is no regular file" in result.stderr
