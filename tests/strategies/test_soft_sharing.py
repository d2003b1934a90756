"""Soft sharing: between networks that share nothing and hard sharing, each trained by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.training.batches import Source

TOY = (
    "scenario=task",
    "benchmark=split_digits",
    "benchmark.num_tasks=3",
    "model.hidden_sizes=[24]",
    "training.epochs=1",
)
SOFT = (*TOY, "strategy=soft_sharing")
T = 3


def networks(env, theta: Tensor) -> list[dict[str, Tensor]]:
    """The parameters of each of the T networks, by the names they have in one."""
    views = env.flat.views(theta.detach().clone())
    names = {name: name.removeprefix("network.") for name in views}
    return [{names[name]: v[t] for name, v in views.items()} for t in range(T)]


def trained(prepared, *overrides: str):
    """Environment, the T networks after the run, the network they start from, and the batches."""
    _, _, plain = prepared(*TOY, "strategy=naive")
    _, strategy, env = prepared(*SOFT, *overrides)
    s = strategy.begin_task(initial_state(strategy, env), env.stream[0], env)
    index, tasks = strategy.training_set(s, env.stream, 0, env)
    source = Source(env, s, 0, index, tasks, strategy)
    batches = list(source.epoch(0, -(-len(index) // env.training.batch_size)))
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    return env, networks(env, s.theta), plain.flat.module, batches


def by_hand(net: nn.Module, optimizer: torch.optim.Optimizer, batches, task: int | None) -> None:
    """Train `net` on the samples of one task, or of all, each weighing 1 / B."""
    for batch in batches:
        chosen = slice(None) if task is None else batch.task == task
        logits = net(batch.x[chosen]).masked_fill(~batch.active[chosen], float("-inf"))
        loss = F.cross_entropy(logits, batch.y[chosen], reduction="sum") / len(batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_each_task_is_answered_by_its_own_network(prepared):
    _, strategy, env = prepared(*SOFT)
    s = initial_state(strategy, env)
    s = s._replace(theta=torch.randn(len(s.theta), generator=torch.Generator().manual_seed(0)))
    x = env.gather(env.stream[0].train[:5], 0, s.t).x
    for task, own in enumerate(networks(env, s.theta)):
        hidden = F.relu(x.flatten(1) @ own["layers.0.weight"].T + own["layers.0.bias"])
        expected = hidden @ own["layers.1.weight"].T + own["layers.1.bias"]
        torch.testing.assert_close(strategy.predict(s, x, task, env), expected)


@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_lambda_0_is_separate_networks_trained_at_once(prepared, penalty):
    options = ("strategy.lambda=0", f"strategy.penalty={penalty}", "optimizer=adam")
    env, mine, start, batches = trained(prepared, *options)
    initial = {name: p.detach().clone() for name, p in start.named_parameters()}
    for t in range(T):
        start.load_state_dict(initial)
        optimizer = torch.optim.Adam(start.parameters(), lr=env.optimizer.lr)
        by_hand(start, optimizer, batches, t)
        for name, p in start.named_parameters():
            torch.testing.assert_close(mine[t][name], p.detach(), rtol=1e-4, atol=1e-5)


def test_large_lambda_is_hard_sharing(prepared):
    """One trunk, which takes the mean of the T networks' steps, and an output layer per task."""
    options = ("strategy.lambda=1e9", "strategy.penalty=proximal", "optimizer=sgd")
    env, mine, shared, batches = trained(prepared, *options, "optimizer.lr=0.3")
    hidden, output = shared.layers
    groups = [
        {"params": list(hidden.parameters()), "lr": 0.3 / T},
        {"params": list(output.parameters()), "lr": 0.3},
    ]
    initial = hidden.weight.detach().clone()
    by_hand(shared, torch.optim.SGD(groups), batches, None)
    assert (hidden.weight - initial).abs().max() > 0.01
    for t, net in enumerate(mine):
        own = env.own_classes[t]
        for name, p in hidden.named_parameters():
            torch.testing.assert_close(net[f"layers.0.{name}"], p.detach(), rtol=1e-4, atol=1e-5)
        for name, p in output.named_parameters():
            torch.testing.assert_close(
                net[f"layers.1.{name}"][own], p.detach()[own], rtol=1e-4, atol=1e-5
            )


