"""What strategies have in common: the loss, the prediction, and that some fit on a screen."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize

import pytest
import torch
import torch.nn.functional as F

from cl_runner import strategies

TOY = ("strategy=naive", "benchmark=split_digits", "model.hidden_sizes=[8]")


def test_the_loss_is_the_weighted_mean_over_the_active_outputs(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, "scenario=task", tasks=1)
    logits = env.net(s.theta, batch.x, batch.task)
    losses = F.cross_entropy(logits[:, 2:4], batch.y - 2, reduction="none")
    loss, aux = strategy.loss(s.theta, s, batch, env)
    torch.testing.assert_close(loss, losses.mean())
    torch.testing.assert_close(aux["logits"], logits)
    weight = torch.linspace(0, 1, len(losses))
    loss, _ = strategy.loss(s.theta, s, batch._replace(weight=weight), env)
    torch.testing.assert_close(loss, (weight * losses).sum() / weight.sum())


def test_the_network_is_asked_with_the_task_of_each_input(mid_run, monkeypatch):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=1)
    asked = []
    monkeypatch.setattr(env, "net", lambda *given: asked.append(given) or torch.zeros(8, 10))
    strategy.predict(s, batch.x[:8], 3, env)
    (theta, x, task), *_ = asked
    assert theta is s.theta and torch.equal(x, batch.x[:8])
    assert task.tolist() == [3] * 8
    strategy.loss(s.theta, s, batch._replace(y=batch.y[:8] * 0, active=None, weight=None), env)
    assert torch.equal(asked[1][2], batch.task)


SCREEN = 60  # lines of code
BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def is_prose(node: ast.AST) -> bool:
    """Whether a statement is an import or a docstring."""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, ast.Import | ast.ImportFrom)


def lines_of_code(source: str) -> int:
    """How many lines hold code: no blank ones, comments, docstrings and imports."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    spans = [(t.start[0], t.end[0]) for t in tokens if t.type not in BLANK and t.string]
    prose = [(n.lineno, n.end_lineno) for n in ast.walk(ast.parse(source)) if is_prose(n)]
    code, rest = ({i for a, b in part for i in range(a, b + 1)} for part in (spans, prose))
    return len(code - rest)


def test_lines_of_code_are_counted_without_what_explains_them() -> None:
    source = '''"""A module

of two things."""

import a
from b import (
    c,
)

# A reason.
x = f(
    1,  # first
)


def g():
    """What it does."""
    return """two
lines"""
'''
    assert lines_of_code(source) == 3 + 3


@pytest.mark.parametrize("name", ["ewc", "si", "mas", "er", "der", "derpp", "agem"])
def test_the_best_known_algorithms_fit_on_a_screen(name: str) -> None:
    assert lines_of_code(inspect.getsource(inspect.getmodule(strategies.find(name)))) <= SCREEN
