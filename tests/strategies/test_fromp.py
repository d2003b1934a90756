"""FROMP against the authors' algorithm in plain autograd, and the kernel of a softmax layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.naive import Naive

TOY = (
    *("strategy=fromp", "benchmark=split_digits", "benchmark.train_samples=60"),
    *("model.hidden_sizes=[4]", "strategy.buffer_size=20", "training.batch_size=6"),
    *("training.epochs=3", "optimizer.lr=0.05", "strategy.clip_norm=null"),
)
DELTA = 1e-5


def probabilities(env, theta: Tensor, x: Tensor, classes: list[int]) -> Tensor:
    """[B, C], over a task's classes alone."""
    logits = functional_call(env.flat.module, env.flat.views(theta), (x, None))
    return logits[:, classes].softmax(1)


def jacobian(value: Tensor, theta: Tensor) -> Tensor:
    """Gradients [n, P] of values [n]."""
    rows = [torch.autograd.grad(v, theta, retain_graph=True)[0] for v in value]
    return torch.stack(rows)


def gauss_newton(env, theta: Tensor, x: Tensor, classes: list[int]) -> Tensor:
    """sum_n diag(J^T (diag(p) - p p^T) J), J of the logits: [P]."""
    theta = theta.detach().clone().requires_grad_()
    logits = functional_call(env.flat.module, env.flat.views(theta), (x, None))[:, classes]
    total = torch.zeros_like(theta)
    for f in logits:
        J, p = jacobian(f, theta), f.detach().softmax(0)
        total += ((p.diag() - p.outer(p)) @ J * J).sum(0).detach()
    return total


def memorable(env, theta: Tensor, t: int, classes: list[int], each: int) -> Tensor:
    """Inputs of a task's samples with the largest sum_c p (1 - p), of each of its classes."""
    batch = env.gather(env.stream[t].train, t, torch.tensor(t))
    p = probabilities(env, theta.detach(), batch.x, classes)
    score = (p - p * p).sum(1)
    rows = []
    for c in sorted(env.stream[t].classes):
        own = [i for i in range(len(score)) if int(batch.y[i]) == c]
        rows += sorted(own, key=lambda i: -float(score[i]))[:each]
    return batch.x[rows]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_gradient_is_the_algorithm_s(prepared, scenario: str) -> None:
    own = (f"scenario={scenario}", "strategy.lambda=0.3")
    _, strategy, env = prepared(*TOY, *own)
    s, tasks = initial_state(strategy, env), env.stream
    shown = [[*t.classes] if scenario == "task" else [*range(env.num_classes)] for t in tasks]
    fisher, past = torch.zeros_like(s.theta, requires_grad=False), []
    for t in range(2):
        s = train_task(strategy, s, tasks[t], env)
        x = env.gather(tasks[t].train, t, s.t).x
        fisher += gauss_newton(env, s.theta, x, shown[t])
        past.append(memorable(env, s.theta, t, shown[t], 2))
    torch.testing.assert_close(s.memory["fisher"], fisher, rtol=1e-4, atol=1e-4)
    held = s.memory["buffer_index"].view(4, 4)
    for t in range(2):
        assert torch.equal(env.gather(held[t], t, s.t).x, past[t])
    assert bool((held[2:] == -1).all())

    s = strategy.begin_task(s._replace(t=torch.full_like(s.t, 2)), tasks[2], env)
    start = s.theta.detach().clone()
    theta = (start + 0.02 * torch.randn(start.shape, generator=torch.manual_seed(0))).double()
    batch = env.gather(tasks[2].train[:6], 2, s.t)
    theta.requires_grad_()
    logits = functional_call(env.flat.module, env.flat.views(theta), (batch.x.double(), None))
    y = torch.tensor([shown[2].index(c) for c in batch.y.tolist()])
    (expected,) = torch.autograd.grad(F.cross_entropy(logits[:, shown[2]], y), theta)
    for t, points in enumerate(past):
        old = start.double().requires_grad_()
        before = probabilities(env, old, points.double(), shown[t])
        now = probabilities(env, theta, points.double(), shown[t])
        for c in range(len(shown[t])):
            J = jacobian(before[:, c], old)
            K = J / (s.memory["fisher"] + DELTA) @ J.T + DELTA * torch.eye(len(J))
            pull = torch.linalg.solve(K, (now - before)[:, c].detach())
            expected += 0.3 * jacobian(now[:, c], theta).T @ pull
    found, _ = env.grad_and_value(strategy.loss)(theta.detach().float(), s, batch, env)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)


