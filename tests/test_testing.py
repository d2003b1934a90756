"""The contract for strategies of the user's own: who breaks a promise is told which."""

from __future__ import annotations

import sys

import pytest

from cl_runner.errors import UserError
from cl_runner.testing import CHECKS, OF_ONE_GRAPH, contract

pytestmark = pytest.mark.slow

CLASS = """
from dataclasses import dataclass
import torch
from cl_runner.strategies.base import Strategy

@dataclass(frozen=True, kw_only=True)
class Mine(Strategy):
    {flags}

    def init(self, theta, env):
        COUNT.clear()
        return {{"kept": theta.detach().clone(), "scale": torch.ones(())}}

    def step(self, s, batch, env):
        {step}
        return super().step(s, batch, env)

    def end_task(self, s, task, env):
        {end_task}
        return s
"""
BROKEN = {
    "two runs are identical and hold only tensors": {"end_task": "s = s._replace(memory={'n': 1})"},
    "the seed reaches the result": {
        "end_task": "s = s._replace(theta=torch.zeros_like(s.theta.detach()))",
    },
    "resumed equals unbroken": {
        "step": "COUNT.append(0); s = s._replace(theta=s.theta.detach() * (1 - .1 / len(COUNT)))"
    },
    "the state keeps its size": {
        "end_task": "s.memory[f'more{task.index}'] = s.theta.detach().clone()",
    },
    "a step asks the host for nothing": {"step": "batch.y.sum().item()"},
    "a step is one graph": {"step": "print(end='')"},
    "members stacked by vmap equal members alone": {"step": "torch.rand_like(batch.x)"},
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine(step=..., end_task=...): the package of a strategy with these statements in it."""

    def function(**statements: str) -> str:
        name = "my_contract"
        (tmp_path / f"{name}/conf/strategy").mkdir(parents=True)
        (tmp_path / f"{name}/conf/strategy/mine.yaml").write_text("name: mine\n")
        parts = {"flags": "...", "step": "pass", "end_task": "pass"} | statements
        (tmp_path / f"{name}/mine.py").write_text(CLASS.format(**parts) + "\nCOUNT = []\n")
        return name

    monkeypatch.syspath_prepend(tmp_path)
    yield function
    for name in [m for m in sys.modules if m.partition(".")[0] == "my_contract"]:
        del sys.modules[name]


def test_a_strategy_that_keeps_all_promises_passes(mine):
    contract("mine", plugins=[mine()])


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_promise_is_named(mine, promise):
    assert promise in CHECKS | OF_ONE_GRAPH
    with pytest.raises(AssertionError, match=f"^strategy=mine: {promise}: "):
        contract("mine", plugins=[mine(**BROKEN[promise])])


def test_what_is_for_graphs_is_not_asked_of_a_strategy_without_one(mine):
    own = {"flags": "one_graph = False", "step": "batch.y.sum().item()"}
    contract("mine", plugins=[mine(**own)])


def test_a_strategy_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"strategy\.name must be one of .*in a package of yours"):
        contract("no_such_strategy")
