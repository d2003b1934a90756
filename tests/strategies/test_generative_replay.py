"""Generative replay: who generates, who answers over which classes, and what is trained on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from cl_runner.core import Batch
from cl_runner.errors import UserError
from cl_runner.functional.diffusion import signal
from cl_runner.functional.generative import normal
from cl_runner.running.evaluation import evaluate
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.parts.pixels import to_inputs, to_pixels
from cl_runner.strategies.parts.scholar import adam_step, span
from cl_runner.training.batches import Source

TOY = (
    "strategy=generative_replay",
    "benchmark=split_digits",
    "benchmark.train_samples=200",
    "strategy.hidden_sizes=[20]",
    "strategy.latent_size=6",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)
SCENARIOS = ("task", "domain", "class")
BOTH = pytest.mark.parametrize("generator", ["vae", "gan"])


def third_task(mid_run, *overrides: str):
    """At the beginning of the third of five tasks, with its first batch."""
    strategy, env, s, batches = mid_run(*TOY, *overrides, tasks=2)
    s = strategy.begin_task(s, env.stream[2], env)
    return strategy, env, s, batches[0]


def part(env, theta: Tensor, name: str) -> Tensor:
    return theta.detach()[span(env, name)].clone()


def steps(strategy, env, s, batches: list[Batch]):
    with torch.no_grad():
        for batch in batches:
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    return s


# The old scholar.


@BOTH
def test_the_scholar_is_the_last_tasks_network_and_stays_it_for_a_task(mid_run, generator) -> None:
    strategy, env, s, batches = mid_run(*TOY, f"strategy.generator={generator}", tasks=2)
    before = s.theta.detach().clone()
    s = strategy.begin_task(s, env.stream[2], env)
    s = steps(strategy, env, s, batches)
    assert torch.equal(s.memory["scholar"], before)
    for name in ("classifier", "generator.decoder"):
        assert not torch.equal(part(env, s.theta, name), part(env, before, name))


@BOTH
def test_what_is_replayed_comes_from_the_scholar_alone(mid_run, generator) -> None:
    strategy, env, s, batch = third_task(mid_run, f"strategy.generator={generator}")
    both = strategy.replay(s, batch, env)
    module = env.flat.module
    z = normal(batch.noise["replay"][:16])
    pixels = module.generator(z, "decode").sigmoid().detach()  # the live theta is still the old one
    torch.testing.assert_close(both.x[16:], env.stream.normalise(pixels * 255))
    assert torch.equal(both.x[:16], batch.x)
    moved = s._replace(theta=s.theta.detach() + 1)
    again = strategy.replay(moved, batch, env)
    assert torch.equal(again.x, both.x)
    assert torch.equal(again.noise["answers"], both.noise["answers"])


@pytest.mark.slow
@BOTH
def test_nothing_but_the_scholar_is_kept_of_the_past(prepared, generator) -> None:
    """Old data, wiped out once their tasks are over, are not missed."""

    def train(wiped: bool):
        _, strategy, env = prepared(*TOY, f"strategy.generator={generator}")
        s = initial_state(strategy, env)
        for task in env.stream[:3]:
            s = train_task(strategy, s, task, env)
            if wiped:
                env.stream.x[task.train] = 0
        return s, env

    s, env = train(wiped=True)
    assert torch.equal(s.theta, train(wiped=False)[0].theta)
    assert {v.dim() for v in s.memory.values()} == {0, 1}  # vectors of parameters, no samples
    assert all(v.dtype == torch.float32 for v in s.memory.values())
    assert max(len(v) for v in s.memory.values() if v.dim()) == len(env.flat.theta)


@pytest.mark.parametrize("labels", ["hard", "distillation"])
def test_in_class_incremental_learning_it_answers_with_classes_seen_before(mid_run, labels) -> None:
    """Even where the old classifier finds the new ones likelier."""
    strategy, env, s, batch = third_task(mid_run, f"strategy.labels={labels}")
    old = env.flat.views(s.memory["scholar"])  # views: the bias is changed in place
    old["classifier.layers.1.bias"][4:] += 1000
    both = strategy.replay(s, batch, env)
    (answered,) = both.noise["answers"]
    logits = env.net(s.memory["scholar"], both.x[16:], 0)[:, :4]
    expected = (
        F.one_hot(logits.argmax(1), 4).float()
        if labels == "hard"
        else (logits / strategy.temperature).softmax(1)
    )
    torch.testing.assert_close(answered[:, :4], expected)
    assert (answered[:, 4:] == 0).all()


def test_in_domain_incremental_learning_it_answers_with_all_classes(mid_run) -> None:
    strategy, env, s, batch = third_task(mid_run, "scenario=domain")
    both = strategy.replay(s, batch, env)
    logits = env.net(s.memory["scholar"], both.x[16:], 0)
    (answered,) = both.noise["answers"]
    assert torch.equal(answered.argmax(1), logits.argmax(1))
    assert answered.shape[1] == env.num_classes == 2


NOISY = [
    ("model.hidden_sizes=[24]", "model.dropout=0.5"),
    ("model=reduced_resnet18", "model.width=2", "benchmark.train_samples=60"),
]


@pytest.mark.parametrize("model", NOISY, ids=["dropout", "batchnorm"])
def test_the_scholar_answers_in_evaluation_mode(prepared, model) -> None:
    """As it did at the end of its task; nothing that it does moves the statistics of the new."""
    toy = (o for o in TOY if not o.startswith("model."))
    _, strategy, env = prepared(*toy, *model, "strategy.labels=distillation")
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    s = strategy.begin_task(s._replace(t=torch.ones_like(s.t)), env.stream[1], env)
    source = Source(env, s, 1, env.stream[1].train, 1, strategy)
    (batch,) = source.epoch(0, 1)
    env.flat.module.eval()
    x = strategy.replay(s, batch, env).x[len(batch.y) :]
    expected = env.net(s.theta, x, batch.task).detach()
    env.flat.module.train()
    for value in env.flat.buffers.values():
        value.add_(1)  # the new network's statistics have moved on
    before = {k: v.clone() for k, v in env.flat.buffers.items()}
    with torch.no_grad():
        (answered,) = strategy.replay(s, batch, env).noise["answers"]
    expected = (expected[:, :2] / strategy.temperature).softmax(1)
    torch.testing.assert_close(answered[:, :2], expected)
    assert all(torch.equal(v, before[k]) for k, v in env.flat.buffers.items())


# The losses.


def heads_of(env, scenario: str, active: str) -> list[tuple[Tensor, Tensor]]:
    """(classes answered over, classes scored on) of the replayed samples in the third task."""
    classes = torch.arange(env.num_classes)
    if scenario == "domain":
        return [(classes, classes)]
    if scenario == "task" or active == "current":
        return [(classes[2 * k : 2 * k + 2], classes[2 * k : 2 * k + 2]) for k in range(2)]
    return [(classes[:4], classes[:6] if active == "seen" else classes)]


def by_hand(strategy, env, s, batch: Batch, scenario: str, active: str) -> Tensor:
    """The classifier's loss in the third task, head by head and sample by sample."""
    module, scholar = env.flat.module, env.flat.views(s.memory["scholar"])
    x = strategy.replay(s, batch, env).x[16:]
    old = functional_call(module, scholar, (x, 0)).detach()
    own = env.own_classes[2] if scenario == "task" or active == "current" else None
    if active == "seen":
        own = env.own_classes[:3].any(0)
    logits = module(batch.x, 0)
    logits = logits if own is None else logits.masked_fill(~own, float("-inf"))
    new = F.cross_entropy(logits, batch.y)
    losses = []
    for answered, scored in heads_of(env, scenario, active):
        log_q = (module(x, 0)[:, scored] / (strategy.softness or 1)).log_softmax(1)
        for b in range(16):
            if strategy.labels == "hard":
                y = answered[old[b, answered].argmax()]
                loss = -log_q[b, scored.tolist().index(int(y))]
            else:
                p = (old[b, answered] / strategy.temperature).softmax(0)
                loss = -(p * log_q[b, : len(p)]).sum()
            losses.append(loss)
    return new / 3 + 2 / 3 * torch.stack(losses).mean()


