"""Hard attention to the task: the slope, the gradients, and what may not move any more."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.functional.losses import cross_entropy
from cl_runner.running.evaluation import evaluate
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    "strategy=hat",
    "benchmark=split_digits",
    "scenario=task",
    "model.hidden_sizes=[12,14]",
    "training.batch_size=64",
    "training.epochs=2",
)
CNN = (*TOY[:3], "model=cnn", "model.channels=[3,4]", "model.hidden_size=6", *TOY[4:])


def begun(mid_run, *overrides: str, task: int = 1, toy=TOY):
    """A state in which a task has just begun, and its batches."""
    strategy, env, s, batches = mid_run(*toy, *overrides, tasks=task)
    return strategy, env, strategy.begin_task(s, env.stream[task], env), batches


def slopes(strategy, env, s, batches, steps: int) -> list[float]:
    found = []
    with torch.no_grad():
        for step in range(steps):
            found.append(float(strategy.scale(s)))
            s, _ = strategy.step(s, batches[step % len(batches)], env)
            s = env.commit(s)
    return found


@pytest.mark.parametrize(("size", "B"), [(64, 5), (150, 2)])
def test_the_slope_grows_linearly_within_each_epoch(mid_run, size, B):
    options = ("strategy.s_max=50", "training.epochs=3", f"training.batch_size={size}")
    strategy, env, s, batches = begun(mid_run, *options)
    assert len(batches) == B
    epoch = [1 / 50 + (50 - 1 / 50) * (b - 1) / (B - 1) for b in range(1, B + 1)]
    assert slopes(strategy, env, s, batches, 3 * B) == pytest.approx(3 * epoch, rel=1e-5)


@pytest.mark.parametrize(
    ("iterations", "sweeps"), [(1, 1), (2, 1), (4, 1), (7, 1), (11, 2), (20, 4)]
)
def test_with_iterations_the_last_sweep_ends_at_the_largest_slope(mid_run, iterations, sweeps):
    strategy, env, s, batches = begun(mid_run, f"training.iterations={iterations}")
    assert len(batches) == 5
    found = slopes(strategy, env, s, batches, iterations)
    assert found[-1] == pytest.approx(400.0)
    assert sum(slope == pytest.approx(400.0) for slope in found) == sweeps
    rises = [b - a for a, b in pairwise(found) if b > a]
    assert not rises or max(rises) == pytest.approx(min(rises), rel=1e-4)


@pytest.mark.parametrize("scale", [1 / 400, 1.0, 20.0])
def test_the_compensation_makes_the_slope_of_the_sigmoid_that_of_slope_one(mid_run, scale):
    """s sigma'(s e) becomes s_max sigma'(e), whatever s is."""
    strategy, *_ = begun(mid_run)
    e = torch.linspace(-2, 2, 41, dtype=torch.float64)
    slope = scale * torch.sigmoid(scale * e) * torch.sigmoid(-scale * e)
    compensated = slope * strategy.compensation(e, torch.tensor(scale))
    expected = 400 * torch.sigmoid(e) * (1 - torch.sigmoid(e))
    torch.testing.assert_close(compensated, expected, rtol=1e-6, atol=0)
    assert torch.isfinite(strategy.compensation(6 * e / 2, torch.tensor(400.0))).all()


def with_claims(s):
    """The state with random cumulative attention, some of it exactly 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    claimed = (2 * torch.rand(s.memory["claimed"].shape, generator=generator) - 0.5).clamp(0, 1)
    assert (claimed == 0).any() and (claimed == 1).any()
    return s._replace(memory=s.memory | {"claimed": claimed})