def mid(prepared, *overrides: str):
    """A state in which all networks differ, and the first batch."""
    _, strategy, env = prepared(*SOFT, *overrides)
    s = strategy.begin_task(initial_state(strategy, env), env.stream[0], env)
    generator = torch.Generator().manual_seed(0)
    theta = s.theta.detach() + 0.1 * torch.randn(len(s.theta), generator=generator)
    source = Source(env, s, 0, *strategy.training_set(s, env.stream, 0, env), strategy)
    return strategy, env, env.commit(s._replace(theta=theta)), next(iter(source.epoch(0, 1)))


def deviations(env, theta: Tensor, name: str) -> Tensor:
    """theta_t minus the mean over networks of one parameter, [T, ...]."""
    stacked = torch.stack([net[name] for net in networks(env, theta)])
    return stacked - stacked.mean(0)


def test_the_penalty_pulls_each_hidden_layer_to_the_mean(prepared):
    gradients = {}
    for strength in (0, 0.7):
        strategy, env, s, batch = mid(prepared, f"strategy.lambda={strength}")
        grad, _ = env.grad_and_value(strategy.loss)(s.theta, s, batch, env)
        gradients[strength] = env.flat.views(grad.clone())
    for name, with_penalty in gradients[0.7].items():
        penalty = with_penalty - gradients[0][name]
        if "layers.1" in name:
            assert not penalty.any()
        else:
            expected = 0.7 * deviations(env, s.theta, name.removeprefix("network."))
            torch.testing.assert_close(penalty, expected, rtol=1e-4, atol=1e-6)


def test_the_proximal_step_shrinks_the_deviations_and_leaves_the_mean(prepared):
    thetas = {}
    options = ("strategy.penalty=proximal", "optimizer=sgd", "optimizer.lr=0.5")
    for strength in (0, 4):
        strategy, env, s, batch = mid(prepared, f"strategy.lambda={strength}", *options)
        with torch.no_grad():
            thetas[strength] = strategy.step(s, batch, env)[0].theta.clone()
    for name in ("layers.0.weight", "layers.0.bias"):
        mine, free = (deviations(env, thetas[strength], name) for strength in (4, 0))
        torch.testing.assert_close(mine, free / (1 + 0.5 * 4), rtol=1e-4, atol=1e-6)
    means = [sum(v["layers.0.weight"] for v in networks(env, theta)) for theta in thetas.values()]
    torch.testing.assert_close(*means)
    output = [
        torch.stack([v["layers.1.weight"] for v in networks(env, th)]) for th in thetas.values()
    ]
    assert torch.equal(*output)


@pytest.mark.parametrize("task", range(T))
def test_no_network_sees_a_sample_of_another_task(prepared, task):
    strategy, env, s, batch = mid(prepared, "strategy.lambda=0")
    own = batch._replace(weight=(batch.task == task).float())
    grad, _ = env.grad_and_value(strategy.loss)(s.theta, s, own, env)
    for name, g in env.flat.views(grad).items():
        assert [bool(g[t].any()) for t in range(T)] == [t == task for t in range(T)], name
    output = env.flat.views(grad)["network.layers.1.weight"][task]
    assert output.any(1).tolist() == env.own_classes[task].tolist()  # nor another task's outputs


def test_stronger_pull_brings_the_networks_closer(prepared):
    spread = []
    for strength in (0, 1, 10):
        _, mine, _, _ = trained(prepared, f"strategy.lambda={strength}", "optimizer=sgd")
        stacked = torch.stack([net["layers.0.weight"] for net in mine])
        spread.append(float((stacked - stacked.mean(0)).norm()))
    assert spread[0] > 1.5 * spread[1] > 0
    assert spread[1] > 1.5 * spread[2] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.lambda=-1",), "strategy.lambda must be at least 0, got -1"),
        (("strategy.penalty=hard",), "strategy.penalty must be one of loss, proximal"),
        (("scenario=class",), "strategy=soft_sharing does not support scenario=class"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(*SOFT, *overrides)


def test_batchnorm_is_refused(prepared):
    where = ("strategy=soft_sharing", "scenario=task", "benchmark=split_digits")
    with pytest.raises(UserError, match="strategy=soft_sharing needs a model without BatchNorm"):
        prepared(*where, "model=reduced_resnet18", "model.width=2")