@pytest.mark.parametrize("labels", ["hard", "distillation"])
@pytest.mark.parametrize(
    ("scenario", "active"),
    [("task", "all"), ("domain", "all"), ("class", "all"), ("class", "seen"), ("class", "current")],
)
def test_the_classifier_weighs_new_and_old_by_their_tasks(
    mid_run, scenario, active, labels
) -> None:
    strategy, env, s, batch = third_task(
        mid_run,
        "strategy.generator=gan",  # whose loss is the classifier's alone
        "strategy.critic_steps=1",
        f"scenario={scenario}",
        f"training.active_classes={active}",
        f"strategy.labels={labels}",
    )
    loss, aux = strategy.loss(s.theta, s, strategy.replay(s, batch, env), env)
    torch.testing.assert_close(loss, by_hand(strategy, env, s, batch, scenario, active))
    assert aux["logits"].shape[0] == 16


@pytest.mark.parametrize("tasks", [1, 3])
def test_old_tasks_have_equal_parts_of_the_replay(mid_run, tasks) -> None:
    strategy, env, s, _ = mid_run(*TOY, "scenario=task", tasks=tasks)
    classes, parts = strategy.heads(s, torch.zeros(7).long(), env)
    assert torch.equal(classes[:, 0], env.own_classes)
    assert parts.tolist() == pytest.approx([1 / tasks] * tasks + [0.0] * (5 - tasks))


