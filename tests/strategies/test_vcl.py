"""VCL: its loss is the paper's bound, its layers' outputs are those of drawn weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from cl_runner.errors import UserError
from cl_runner.functional.generative import normal
from cl_runner.nn.networks import MLP
from cl_runner.nn.variational import MeanField
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    "strategy=vcl",
    "benchmark=split_digits",
    "benchmark.train_samples=40",
    "model.hidden_sizes=[6]",
    "training.batch_size=20",
    "training.epochs=2",
)


def after_one(prepared, *overrides: str):
    """The second task's beginning, and a batch of it with noise."""
    _, strategy, env = prepared(*TOY, *overrides)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    s = s._replace(theta=s.theta.detach().clone(), t=torch.ones_like(s.t))
    s = strategy.begin_task(s, env.stream[1], env)
    batch = env.gather(env.stream[1].train[:8], 1, s.t)
    noise = {k: torch.rand(shape) for k, shape in strategy.noise(20, env).items()}
    return strategy, env, s, batch._replace(noise=noise)


def test_an_output_has_the_mean_and_the_variance_of_drawn_weights() -> None:
    torch.manual_seed(0)
    net = MeanField(MLP(5, [], 3, "default", 0.0), 0.1)
    for p in net.log_std.parameters():
        p.data.uniform_(-2, 0)
    x = torch.randn(1, 5)
    mean, log_std = (dict(part.named_parameters()) for part in (net.mean, net.log_std))
    draws = []
    for _ in range(4000):
        own = {k: m + log_std[k].exp() * torch.randn_like(m) for k, m in mean.items()}
        draws.append(x @ own["layers.0.weight"].T + own["layers.0.bias"])
    drawn = torch.cat(draws).detach()
    noise = torch.randn(4000, 3)
    found = net(x.expand(4000, -1), noise=[noise]).detach()
    torch.testing.assert_close(found.mean(0), drawn.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(found.std(0), drawn.std(0), rtol=0.06, atol=0)
    assert torch.equal(net(x), net.mean(x, None))  # without noise: the means


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_loss_and_penalty_are_the_papers_bound(prepared, weight: float) -> None:
    """Eq. 4: the gradient in means and widths, by torch's own divergence of Gaussians."""
    strategy, env, s, batch = after_one(prepared, "scenario=class", f"strategy.lambda={weight}")
    theta = s.theta + 0.05 * torch.randn_like(s.theta)

    def bound(theta: Tensor) -> Tensor:
        W0, b0, W1, b1, *log_std = env.flat.views(theta).values()
        S = [v.exp() for v in log_std]
        h, eps = batch.x.flatten(1), [normal(u[:8]) for u in batch.noise.values()]
        h = h @ W0.T + b0 + (h.square() @ S[0].T.square() + S[1].square()).sqrt() * eps[0]
        h = h.relu()
        h = h @ W1.T + b1 + (h.square() @ S[2].T.square() + S[3].square()).sqrt() * eps[1]
        likelihood = h.log_softmax(1).gather(1, batch.y[:, None]).mean()
        (m, log_s), (m0, log_s0) = theta.chunk(2), s.memory["prior"].chunk(2)
        KL = kl_divergence(Normal(m, log_s.exp()), Normal(m0, log_s0.exp())).sum()
        return -likelihood + weight / len(env.stream[1].train) * KL

    def ours(theta: Tensor) -> Tensor:
        return strategy.loss(theta, s, batch, env)[0] + strategy.means_penalty(s)(theta)

    leaf = theta.clone().requires_grad_()
    expected, found = (torch.autograd.grad(f(leaf), leaf)[0] for f in (bound, ours))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_step_is_proximal_in_the_means_and_adam_in_the_widths(prepared) -> None:
    strategy, env, s, batch = after_one(
        prepared, "strategy.std_lr=0.02", "optimizer.lr=0.05", "strategy.lambda=0.5"
    )
    grad, _ = env.grad_and_value(strategy.loss)(s.theta, s, batch, env)
    new, _ = strategy.step(s, batch, env)
    (m, log_s), (g, of_widths) = s.theta.chunk(2), grad.chunk(2)
    m0, log_s0 = s.memory["prior"].chunk(2)
    step = 0.05 * 0.5 / len(env.stream[1].train) * torch.exp(-2 * log_s0)
    torch.testing.assert_close(new.theta.chunk(2)[0], (m - 0.05 * g + step * m0) / (1 + step))
    leaf = log_s.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.02)
    state = {name: s.memory[f"std_{slot}"] for name, slot in SLOTS.items()}
    optimizer.state[leaf] = {name: slot.clone() for name, slot in state.items()}
    leaf.grad = of_widths.clone()
    optimizer.step()
    torch.testing.assert_close(new.theta.chunk(2)[1], leaf.detach(), rtol=1e-5, atol=1e-6)


SLOTS = {"step": "steps", "exp_avg": "m", "exp_avg_sq": "v"}


def test_a_posterior_is_the_next_prior_and_outputs_of_later_tasks_wait(prepared) -> None:
    _, env, s, _ = after_one(prepared, "scenario=task")
    now, prior = env.flat.views(s.theta), env.flat.views(s.memory["prior"])
    own = list(env.stream[0].classes)
    later = [c for c in range(10) if c not in own]
    for name, value in now.items():
        if "layers.1" not in name:
            assert torch.equal(prior[name], value)
            continue
        assert torch.equal(prior[name][own], value[own])
        assert not prior[name][later].any()  # N(0, 1)
        if "log_std" in name:  # not a step, though KL pulls them there
            assert torch.equal(value[later], torch.full_like(value[later], math.log(0.001)))
            assert not torch.equal(value[own], torch.full_like(value[own], math.log(0.01)))


def test_it_predicts_by_the_means(prepared) -> None:
    strategy, env, s, batch = after_one(prepared, "scenario=class")
    W0, b0, W1, b1, *_ = env.flat.views(s.theta).values()
    expected = (batch.x.flatten(1) @ W0.T + b0).relu() @ W1.T + b1
    torch.testing.assert_close(strategy.predict(s, batch.x, 1, env), expected)


def test_other_models_are_refused(prepared) -> None:
    with pytest.raises(UserError, match="strategy=vcl needs model=mlp"):
        prepared("strategy=vcl", "benchmark=split_digits", "model=cnn")
