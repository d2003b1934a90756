"""Hydra composes once for a run, unless YAML of the user's own may set hydra.mode."""

from copy import deepcopy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from cl_runner.cli import search_path
from cl_runner.config.versions import BASE, NEW

CONF = Path(__file__).parents[1] / "conf"


def test_no_yaml_of_ours_sets_the_mode():
    files = sorted(CONF.rglob("*.yaml"))
    assert len(files) > 100
    for file in files:
        loaded = OmegaConf.load(file)
        assert "mode" not in loaded.get("hydra", {}), file
        assert file.parent.name != "hydra" or "mode" not in loaded, file


@pytest.mark.parametrize(
    ("args", "looks"),
    [
        ([], False),
        (["-m", "strategy=er", "seed=1,2"], False),
        (["hydra.mode=MULTIRUN", "seed=1,2"], True),
        (["++hydra.mode=MULTIRUN"], True),
        (["--config-dir", "mine"], True),
        (["-cd", "mine"], True),
        (["--config-name", "mine"], True),
        (["hydra.searchpath=[file:///mine]"], True),
    ],
)
def test_hydra_looks_where_a_configuration_may_set_it(monkeypatch, args, looks):
    monkeypatch.setattr(Hydra, "get_mode", search_path.LOOK)  # and put back afterwards
    search_path.compose_once([])
    search_path.compose_once(args)
    assert (Hydra.get_mode is search_path.LOOK) == looks


def test_the_store_is_shared_and_composing_changes_nothing_in_it():
    search_path.share_the_store()
    store = ConfigStore.instance()
    assert deepcopy(store) is store
    with initialize_config_module("cl_runner.conf", **BASE):
        compose("config")  # Hydra registers its own
        before = repr(store.repo)
        changed = compose("config", ["hydra.job.chdir=true"], return_hydra_config=True)
    assert changed.hydra.job.chdir is True
    assert repr(store.repo) == before


@pytest.mark.slow
def test_a_mode_in_a_folder_of_ones_own_is_found(cl_run, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}}\n"
    (folder / "swept.yaml").write_text(text)
    small = ("strategy=naive", "benchmark=split_digits", "training.iterations=1")
    done = cl_run("--config-dir=mine", "experiment=swept", *small, cwd=tmp_path)
    if NEW:  # Hydra 1.4 takes a mode from the command line or the primary configuration only
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("cl-run: hydra.mode changed")
        return
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "multirun").rglob("summary.csv"))) >= 2