def test_the_autoencoder_weighs_new_and_old_by_their_tasks(mid_run) -> None:
    strategy, env, s, batch = third_task(mid_run, "strategy.replay_batch_size=5")
    both = strategy.replay(s, batch, env)
    assert len(both.x) == 16 + 5
    net, x = env.flat.module.generator, (both.x / env.stream.scale / 255).clamp(0, 1)
    mean, log_variance = net(x, "encode").chunk(2, 1)
    q = Normal(mean, (log_variance / 2).exp())
    z = mean + q.stddev * normal(batch.noise["latent"][:21])
    p = net(z, "decode").sigmoid()
    error = F.binary_cross_entropy(p, x, reduction="none").sum((1, 2, 3))
    error = error + kl_divergence(q, Normal(torch.zeros(6), torch.ones(6))).sum(1)
    expected = (error[:16].mean() / 3 + 2 / 3 * error[16:].mean()) / 64
    torch.testing.assert_close(strategy.model.loss(s.theta, both, env), expected)


def test_the_critic_weighs_new_and_old_by_their_tasks(mid_run) -> None:
    strategy, env, s, batch = third_task(mid_run, "strategy.generator=gan")
    both = strategy.replay(s, batch, env)
    net, x = env.flat.module.generator, both.x / env.stream.scale / 255
    fake = net(normal(batch.noise["fake"][3, :32]), "decode").sigmoid().detach()
    u = batch.noise["between"][3, :32, None, None, None]
    between = (u * x + (1 - u) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(net(between, "criticise").sum(), between, create_graph=True)
    penalty = 10 * (slope.square().sum((1, 2, 3)).sqrt() - 1).square()
    error = net(fake, "criticise")[:, 0] - net(x, "criticise")[:, 0] + penalty
    expected = error[:16].mean() / 3 + 2 / 3 * error[16:].mean()
    loss, _ = strategy.model.critic_loss(3, s.theta, s, both, env)
    torch.testing.assert_close(loss, expected)
    loss, _ = strategy.model.decoder_loss(s.theta, s, both, env)
    last = net(normal(batch.noise["fake"][5, :32]), "decode").sigmoid()
    torch.testing.assert_close(loss, -net(last, "criticise").mean())


# The denoiser.

DIFFUSION = ("strategy.generator=diffusion", "strategy.sampling_steps=3")
NO_LATENT = tuple(o for o in TOY if "latent" not in o)


def diffusing(mid_run, *overrides: str):
    """At the beginning of the third of five tasks, with its first batch and that with replay."""
    strategy, env, s, batches = mid_run(*NO_LATENT, *DIFFUSION, *overrides, tasks=2)
    s = strategy.begin_task(s, env.stream[2], env)
    return strategy, env, s, batches[0], strategy.replay(s, batches[0], env)


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_a_denoiser_replays_classes_that_it_has_seen_in_few_steps(mid_run, scenario) -> None:
    _, env, _, batch, both = diffusing(mid_run, f"scenario={scenario}")
    domain = scenario == "domain"
    pairs = [(c + 2 * t * (not domain), t) for t in range(2) for c in range(2)]
    picked = [pairs[int(u * 4)] for u in batch.noise["class"].tolist()]
    bins = torch.tensor([c + t * env.num_classes * domain for c, t in picked])
    assert torch.equal(both.noise["bins"][16:], bins)
    new = batch.y + 2 * env.num_classes * domain
    assert torch.equal(both.noise["bins"][:16], new)
    net, z = env.flat.module.generator, normal(batch.noise["replay"]).view(16, 1, 8, 8)
    for now, after in ((1.0, 0.67), (0.67, 0.33), (0.33, 0.0)):
        a, b = signal(torch.tensor(now)), signal(torch.tensor(after))
        x = 2 * net(z, "denoise", time=torch.full((16,), now), y=bins).sigmoid().detach() - 1
        z = b.sqrt() * x + (1 - b).sqrt() * (z - a.sqrt() * x) / (1 - a).sqrt()
    torch.testing.assert_close(both.x[16:], env.stream.normalise((x + 1) / 2 * 255))


def test_the_denoiser_weighs_new_and_old_by_their_tasks(mid_run) -> None:
    strategy, env, s, batch, both = diffusing(mid_run)
    net, x = env.flat.module.generator, (both.x / env.stream.scale / 255).clamp(0, 1)
    total = torch.zeros(())
    for b in range(32):
        time = (int(batch.noise["time"][b] * 100) + 1) / 100
        a = signal(torch.tensor(time))
        noise = normal(batch.noise["noise"][b]).view(1, 1, 8, 8)
        noisy = a.sqrt() * (2 * x[b] - 1) + (1 - a).sqrt() * noise
        own = both.noise["bins"][b : b + 1]
        found = net(noisy, "denoise", time=torch.tensor([time]), y=own).sigmoid()
        total += F.binary_cross_entropy(found[0], x[b]) / 16 * (1 / 3 if b < 16 else 2 / 3)
    torch.testing.assert_close(strategy.model.loss(s.theta, both, env), total)


@pytest.mark.parametrize("active", ["scenario=task", "training.active_classes=current"])
def test_what_a_class_was_asked_for_has_the_task_of_the_class(mid_run, active) -> None:
    strategy, env, s, _, both = diffusing(mid_run, active)
    task = both.noise["bins"][16:] // 2
    assert torch.equal(both.task[16:], task) and len(task.unique()) == 2
    logits = env.net(s.memory["scholar"], both.x[16:], 0)
    for b in range(16):
        own = slice(2 * int(task[b]), 2 * int(task[b]) + 2)
        expected = (logits[b, own] / strategy.temperature).softmax(0)
        torch.testing.assert_close(both.noise["answers"][0, b, own], expected)


def test_what_diffusion_will_cost_is_said_before(prepared) -> None:
    """In closed form: layers with 64 + 10 inputs more, ten steps of sampling, one of training."""
    case = ("model.hidden_sizes=[24]", "training.batch_size=16", "training.iterations=30")
    toy = ("strategy=generative_replay", "benchmark=split_digits", "strategy.hidden_sizes=[20]")
    _, strategy, env = prepared(*toy, *case, "strategy.generator=diffusion")
    classifier, B = 2 * (64 * 24 + 24 * 10), 16
    first, last = 2 * (64 + 74) * 20, 2 * (20 + 74) * 64
    naive = B * (2 * classifier + 2 * 24 * 10)
    step = 2 * naive + B * classifier + 10 * B * (first + last) + 2 * B * (2 * first + 3 * last)
    (line,) = strategy.notes(env)
    assert line.startswith(f"strategy=generative_replay takes 150 steps of {step:.2g} FLOPs each, ")
    assert f"{150 * step:.2g} in all, {step / naive:.1f} times naive's" in line
    _, strategy, env = prepared(*toy, *case, "strategy.hidden_sizes=[1]")
    assert not list(strategy.notes(env))  # of other generators only what is dear is told


# The steps.


@BOTH
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_in_the_first_task_the_classifier_is_naives(prepared, generator, optimizer) -> None:
    common = (f"optimizer={optimizer}", "optimizer.weight_decay=0.01")
    _, strategy, env = prepared(*TOY, f"strategy.generator={generator}", *common)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    toy = [o for o in TOY if not o.startswith("strategy")]
    _, naive, naive_env = prepared(*toy, *common, "strategy=naive")
    expected = train_task(
        naive, initial_state(naive, naive_env), naive_env.stream[0], naive_env
    ).theta
    torch.testing.assert_close(
        part(env, s.theta, "classifier"), expected.detach(), rtol=1e-5, atol=1e-6
    )


def test_in_the_first_task_nothing_generated_reaches_the_network(mid_run) -> None:
    """BatchNorm would see it, whatever its weight."""
    strategy, env, s, batches = mid_run(*TOY, "strategy.replay_batch_size=20", tasks=0)
    both = strategy.replay(s, batches[0], env)
    assert torch.equal(both.x, batches[0].x[torch.arange(36) % 16])
    assert both.noise["weight"].tolist() == [1 / 16] * 16 + [0.0] * 20


def test_the_autoencoder_is_trained_by_its_own_adam(mid_run) -> None:
    """That of torch, whatever the run's optimizer is; here one that would ruin it."""
    strategy, env, s, batches = mid_run(
        *TOY,
        "optimizer.lr=0.5",
        "optimizer.weight_decay=0.9",
        "strategy.generator_lr=0.01",
        tasks=0,
    )
    s = strategy.begin_task(s, env.stream[0], env)
    theta = s.theta.detach().clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.01)
    for batch in batches[:3]:
        adam.zero_grad()
        strategy.model.loss(theta, strategy.replay(s, batch, env), env).backward()
        adam.step()
    s = steps(strategy, env, s, batches[:3])
    torch.testing.assert_close(
        part(env, s.theta, "generator"), part(env, theta, "generator"), rtol=1e-4, atol=1e-6
    )


