"""Keywords become what Hydra reads as the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cl_runner.api.overrides import overrides_of, sweep_of
from cl_runner.errors import UserError

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")))
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS, st.just("${seed}")
)


def as_hydra_reads(override: str) -> object:
    """The value that a key has in the configuration, references resolved."""
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_sweep_override()
    node = OmegaConf.create({"seed": "the seed", "key": parsed.value()})
    return OmegaConf.to_container(node, resolve=True)["key"]


@settings(deadline=None, max_examples=150)
@given(st.one_of(PLAIN, st.lists(PLAIN), st.lists(st.lists(PLAIN, max_size=2), max_size=2)))
def test_a_value_is_read_as_it_is(value):
    (override,) = overrides_of([], {"key": value})
    assert as_hydra_reads(override) == value


@settings(deadline=None, max_examples=50)
@given(st.lists(PLAIN, min_size=2, max_size=4))
def test_a_sweep_has_each_value(values):
    (override,) = sweep_of([], {"key": values})
    parsed = OverridesParser.create().parse_override(override)
    each = [as_hydra_reads(f"key={value}") for value in parsed.sweep_string_iterator()]
    assert each == values


@pytest.mark.parametrize(
    ("keys", "override"),
    [
        ({"training__epochs": 2}, "training.epochs=2"),
        ({"strategy__lambda": np.float32(0.5)}, "strategy.lambda=0.5"),
        ({"model__hidden_sizes": (256, 256)}, "model.hidden_sizes=[256,256]"),
        ({"seed": np.int64(3)}, "seed=3"),
        ({"eval__features": np.True_}, "eval.features=true"),
        ({"experiment": "hsu2018/ewc_split_class"}, "experiment=hsu2018/ewc_split_class"),
        ({"strategy": "null"}, "strategy='null'"),
        ({"data__path": Path("my data")}, "data.path='my data'"),
        ({"benchmark__class_order": range(3)}, "benchmark.class_order=[0,1,2]"),
    ],
)
def test_how_a_keyword_is_written(keys, override):
    assert overrides_of(["a=b"], keys) == ["a=b", override]


@pytest.mark.parametrize(
    ("keys", "override"),
    [
        ({"seed": [0, 1]}, "seed=0,1"),
        ({"seed": range(3)}, "seed=0,1,2"),
        ({"seed": np.arange(2)}, "seed=0,1"),
        ({"model__hidden_sizes": [[8, 8]]}, "model.hidden_sizes=[8,8]"),
        ({"model__hidden_sizes": [[8], [8, 8]]}, "model.hidden_sizes=[8],[8,8]"),
        ({"strategy": "ewc"}, "strategy=ewc"),
        ({"data__path": ["a,b", None]}, "data.path='a,b',null"),
    ],
)
def test_how_a_sweep_is_written(keys, override):
    assert sweep_of([], keys) == [override]


def test_a_sweep_over_nothing_is_refused():
    with pytest.raises(UserError, match=r"seed=\[\] has no value to sweep over"):
        sweep_of([], {"seed": []})