def share_by_hand(env, claimed, t: int) -> dict[str, torch.Tensor]:
    """1 - min(A_i, A_j) for each weight, one after another."""
    A = claimed.split(env.flat.module.units)
    shares, layer = {}, 0
    for name, part in env.flat.views(env.flat.theta.detach()).items():
        share = shares[name] = torch.zeros_like(part)
        if name == "table":
            share[t] = 1
        elif layer == len(A):  # the output layer
            share[[2 * t, 2 * t + 1]] = 1
        elif name.endswith("bias"):
            share.copy_(1 - A[layer])
            layer += 1
        else:
            pixels = part.shape[1] // len(A[layer - 1])  # a channel's, where it is flattened
            for i in range(part.shape[0]):
                for j in range(part.shape[1]):
                    source = A[layer - 1][j // pixels] if layer else 1.0  # 1: an input
                    share[i, j] = 1 - min(A[layer][i], source)
    return shares


@pytest.mark.parametrize("toy", [TOY, CNN], ids=["mlp", "cnn"])
def test_a_step_is_the_conditioned_and_compensated_gradient(mid_run, toy):
    strategy, env, s, batches = begun(mid_run, toy=toy)
    s = strategy.begin_task(with_claims(s), env.stream[1], env)
    for batch in batches[:2]:
        before = s.theta.detach().clone()
        grad, _ = env.grad_and_value(strategy.loss)(before, s, batch, env)
        scale = strategy.scale(s)
        with torch.no_grad():
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
        after, old, g = (env.flat.views(v) for v in (s.theta.detach(), before, grad))
        for name, share in share_by_hand(env, s.memory["claimed"], 1).items():
            q = g[name]
            if name == "table":
                e = old["table"]
                q = q * 400 / scale * ((scale * e).clamp(-50, 50).cosh() + 1) / (e.cosh() + 1)
            expected = old[name] - 0.1 * share * q
            if name == "table":
                expected = expected.clamp(-6, 6)
            torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "optimizer",
    [
        ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.01"),
        ("optimizer=adamw", "optimizer.weight_decay=0.1"),
    ],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("toy", [TOY, CNN], ids=["mlp", "cnn"])
def test_what_old_tasks_have_claimed_does_not_move(mid_run, toy, optimizer):
    strategy, env, s, _ = begun(mid_run, *optimizer, toy=toy)
    s = with_claims(s)
    shares = share_by_hand(env, s.memory["claimed"], 1)
    before = s.theta.detach().clone()
    s = train_task(strategy, s, env.stream[1], env)
    after, old = env.flat.views(s.theta.detach()), env.flat.views(before)
    for name, share in shares.items():
        assert torch.equal(after[name][share == 0], old[name][share == 0]), name
        assert not torch.equal(after[name][share == 1], old[name][share == 1]), name
    frozen = sum(int((share == 0).sum()) for n, share in shares.items() if n.startswith("network"))
    assert frozen > 20


def test_no_step_takes_an_embedding_out_of_its_range(mid_run):
    strategy, env, s, batches = begun(mid_run)
    table = env.flat.views(s.theta.detach())["table"]
    table[1, ::2], table[1, 1::2] = 50, -50
    with torch.no_grad():
        s, _ = strategy.step(s, batches[0], env)
    own = env.flat.views(s.theta)["table"][1]
    assert own[::2].tolist() == [6] * len(own[::2]) and own[1::2].tolist() == [-6] * len(own[1::2])


def test_the_sparsity_counts_the_attention_to_units_not_yet_claimed(mid_run):
    strategy, env, s, batches = begun(mid_run, "strategy.lambda=3")
    s = with_claims(s)
    batch, A = batches[0], s.memory["claimed"]
    e = env.flat.views(s.theta.detach())["table"][1]
    a = torch.sigmoid(strategy.scale(s) * e)
    loss, aux = strategy.loss(s.theta, s, batch, env)
    regulariser = loss - cross_entropy(aux["logits"], batch.y, batch.active)
    torch.testing.assert_close(regulariser, 3 * (a * (1 - A)).sum() / (1 - A).sum())
    full = s._replace(memory=s.memory | {"claimed": torch.ones_like(A)})
    loss, aux = strategy.loss(s.theta, full, batch, env)
    torch.testing.assert_close(loss, cross_entropy(aux["logits"], batch.y, batch.active))


def test_it_trains_at_the_current_slope_and_is_tested_at_the_largest(mid_run):
    strategy, env, s, batches = begun(mid_run)

    def by_hand(scale: float) -> torch.Tensor:
        parts, h = env.flat.views(s.theta.detach()), batches[0].x.flatten(1)
        gates = torch.sigmoid(scale * parts["table"][1]).split([12, 14])
        for layer, gate in enumerate(gates):
            weight, bias = (parts[f"network.layers.{layer}.{k}"] for k in ("weight", "bias"))
            h = gate * F.relu(h @ weight.T + bias)
        return h @ parts["network.layers.2.weight"].T + parts["network.layers.2.bias"]

    _, aux = strategy.loss(s.theta, s, batches[0], env)
    torch.testing.assert_close(aux["logits"].detach(), by_hand(1 / 400))
    predicted = strategy.predict(s, batches[0].x, 1, env)
    torch.testing.assert_close(predicted.detach(), by_hand(400.0))


def test_the_cumulative_attention_is_the_largest_of_the_tasks_and_nearly_binary(prepared):
    _, strategy, env = prepared(*TOY)
    s = initial_state(strategy, env)
    expected = torch.zeros_like(s.memory["claimed"])
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        e = env.flat.views(s.theta.detach())["table"][task.index]
        expected = torch.maximum(expected, torch.sigmoid(400 * e))
        assert torch.equal(s.memory["claimed"], expected)
        if task.index == 0:
            assert 0 < float(expected.mean()) < 1
            assert float(((expected < 0.01) | (expected > 0.99)).float().mean()) > 0.8


def test_the_attention_of_a_task_has_the_largest_slope(prepared):
    _, strategy, env = prepared(*TOY)
    s = initial_state(strategy, env)
    table = env.flat.views(s.theta.detach())["table"]
    table[0] = torch.linspace(-0.01, 0.01, table.shape[1])  # where it is not yet binary
    claimed = strategy.end_task(s, env.stream[0], env).memory["claimed"]
    torch.testing.assert_close(claimed, torch.sigmoid(400 * table[0]))


@pytest.mark.slow
def test_an_old_tasks_answers_hardly_change(prepared):
    _, strategy, env = prepared(*TOY, "training.epochs=20", "optimizer=adam")
    s = initial_state(strategy, env)
    rows = []
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        rows.append(evaluate(strategy, s, env)["test", "task"])
    learnt = [row[t] for t, row in enumerate(rows)]
    assert sum(learnt) / 5 > 0.8
    assert max(abs(a - b) for a, b in zip(learnt, rows[-1], strict=True)) < 0.03


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.lambda=-1",), "strategy.lambda must be at least 0, got -1"),
        (("strategy.s_max=1",), "strategy.s_max must be more than 1, got 1"),
        (("scenario=class",), "strategy=hat does not support scenario=class"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *overrides)


def test_residual_networks_are_refused(prepared):
    with pytest.raises(UserError, match=r"strategy=hat .* use model=mlp or model=cnn"):
        prepared(*TOY[:3], "model=reduced_resnet18")