def test_the_critic_takes_its_steps_first_and_the_decoder_one_against_it(mid_run) -> None:
    strategy, env, s, batch = third_task(
        mid_run, "strategy.generator=gan", "strategy.critic_steps=2"
    )
    taken = {k: float(s.memory[f"generator.{k}.steps"]) for k in ("critic", "decoder")}
    assert taken["critic"] == 2 * taken["decoder"] > 0
    both = strategy.replay(s, batch, env)
    new = steps(strategy, env, s._replace(theta=s.theta.detach().clone()), [batch])
    decoder, critic = (span(env, f"generator.{k}") for k in ("decoder", "critic"))
    # The decoder's step, repeated from the new critic and the old decoder.
    start = s.memory["scholar"].clone()
    start[critic] = new.theta.detach()[critic]
    grad = torch.func.grad(
        lambda v: strategy.model.decoder_loss(v, s._replace(theta=start), both, env)[0]
    )
    adam = strategy.model.adam
    again = adam_step(s._replace(theta=start), adam, "generator.decoder", grad(start), env)
    torch.testing.assert_close(again.theta[decoder], new.theta.detach()[decoder])


@pytest.mark.parametrize(("reset", "kept"), [("true", False), ("false", True)])
def test_the_generators_optimizer_is_reset_with_the_runs(mid_run, reset, kept) -> None:
    _, _, s, _ = third_task(mid_run, f"optimizer.reset={reset}")
    assert bool(s.memory["generator.steps"] > 0) == kept
    assert bool(s.memory["generator.m"].any()) == kept


