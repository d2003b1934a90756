"""CLS-ER: two averages of the weights, the better of which each replayed sample follows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state

TOY = (
    "strategy=cls_er",
    "benchmark=split_digits",
    "strategy.buffer_size=60",
    "strategy.replay_batch_size=40",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=3",
)


def differing(s, *, by: float = 0.1):
    """The state with averages that differ from each other and from theta."""
    torch.manual_seed(1)
    plastic, stable = (s.theta.detach() + by * torch.randn(len(s.theta)) for _ in range(2))
    return s._replace(memory=s.memory | {"plastic": plastic, "stable": stable})


def test_the_averages_follow_the_weights_at_their_rates_and_decays(mid_run):
    """By hand, with chosen uniforms: at a rate r a uniform below r updates, no other does."""
    strategy, env, s, batches = mid_run(
        *TOY,
        "strategy.plastic_rate=0.8",
        "strategy.plastic_decay=0.6",
        "strategy.stable_rate=0.5",
        "strategy.stable_decay=0.9",
        tasks=0,
    )
    uniforms = {"plastic": [0.79, 0.81, 0.0, 0.7, 0.99], "stable": [0.6, 0.49, 0.0, 0.51, 0.3]}
    rate, decay = {"plastic": 0.8, "stable": 0.5}, {"plastic": 0.6, "stable": 0.9}
    expected = {name: s.theta.detach().clone() for name in uniforms}
    for n, batch in enumerate(batches[:5], start=1):
        noise = batch.noise | {k: torch.tensor(v[n - 1]) for k, v in uniforms.items()}
        with torch.no_grad():
            s, _ = strategy.step(s, batch._replace(noise=noise), env)
        s = env.commit(s)
        for name, values in uniforms.items():
            if values[n - 1] < rate[name]:
                a = min(1 - 1 / (n + 1), decay[name])
                expected[name] = a * expected[name] + (1 - a) * s.theta.detach()
    for name, average in expected.items():
        torch.testing.assert_close(s.memory[name], average)
    assert int(s.memory["steps"]) == 5


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_each_sample_follows_the_average_that_knows_its_label_better(mid_run, scenario):
    strategy, env, s, (batch, *_) = mid_run(*TOY, f"scenario={scenario}", tasks=2)
    s = differing(s)
    replay = strategy.draw(s, batch, env)
    z = strategy.better_logits(s, replay, 0, env)
    picked = set()
    for i, (x, y, task) in enumerate(zip(replay.x, replay.y, replay.task, strict=True)):
        both = [env.net(s.memory[k], x[None], task[None])[0] for k in ("plastic", "stable")]
        own = [2 * int(task), 2 * int(task) + 1] if scenario == "task" else range(10)
        known = [float(v[y].exp() / sum(v[c].exp() for c in own)) for v in both]
        better = int(known[1] > known[0])
        picked.add(better)
        torch.testing.assert_close(z[i], both[better])
    assert picked == {0, 1}


def test_the_loss_is_er_s_and_the_mean_squared_distance_of_the_replayed(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, "strategy.lambda=0.7", tasks=2)
    s = differing(s)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, _ = strategy.loss(s.theta, s, both, env)
    logits = env.net(s.theta, both.x, both.task)
    z = strategy.better_logits(s, both, 16, env)
    expected = F.cross_entropy(logits, both.y) + 0.7 * F.mse_loss(logits[16:], z)
    torch.testing.assert_close(loss, expected)


def test_places_without_a_sample_have_no_say(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=0)
    s = differing(s)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, _ = strategy.loss(s.theta, s, both, env)
    logits = env.net(s.theta, batch.x, batch.task)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.y))


def test_of_a_buffer_with_few_samples_the_distance_is_the_mean_over_those(
    mid_run, holding, replanned
):
    strategy, env, s, (batch, *_) = mid_run(*TOY, "strategy.lambda=0.7", tasks=2)
    s = differing(holding(s, 3))
    batch = replanned(strategy, s, batch, env)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    assert int((both.weight > 0).sum()) == 16 + 3
    loss, _ = strategy.loss(s.theta, s, both, env)
    rows = both.weight > 0
    logits = env.net(s.theta, both.x, both.task)
    z = strategy.better_logits(s, both, 16, env)[rows[16:]]
    expected = F.cross_entropy(logits[rows], both.y[rows])
    expected = expected + 0.7 * F.mse_loss(logits[16:][rows[16:]], z)
    torch.testing.assert_close(loss, expected)


def test_the_stable_model_predicts(prepared):
    _, strategy, env = prepared(*TOY)
    s = differing(initial_state(strategy, env))
    x = env.stream.normalise(env.stream.images(env.stream[0].train[:8], 0))
    task = torch.zeros(8, dtype=torch.int64)
    torch.testing.assert_close(strategy.predict(s, x, 0, env), env.net(s.memory["stable"], x, task))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.plastic_rate=0", r"strategy.plastic_rate must lie in \(0, 1\], got 0"),
        ("strategy.stable_decay=1", r"strategy.stable_decay must lie in \[0, 1\), got 1"),
        ("strategy.lambda=-1", "strategy.lambda must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(prepared, override, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, override)