def test_the_kernel_of_a_softmax_layer(prepared) -> None:
    """dp_c / dW_k = p_c ([c = k] - p_k) x, and without x for the bias."""
    own = ("model.hidden_sizes=[]", "scenario=class", "training.epochs=1")
    _, strategy, env = prepared(*TOY, *own)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    s = strategy.begin_task(s._replace(t=torch.ones_like(s.t)), env.stream[1], env)
    x = env.gather(s.memory["buffer_index"].view(4, 4)[0], 0, s.t).x.flatten(1).double()
    ones = torch.cat([x, torch.ones(4, 1)], 1)
    W, b = (v.detach().double() for v in env.flat.views(s.theta).values())
    p = (x @ W.T + b).softmax(1)
    of_W, of_b = (1 / (v + DELTA) for v in env.flat.views(s.memory["fisher"]).values())
    variance = torch.cat([of_W, of_b[:, None]], 1).double()  # [K, d + 1]
    for c in range(10):
        a = p[:, c, None] * ((torch.arange(10) == c) * 1.0 - p)  # [n, K]
        K = torch.einsum("ik,jk,id,kd,jd->ij", a, a, ones, variance, ones)
        found = s.memory["inverse_kernels"][0, c].double() @ (K + DELTA * torch.eye(4))
        torch.testing.assert_close(found, torch.eye(4).double(), rtol=0, atol=5e-3)


def test_in_the_first_task_it_is_naive_but_for_the_length(mid_run) -> None:
    strategy, env, s, (batch, *_) = mid_run(*TOY, "strategy.clip_norm=0.01", tasks=0)
    s = s._replace(theta=s.theta.detach().clone())
    naive, _ = Naive(name="naive").step(s, batch, env)
    ours, _ = strategy.step(s, batch, env)
    step, full = ours.theta - s.theta, naive.theta - s.theta
    assert float(step.norm()) == pytest.approx(0.05 * 0.01, rel=1e-3)
    torch.testing.assert_close(step / step.norm(), full / full.norm(), rtol=1e-3, atol=1e-4)


def test_where_a_task_begins_the_penalty_is_nothing(prepared) -> None:
    """Nor for places that no sample takes: here each class has fewer than 20."""
    many = ("strategy.buffer_size=200", "model.dropout=0.5")
    _, strategy, env = prepared(*TOY, *many)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    s = strategy.begin_task(s._replace(t=torch.ones_like(s.t)), env.stream[1], env)
    held = s.memory["buffer_index"].view(4, 40)[0] >= 0
    assert 0 < int(held.sum()) < 40
    K = s.memory["inverse_kernels"]
    assert not K[1:].any()
    assert not K[0, :, ~held].any()
    assert bool(K[0, :, held][..., held].any())
    p = strategy.memorable(s.theta, s, env)  # in evaluation mode: no unit is dropped
    torch.testing.assert_close(p, s.memory["probabilities"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.lambda=-1",), "strategy.lambda must be at least 0"),
        (("strategy.clip_norm=0",), "strategy.clip_norm must be positive or null"),
        (("strategy.buffer_size=9",), "one place for each of 2 classes of 5 tasks"),
        (("strategy.buffer_size=60000",), r"takes? .* GiB for a kernel; strategy=fromp may take"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *overrides)