@pytest.mark.slow
def test_by_its_defaults_a_blurred_past_does_no_harm(prepared) -> None:
    """60 steps a task do not train the generator: hard labels on its blobs took 0.26 of ACC."""
    acc = {}
    for name in ("naive", "generative_replay"):
        _, strategy, env = prepared("benchmark=split_digits", "scenario=task", f"strategy={name}")
        s = initial_state(strategy, env)
        for task in env.stream:
            s = train_task(strategy, s, task, env)
        acc[name] = sum(evaluate(strategy, s, env)["test", "task"]) / 5
    assert acc["generative_replay"] > acc["naive"] - 0.02


# Pixels, pictures, and what cannot be.


def test_pictures_of_a_denoiser_show_the_classes_so_far(mid_run) -> None:
    strategy, env, s, _, _ = diffusing(mid_run)
    samples = strategy.pictures(s, env)["samples"]
    assert samples.shape == (64, 1, 8, 8)
    assert 0 <= float(samples.min()) < float(samples.max()) <= 1
    assert torch.equal(strategy.pictures(s, env)["samples"], samples)


@BOTH
def test_pictures_are_the_same_latents_through_the_current_generator(mid_run, generator) -> None:
    strategy, env, s, batches = mid_run(*TOY, f"strategy.generator={generator}", tasks=1)
    samples = strategy.pictures(s, env)["samples"]
    assert samples.shape == (64, 1, 8, 8)
    assert 0 <= float(samples.min()) < float(samples.max()) <= 1
    assert torch.equal(strategy.pictures(s, env)["samples"], samples)
    assert len(samples.flatten(1).unique(dim=0)) == 64
    s = strategy.begin_task(s, env.stream[1], env)
    s = steps(strategy, env, s, batches)
    assert not torch.equal(strategy.pictures(s, env)["samples"], samples)


