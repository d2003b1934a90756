"""Every strategy is called what its paper calls it."""

from __future__ import annotations

from pathlib import Path

from cl_runner.comparing.names import NAMES, VARIANTS, display, said_by_name

CONF = Path(__file__).parents[2] / "conf" / "strategy"
PLAIN = {"naive", "joint", "cumulative", "separate"}  # words already


def test_every_strategy_has_a_name() -> None:
    there = {path.stem for path in CONF.glob("*.yaml")}
    assert set(NAMES) == there - PLAIN
    assert set(VARIANTS) <= there


def test_names_are_those_of_the_papers() -> None:
    names = [display(s, {}) for s in ("er", "derpp", "agem", "ewc", "icarl", "naive", "my_own")]
    assert names == ["ER", "DER++", "A-GEM", "EWC", "iCaRL", "naive", "my_own"]


def test_a_variant_has_a_name_of_its_own() -> None:
    online, separate = {"strategy.mode": "online"}, {"strategy.mode": "separate"}
    assert [display("ewc", s) for s in (online, separate)] == ["online EWC", "EWC"]
    assert [said_by_name("ewc", s) for s in (online, separate)] == [["strategy.mode"], []]
    assert display("er", online) == "ER" and said_by_name("er", online) == []
    assert display("imm", {"strategy.merge": "mean"}) == "mean-IMM"


def test_a_name_says_all_settings_that_it_can() -> None:
    kron = {"strategy.curvature": "kron", "strategy.mode": "separate"}
    assert display("ewc", kron) == "Kronecker EWC"
    assert said_by_name("ewc", kron) == ["strategy.curvature"]
    assert display("ewc", kron | {"strategy.mode": "online"}) == "Kronecker online EWC"
