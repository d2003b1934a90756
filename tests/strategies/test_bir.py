"""Brain-inspired replay: what is drawn, decoded, answered and learnt, computed in another way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal
from torch.func import functional_call

from cl_runner.errors import UserError
from cl_runner.functional.generative import normal
from cl_runner.strategies.parts import scholar

TOY = (
    "strategy=bir",
    "benchmark=split_digits",
    "benchmark.train_samples=200",
    "strategy.hidden_sizes=[20,12]",
    "strategy.latent_size=6",
    "strategy.gated=0.25",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)


def third_task(mid_run, *overrides: str):
    """At the beginning of the third of five tasks, with its first batch."""
    strategy, env, s, batches = mid_run(*TOY, *overrides, tasks=2)
    s = strategy.begin_task(s, env.stream[2], env)
    return strategy, env, s, batches[0]


def decoded(env, theta: Tensor, z: Tensor, gates: Tensor) -> Tensor:
    """One code [Z] through the decoder of `theta`, layer by layer: probabilities of pixels."""
    weights = env.flat.views(theta.detach())
    for i in range(3):
        at = f"generator.decoder.{i}"
        z = F.linear(z, weights[f"{at}.weight"], weights[f"{at}.bias"])
        if i < 2:
            z = F.relu(z * gates[(0, 12)[i] : (12, 32)[i]])
    return z.sigmoid().view(1, 8, 8)


# What is drawn.


@pytest.mark.parametrize(
    ("scenario", "pairs"),
    [
        ("class", {(c, c // 2) for c in range(4)}),
        ("task", {(c, c // 2) for c in range(4)}),
        ("domain", {(c, t) for c in range(2) for t in range(2)}),
    ],
)
def test_each_class_of_each_old_task_is_equally_likely(prepared, scenario, pairs) -> None:
    _, _, env = prepared(*TOY, f"scenario={scenario}")
    uniform = (torch.arange(40) + 0.5) / 40
    y, task = scholar.drawn(uniform, scholar.before(torch.tensor(2), env), env)
    drawn = list(zip(y.tolist(), task.tolist(), strict=True))
    assert {*drawn} == pairs
    assert all(drawn.count(pair) == 10 for pair in pairs)
    y, task = scholar.drawn(torch.tensor([0.0, 1 - 2**-24]), torch.zeros(5).bool(), env)
    assert (y < env.num_classes).all() and (task < 5).all()


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_what_is_replayed_is_the_old_decoders_of_its_class(mid_run, scenario) -> None:
    strategy, env, s, batch = third_task(mid_run, f"scenario={scenario}")
    both = strategy.replay(s, batch, env)
    past = scholar.before(s.t, env)
    y, task = scholar.drawn(batch.noise["class"], past, env)
    prior = env.flat.views(s.memory["scholar"])["generator.prior"]
    for b in range(16):
        mean, log_variance = prior[y[b]].chunk(2)
        z = mean + (log_variance / 2).exp() * normal(batch.noise["replay"][b])
        gates = s.memory["gates"][task[b] if scenario == "domain" else y[b]]
        pixels = decoded(env, s.memory["scholar"], z, gates)
        torch.testing.assert_close(both.x[16 + b], env.stream.normalise(pixels[None] * 255)[0])
    assert torch.equal(both.x[:16], batch.x)


def test_a_share_of_each_layers_gates_is_shut_and_which_ones_depends_on_seed_and_class(
    prepared,
) -> None:
    _, strategy, env = prepared(*TOY)
    gates = strategy.gates(env)
    assert gates.shape == (10, 32)
    assert (gates[:, :12].sum(1) == 9).all() and (gates[:, 12:].sum(1) == 15).all()
    assert len(gates.unique(dim=0)) == 10
    _, other, far = prepared(*TOY, "seed=5")
    assert not torch.equal(other.gates(far), gates)
    _, other, far = prepared(*TOY, "scenario=domain")
    assert other.gates(far).shape == (5, 32)


def test_in_the_first_task_nothing_generated_reaches_the_network(mid_run) -> None:
    strategy, env, s, batches = mid_run(*TOY, "strategy.replay_batch_size=20", tasks=0)
    both = strategy.replay(s, batches[0], env)
    assert torch.equal(both.x, batches[0].x[torch.arange(36) % 16])
    assert both.noise["weight"].tolist() == [1 / 16] * 16 + [0.0] * 20


# What is learnt.


def by_hand(strategy, env, s, batch, scenario: str, seen: bool) -> Tensor:
    """The loss of the docstring in the third task, sample by sample."""
    both, old, now = strategy.replay(s, batch, env), s.memory["scholar"], s.theta.detach()
    _, task = scholar.drawn(batch.noise["class"], scholar.before(s.t, env), env)
    weights, total, T = env.flat.views(now), torch.zeros(()), strategy.temperature
    means, log_variances = weights["generator.prior"].chunk(2, 1)
    priors = [Normal(m, (v / 2).exp()) for m, v in zip(means, log_variances, strict=True)]

    def classifier(theta: Tensor, x: Tensor) -> Tensor:
        return functional_call(env.flat.module, env.flat.views(theta), (x[None], 0))[0].detach()

    for b, x in enumerate(both.x):
        new = b < 16
        own = batch.task[b] if new else task[b - 16]
        scored = env.own_classes[own] if scenario == "task" else torch.ones(env.num_classes) > 0
        scored = env.own_classes[:3].any(0) if seen else scored
        logits = classifier(now, x).masked_fill(~scored, float("-inf"))
        if new:
            a = F.one_hot(batch.y[b], env.num_classes).float()
            error = -logits.log_softmax(0)[batch.y[b]]
        else:
            trained = env.own_classes[:2].any(0) if seen else scored
            a = (classifier(old, x).masked_fill(~trained, float("-inf")) / T).softmax(0)
            error = -(a[scored] * (logits[scored] / T).log_softmax(0)).sum()
        h = F.relu(F.linear(x.flatten(), *(weights[f"classifier.layers.0.{k}"] for k in WB)))
        mean = F.linear(h, *(weights[f"generator.mean.{k}"] for k in WB))
        q = Normal(mean, (F.linear(h, weights["generator.log_variance.weight"]) / 2).exp())
        z = mean + q.stddev * normal(batch.noise["latent"][b])
        mixture = sum(a[k] * p.log_prob(z).sum().exp() for k, p in enumerate(priors))
        table = s.memory["gates"]
        gates = table[own] if scenario == "domain" else sum(a[k] * table[k] for k in range(len(a)))
        pixels = x / env.stream.scale / 255
        found = decoded(env, now, z, gates)
        error = error + F.binary_cross_entropy(found, pixels, reduction="sum") / 64
        error = error + (q.log_prob(z).sum() - mixture.log()) / 64
        total = total + error / 16 * (1 / 3 if new else 2 / 3)
    return total


WB = ("weight", "bias")


@pytest.mark.parametrize(
    ("scenario", "active"),
    [("class", "all"), ("class", "seen"), ("task", "all"), ("domain", "all")],
)
def test_the_loss_is_the_papers_sample_by_sample(mid_run, scenario, active) -> None:
    settings = (f"scenario={scenario}", f"training.active_classes={active}")
    strategy, env, s, batch = third_task(mid_run, *settings)
    loss, aux = strategy.loss(s.theta, s, strategy.replay(s, batch, env), env)
    torch.testing.assert_close(loss, by_hand(strategy, env, s, batch, scenario, active == "seen"))
    assert aux["logits"].shape == (16, env.num_classes)


def test_the_features_learn_to_be_decoded_too(mid_run) -> None:
    """Replay through feedback: the classifier's trunk has a gradient of what is generated."""
    strategy, env, s, batch = third_task(mid_run)
    both = strategy.replay(s, batch, env)

    def generated(theta: Tensor) -> Tensor:
        features = env.net(theta, both.x, both.task, last=-1)
        return strategy.generator_error(theta, features, both, env).sum()

    grad = env.flat.views(torch.func.grad(generated)(s.theta.detach().clone()))
    learnt = {name for name, g in grad.items() if g.any()}
    assert learnt == {n for n in env.flat.names if not n.startswith("classifier.layers.1")}


