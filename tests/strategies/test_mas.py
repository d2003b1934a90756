"""Memory aware synapses: the importance against one backward pass per sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.naive import Naive
from cl_runner.strategies.parts.importance import output_sensitivity
from cl_runner.training.unlabelled import without_labels

CASES = [
    ("model.hidden_sizes=[12]", "scenario=task"),
    ("model.hidden_sizes=[12,8]", "scenario=class"),
    ("model=cnn", "model.channels=[3]", "model.hidden_size=8", "scenario=class"),
]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_against_autograd(prepared, case):
    _, strategy, env = prepared(
        "strategy=mas", "benchmark=split_digits", "benchmark.train_samples=80", *case
    )
    s = initial_state(strategy, env)
    s = train_task(strategy, s, env.stream[0], env)
    task = env.stream[0]
    expected = torch.zeros_like(s.theta, requires_grad=False)
    for row in task.train:
        batch = env.gather(row[None], 0, s.t)
        z = env.net(s.theta, batch.x, batch.task)
        if batch.active is not None:
            z = z[batch.active]
        gradients = torch.autograd.grad(z.square().sum(), env.flat.parameters)
        expected += torch.cat([g.flatten() for g in gradients]).abs() / len(task.train)
    actual = output_sensitivity(s, task, env, samples=None)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(s.memory["importance"], expected, rtol=1e-3, atol=1e-5)


def test_it_needs_no_labels(prepared):
    _, strategy, env = prepared("strategy=mas", "benchmark.train_samples=80")
    s = initial_state(strategy, env)
    s = train_task(strategy, s, env.stream[0], env)
    before = output_sensitivity(s, env.stream[0], env, samples=None)
    env.stream.y.copy_(env.stream.y.flip(0))
    assert torch.equal(before, output_sensitivity(s, env.stream[0], env, samples=None))


@pytest.mark.parametrize("gamma", [1, 0.3, 0])
def test_importance_adds_up_over_tasks_of_the_old_one_as_much_as_gamma_says(prepared, gamma):
    _, strategy, env = prepared(
        "strategy=mas", "benchmark.train_samples=80", f"strategy.gamma={gamma}"
    )
    s = initial_state(strategy, env)
    total = torch.zeros_like(s.theta, requires_grad=False)
    for task in env.stream[:3]:
        s = train_task(strategy, s, task, env)
        total = gamma * total + output_sensitivity(s, task, env, samples=None)
    torch.testing.assert_close(s.memory["importance"], total)


def test_the_step_is_along_the_gradient_of_the_papers_loss(prepared):
    """Equation 3, which has no half before the penalty."""
    _, strategy, env = prepared(
        "strategy=mas", "strategy.lambda=3", "strategy.penalty=loss", "optimizer.lr=0.01"
    )
    s = initial_state(strategy, env)
    importance = torch.rand_like(s.memory["importance"])
    s = s._replace(theta=s.theta.detach() + 0.1, memory=s.memory | {"importance": importance})
    batch = env.gather(env.stream[0].train[:8], 0, s.t)

    def papers_loss(theta, s, batch, env):
        loss, aux = Naive(name="naive").loss(theta, s, batch, env)
        return loss + 3 * (importance * (theta - s.memory["anchor"]) ** 2).sum(), aux

    grad, _ = env.grad_and_value(papers_loss)(s.theta, s, batch, env)
    after, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(after.theta, s.theta - 0.01 * grad, rtol=1e-5, atol=1e-7)


def test_the_proximal_step_is_the_closed_form_around_the_latest_weights(prepared):
    """argmin_z |z - theta'|^2 / (2 lr) + lambda sum Omega (z - theta*)^2, theta' after SGD."""
    _, strategy, env = prepared("strategy=mas", "strategy.lambda=30", "benchmark.train_samples=80")
    s = initial_state(strategy, env)
    for task in env.stream[:2]:
        s = train_task(strategy, s, task, env)
    assert torch.equal(s.memory["anchor"], s.theta)
    Omega, anchor = s.memory["importance"], s.memory["anchor"]
    s = s._replace(theta=s.theta.detach() + 0.01)
    batch = env.gather(env.stream[2].train[:8], 2, s.t)
    grad, _ = env.grad_and_value(Naive(name="naive").loss)(s.theta, s, batch, env)
    moved, pull = s.theta - 0.1 * grad, 2 * 0.1 * 30 * Omega
    after, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(after.theta, (moved + pull * anchor) / (1 + pull))
    assert float((after.theta - moved).norm()) > 0.1 * float((0.1 * grad).norm())


def test_samples_is_how_many_are_looked_at(prepared):
    """A subset of 7 is what `fold` draws for 7; all 80 give something else."""
    toy = ("strategy=mas", "benchmark.train_samples=80", "model.hidden_sizes=[12]")
    found = {}
    for samples in ("7", "null"):
        _, strategy, env = prepared(*toy, f"strategy.samples={samples}")
        s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
        number = None if samples == "null" else int(samples)
        expected = output_sensitivity(s, env.stream[0], env, samples=number)
        torch.testing.assert_close(s.memory["importance"], expected)
        found[samples] = expected
    assert not torch.allclose(found["7"], found["null"], rtol=0.01)


# Importance from inputs of another source.


ROWS = ("strategy=mas", "benchmark=rotated_digits", "scenario=domain", "benchmark.num_tasks=2")


@pytest.mark.parametrize("rows", ["test", "file"])
def test_the_importance_is_that_of_the_asked_inputs_as_the_task_shows_them(
    prepared, tmp_path, rows
):
    """Sample by sample with autograd; in the second task, which turns its images."""
    _, _, env = prepared(*ROWS)
    own = env.stream.x_test[:30] if rows == "file" else env.stream.x_test[env.stream[1].test]
    if rows == "file":
        np.savez(tmp_path / "rows.npz", x=own[:, 0].numpy())
        rows = tmp_path / "rows.npz"
    _, strategy, env = prepared(*ROWS, f"strategy.rows={rows}", "model.hidden_sizes=[6]")
    s = initial_state(strategy, env)
    s = s._replace(t=torch.ones_like(s.t))
    after = strategy.end_task(s, env.stream[1], env)
    x = env.stream.normalise(env.stream.transform(own, 1, env.stream.tables))
    expected = torch.zeros_like(s.theta, requires_grad=False)
    for image in x:
        z = env.net(s.theta, image[None], torch.ones(1, dtype=torch.int64))
        gradients = torch.autograd.grad(z.square().sum(), env.flat.parameters)
        expected += torch.cat([g.flatten() for g in gradients]).abs() / len(x)
    torch.testing.assert_close(after.memory["importance"], expected, rtol=1e-3, atol=1e-5)


def test_labels_of_the_asked_inputs_are_never_seen(prepared):
    _, strategy, env = prepared(*ROWS, "strategy.rows=test", "model.hidden_sizes=[6]")
    s = initial_state(strategy, env)
    before = strategy.end_task(s, env.stream[0], env).memory["importance"]
    env.stream.y_test.fill_(-(10**6))  # whoever looks one up fails
    env.stream.y.fill_(-(10**6))
    assert torch.equal(before, strategy.end_task(s, env.stream[0], env).memory["importance"])


def test_inputs_of_other_sources_find_the_same_parameters_important(prepared):
    """Section 4 of the paper: test inputs serve as well as those that were trained on."""
    _, strategy, env = prepared(
        *("strategy=mas", "benchmark=split_digits", "scenario=class", "benchmark.num_tasks=2")
    )
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    other = replace(strategy, rows="test").end_task(s, env.stream[0], env).memory["importance"]
    own, other = s.memory["importance"], other - s.memory["importance"]
    assert float(torch.corrcoef(torch.stack([own, other]))[0, 1]) > 0.95
    noise = without_labels(env.stream[0], env, 16 * torch.rand(200, 1, 8, 8).round().byte())
    foreign = output_sensitivity(s, *noise, samples=None)
    assert float(torch.corrcoef(torch.stack([own, foreign]))[0, 1]) < 0.9  # not any inputs do


def test_rows_that_cannot_be(prepared, tmp_path):
    with pytest.raises(
        UserError, match=r"strategy.rows must be train, test or the name of an .npz"
    ):
        prepared(*ROWS, "strategy.rows=validation")
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 9, 9), np.uint8))
    with pytest.raises(UserError, match=r"strategy.rows=.*its rows are uint8 of"):
        prepared(*ROWS, f"strategy.rows={tmp_path / 'rows.npz'}")
    with pytest.raises(UserError, match=r"strategy.rows=test is of the tasks of the stream"):
        prepared(*ROWS, "strategy.rows=test", "training.boundaries=detected")
