"""OGD: the basis, the steps orthogonal to it, and the logits that therefore stay."""

from __future__ import annotations

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.functional import projection
from cl_runner.strategies import ogd
from cl_runner.strategies.naive import Naive

TOY = (
    "strategy=ogd",
    "benchmark=permuted_digits",
    "benchmark.num_tasks=3",
    "benchmark.train_samples=300",
    "strategy.directions=40",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=2",
)


def run(mid_run, *overrides: str, tasks: int = 2):
    """The state after some tasks, and the first batches of the next."""
    strategy, env, s, batches = mid_run(*TOY, *overrides, tasks=tasks)
    return strategy, env, s, batches[:5]


@pytest.mark.parametrize(
    ("overrides", "per_task"),
    [
        ((), 40),
        (("strategy.logits=all",), 40),  # four samples of ten classes
        (("strategy.logits=all", "strategy.directions=39"), 30),
        (("scenario=task", "strategy.logits=all", "strategy.directions=60"), 60),
        (("benchmark.train_samples=25",), 25),
    ],
)
def test_the_basis_is_orthonormal_and_has_each_task_s_directions(mid_run, overrides, per_task):
    _, _, s, _ = run(mid_run, *overrides)
    assert list(s.memory) == ["basis_0", "basis_1"]  # nothing is trained after the third task
    basis = torch.cat(list(s.memory.values()))
    rows = basis[basis.any(1)]
    assert len(rows) == 2 * per_task
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)


def test_a_step_reads_the_earlier_tasks_directions_only(mid_run, monkeypatch):
    for tasks in range(3):
        strategy, env, s, (batch, *_) = run(mid_run, tasks=tasks)
        read = []

        def watched(g, basis, read=read):
            read.append(basis)
            return projection.project_out(g, basis)

        monkeypatch.setattr(ogd, "project_out", watched)
        with torch.no_grad():
            strategy.step(s, batch, env)
        assert [b is s.memory[f"basis_{t}"] for t, b in enumerate(read)] == [True] * tasks


def test_after_the_last_task_nothing_is_added(mid_run):
    strategy, env, s, _ = run(mid_run)
    before = dict(s.memory)
    after = strategy.end_task(s, env.stream[2], env).memory
    assert all(after[name] is value for name, value in before.items())


def stored(env, s, t: int, per_task: int = 40):
    """The samples of a task whose logits the basis keeps: those that `fold` chooses."""
    batches, _ = env.fold(lambda seen, b: [*seen, b], [], s, env.stream[t], samples=per_task)
    (batch,) = batches
    return batch


def test_the_basis_spans_the_gradients_of_the_true_logits(mid_run):
    _, env, s, _ = run(mid_run, tasks=1)
    basis, batch = s.memory["basis_0"], stored(env, s, 0)
    logits = env.net(s.theta, batch.x, batch.task)
    for n in range(40):
        parts = torch.autograd.grad(logits[n, batch.y[n]], env.flat.parameters, retain_graph=True)
        g = torch.cat([part.flatten() for part in parts])
        outside = g - basis.T @ (basis @ g)
        assert float(outside.norm()) < 1e-4 * float(g.norm())


def test_steps_are_orthogonal_to_the_basis(mid_run):
    strategy, env, s, batches = run(mid_run)
    with torch.no_grad():
        for batch in batches:
            before = s.theta.detach().clone()
            s, _ = strategy.step(s, batch, env)
            moved = s.theta - before
            assert float(moved.norm()) > 1e-3
            along = torch.cat(list(s.memory.values())) @ moved
            assert float(along.abs().max()) < 1e-5 * float(moved.norm())
            s = env.commit(s)


def change(env, s, direction, size: float, batch) -> float:
    """Mean change of the stored logits for a step in double precision."""

    def logits(theta):
        return env.net(theta, batch.x.double(), batch.task).gather(1, batch.y[:, None])

    theta, unit = s.theta.detach().double(), direction.double() / direction.double().norm()
    return float((logits(theta - size * unit) - logits(theta)).abs().mean())


def test_the_stored_logits_change_to_second_order_only(mid_run):
    strategy, env, s, (batch, *_) = run(mid_run, tasks=1)
    kept = stored(env, s, 0)
    with torch.no_grad():
        after, _ = strategy.step(s, batch, env)
        orthogonal = s.theta - after.theta
        free, _ = Naive(name="naive").step(s, batch, env)
        ordinary = s.theta - free.theta
        ratio = change(env, s, orthogonal, 0.02, kept) / change(env, s, orthogonal, 0.01, kept)
        assert 3 < ratio < 5  # quadratic: half the step, a quarter of the change
        ratio = change(env, s, ordinary, 0.02, kept) / change(env, s, ordinary, 0.01, kept)
        assert ratio == pytest.approx(2, rel=0.05)
        small, large = (change(env, s, d, 0.01, kept) for d in (orthogonal, ordinary))
        assert small < 0.05 * large


def test_in_the_first_task_it_is_naive(mid_run):
    strategy, env, s, (batch, *_) = run(mid_run, tasks=0)
    s = s._replace(theta=s.theta.detach().clone())
    expected, _ = Naive(name="naive").step(s, batch, env)
    actual, _ = strategy.step(s, batch, env)
    assert torch.equal(actual.theta, expected.theta)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.directions=0",), "at least 1"),
        (("strategy.logits=all", "strategy.directions=9"), "at least one for each of 10 classes"),
        (("model.hidden_sizes=[4000,4000]",), r"takes 4\.9 GiB; strategy=ogd may take 4 GiB"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *overrides)


@pytest.mark.parametrize(
    ("logits", "directions"), [("all", 10), ("ground_truth", 1)], ids=["all", "ground_truth"]
)
def test_the_fewest_directions(prepared, logits, directions):
    own = (f"strategy.logits={logits}", f"strategy.directions={directions}")
    _, strategy, env = prepared(*TOY, *own)
    memory = strategy.init(env.flat.theta.detach(), env)
    assert {basis.shape for basis in memory.values()} == {(directions, env.flat.theta.numel())}