def test_pixels_are_the_data_behind_normalised_inputs(prepared) -> None:
    _, _, env = prepared(*TOY, "benchmark.mean=[0.3]", "benchmark.std=[0.2]")
    images = env.stream.x[:50]
    x = env.stream.normalise(images)
    assert float(x.min()) < -1
    torch.testing.assert_close(to_pixels(x, env.stream), images / 255)
    torch.testing.assert_close(to_inputs(images / 255, env.stream), x)


def own_data(folder: Path, low: float, high: float) -> Path:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(low, high, (40, 12)).astype(np.float32), np.arange(40) % 4
    np.savez(folder / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder / "own.npz"


def test_features_without_a_range_are_refused_and_those_in_0_1_are_pixels(
    prepared, tmp_path
) -> None:
    own = (*TOY[:1], *TOY[3:], "benchmark=split_npz", "benchmark.num_tasks=2")
    _, _, env = prepared(*own, f"data.path={own_data(tmp_path, 0, 1)}")
    torch.testing.assert_close(to_pixels(env.stream.x, env.stream), env.stream.x)
    with pytest.raises(UserError, match="generative_replay needs images: uint8, or floats in"):
        prepared(*own, f"data.path={own_data(tmp_path, -1, 1)}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generator=flow", "strategy.generator must be one of vae, gan, diffusion"),
        ("labels=soft", "strategy.labels must be one of hard, distillation"),
        ("temperature=0", "strategy.temperature must be positive, got 0"),
        ("latent_size=0", "strategy.latent_size must be positive, got 0"),
        ("replay_batch_size=0", "strategy.replay_batch_size must be positive, got 0"),
        ("critic_steps=0", "strategy.critic_steps must be positive, got 0"),
        ("hidden_sizes=[0]", "strategy.hidden_sizes must be positive"),
        ("gradient_penalty=-1", "strategy.gradient_penalty must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(prepared, override, message) -> None:
    with pytest.raises(UserError, match=message):
        prepared(*TOY, f"strategy.{override}")