def test_with_adam_of_the_same_rate_there_is_one_adam_as_in_the_authors_code(mid_run) -> None:
    rate = ("optimizer=adam", "optimizer.lr=0.01", "strategy.generator_lr=0.01")
    strategy, env, s, batches = mid_run(*TOY, *rate, tasks=0)
    s = strategy.begin_task(s, env.stream[0], env)
    theta = s.theta.detach().clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.01)
    with torch.no_grad():
        for batch in batches[:3]:
            both = strategy.replay(s, batch, env)
            with torch.enable_grad():
                adam.zero_grad()
                strategy.loss(theta, s, both, env)[0].backward()
                adam.step()
            s = env.commit(strategy.step(s, batch, env)[0])
    torch.testing.assert_close(s.theta, theta, rtol=1e-4, atol=1e-5)


# Pictures, and what cannot be.


def test_pictures_show_the_classes_so_far_in_order(mid_run) -> None:
    strategy, env, s, _ = mid_run(*TOY, tasks=1)
    y, _ = scholar.so_far(64, s, env)  # t: the second task
    assert y.tolist() == [k for k in range(4) for _ in range(16)]
    samples = strategy.pictures(s, env)["samples"]
    assert samples.shape == (64, 1, 8, 8)
    assert 0 <= float(samples.min()) < float(samples.max()) <= 1
    assert torch.equal(strategy.pictures(s, env)["samples"], samples)


def test_gates_that_leave_no_unit_are_refused(prepared) -> None:
    with pytest.raises(UserError, match=r"strategy.gated=0.6 leaves no unit of a layer of 1"):
        prepared(*TOY, "strategy.hidden_sizes=[1]", "strategy.gated=0.6")
