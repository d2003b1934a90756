"""Strategies and data are checked without torch exactly as with it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from test_config import WRONG

from cl_runner import strategies
from cl_runner.config import outline
from cl_runner.errors import UserError
from cl_runner.strategies.base import Strategy


def defaults(cls: type) -> dict[str, object]:
    return {
        f.name: f.default_factory() if callable(f.default_factory) else f.default
        for f in dataclasses.fields(cls)
    }


@pytest.mark.parametrize("name", strategies.available())
def test_an_outline_has_the_fields_and_scenarios_of_the_class(name: str) -> None:
    cls, own = strategies.find(name), outline.outline(name)
    assert own is not cls
    assert own.__name__ == cls.__name__
    assert defaults(own) == defaults(cls)
    assert own.scenarios == cls.scenarios
    assert hasattr(own, "__post_init__") == hasattr(cls, "__post_init__")


def test_outlines_are_there_before_torch_is_and_do_not_import_it() -> None:
    program = "; ".join(
        [
            "import sys",
            "from cl_runner.config import outline",
            f"names = {strategies.available()}",
            "outlines = [outline.outline(name) for name in names]",
            "assert all(hasattr(o, '__dataclass_fields__') for o in outlines), outlines",
            "assert 'torch' not in sys.modules",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.stderr == ""


WRONG_STRATEGIES = [(schema, keys) for schema, keys, _ in WRONG if issubclass(schema, Strategy)]


@pytest.mark.parametrize(("schema", "keys"), WRONG_STRATEGIES)
def test_an_outline_refuses_what_the_class_refuses(schema: type, keys: dict[str, object]) -> None:
    node = {"name": schema.__module__.rpartition(".")[2]}
    node |= {key.rstrip("_"): value for key, value in keys.items()}
    with pytest.raises(UserError) as real:
        strategies.build(node)
    with pytest.raises(UserError) as early:
        outline.check_strategy(node, "task")
    assert str(early.value) == str(real.value)


def test_a_check_of_a_base_class_is_made_too() -> None:
    with pytest.raises(UserError, match=r"strategy\.policy must be one of reservoir, ring"):
        outline.check_strategy({"name": "derpp", "policy": "odd"}, "class")


def test_a_scenario_in_which_a_strategy_is_not_defined() -> None:
    message = "strategy=packnet does not support scenario=class; it supports task"
    with pytest.raises(UserError, match=message):
        outline.check_strategy({"name": "packnet"}, "class")
    outline.check_strategy({"name": "packnet"}, "task")


def test_a_check_that_needs_torch_is_left_to_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Needing:
        name: str

        def __post_init__(self) -> None:
            torch  # noqa: B018, F821 - as in a module whose imports were left out

    monkeypatch.setattr(outline, "outline", lambda _: Needing)
    outline.check_strategy({"name": "needing"}, "class")


@pytest.mark.parametrize("name", ["base", "mine", "../x", "a.b", "__init__", "None"])
def test_what_is_no_strategy_of_cl_runner_is_left_alone(name: str) -> None:
    assert outline.outline(name) is None
    outline.check_strategy({"name": name, "anything": 1}, "class")


NPZ = "data.path must be an .npz file that holds x_train, y_train, x_test and y_test"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.path=a.npz"], "data.path goes with your own data, such as benchmark=split_npz"),
        (["benchmark=split_npz"], f"{NPZ}: set it for benchmark=split_npz"),
        (["benchmark=split_npz", "data.path=no.npz"], f"{NPZ}; no.npz does not exist"),
        (["benchmark=split_npz", "data.path=t.csv"], f"{NPZ}; t.csv is another kind of file"),
        (
            ["benchmark=split_mnist", "benchmark.num_tasks=11"],
            "benchmark.num_tasks=11 is more than the 10 classes of mnist",
        ),
        (
            ["benchmark=split_cifar100", "benchmark.num_tasks=101"],
            "benchmark.num_tasks=101 is more than the 100 classes of cifar100",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_data_that_cannot_be_are_refused(
    configure, overrides: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("1,2\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        outline.check_data(configure(*overrides))
    assert line in str(caught.value)


def test_data_that_may_be_are_accepted(configure, tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_text("told by its reader", encoding="utf-8")
    outline.check_data(configure("benchmark=split_npz", f"data.path={tmp_path}/damaged.npz"))
    outline.check_data(configure("benchmark=split_folder", f"data.path={tmp_path}"))
    outline.check_data(configure("benchmark=permuted_mnist", "benchmark.num_tasks=50"))
