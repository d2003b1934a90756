"""scripts/search_presets.py and the presets that it has written say the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import search_presets
from omegaconf import OmegaConf

REPOSITORY = Path(__file__).parents[1]
PRESETS = REPOSITORY / "conf" / "experiment" / "preset"
NAMES = sorted(f"{path.parent.name}/{path.stem}" for path in PRESETS.rglob("*.yaml"))
pytestmark = pytest.mark.slow


def test_there_is_a_preset_for_each_search() -> None:
    assert sorted(search_presets.presets()) == NAMES


@pytest.fixture(scope="module", autouse=True)
def _composed_with_the_tests(composed_in_parts) -> Iterator[None]:
    """The script takes what test_config.py has composed, if it has."""

    @cache
    def composed(*overrides: str) -> dict[str, Any]:
        return OmegaConf.to_container(composed_in_parts(*overrides), resolve=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_presets, "composed", composed)
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_the_script_writes(name: str) -> None:
    """From the configuration that the preset makes, as it would be that of the best run."""
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    protocol, strategy, grid = search_presets.presets()[name]
    config = search_presets.composed(f"+experiment=preset/{name}")
    keys = {"name", *OmegaConf.create(text).get("strategy", {})}  # others are newer than the search
    config = config | {"strategy": {k: v for k, v in config["strategy"].items() if k in keys}}
    how = [line for line in text.splitlines() if line.startswith("#")][2:]
    assert how[:-1] == search_presets.searched_by(protocol, strategy, grid)
    assert f": {search_presets.points(config, grid)}; validation ACC 0." in how[-1]
    assert search_presets.preset_text(name, config, how) == text


def test_the_page_has_the_table_of_all_presets() -> None:
    page = search_presets.PAGE.read_text(encoding="utf-8")
    assert search_presets.table() in page


def test_what_the_search_alone_has_is_not_written() -> None:
    """Fewer tasks, and fewer samples of them; a key that the protocol leaves open is written."""
    config = search_presets.composed(
        "+experiment=preset/permuted_mnist/naive",
        *("benchmark.num_tasks=5", "benchmark.validation_fraction=0.1", "optimizer.lr=0.001"),
        *("benchmark.train_fraction=0.2", "optimizer.betas=[0.5,0.9]", "seed=3"),
    )
    text = search_presets.preset_text("permuted_mnist/naive", config, ["# How."])
    assert text == (
        "# @package _global_\n# Permuted MNIST, ten tasks, domain-incremental: naive.\n# How.\n"
        "defaults:\n  - /protocol/permuted_mnist\n  - override /strategy: naive\n"
        "optimizer:\n  betas: [0.5, 0.9]\n"
    )
