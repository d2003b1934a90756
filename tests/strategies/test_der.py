"""Dark experience replay: what is stored, and the loss by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

TOY = (
    "benchmark=split_digits",
    "strategy.buffer_size=40",
    "strategy.replay_batch_size=10",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)


def run(mid_run, *overrides: str, tasks: int = 2):
    """The state after some tasks, and the first batches of the next."""
    strategy, env, s, batches = mid_run(*TOY, *overrides, tasks=tasks)
    return strategy, env, s, batches[:3]


def test_the_logits_are_those_before_the_step_that_saw_the_sample(mid_run):
    strategy, env, s, batches = run(mid_run, "strategy=der", tasks=0)
    answers = {}
    with torch.no_grad():
        for batch in batches:
            logits = env.net(s.theta, batch.x, batch.task)
            answers |= {int(i): z.clone() for i, z in zip(batch.index, logits, strict=True)}
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    held = s.memory["buffer_index"]
    assert int((held >= 0).sum()) == 40
    for row, stored in zip(held.tolist(), s.memory["buffer_logits"], strict=True):
        torch.testing.assert_close(stored, answers[row], rtol=1e-5, atol=1e-6)


def test_der_is_cross_entropy_plus_mean_squared_distance(mid_run):
    strategy, env, s, (batch, *_) = run(mid_run, "strategy=der", "strategy.alpha=0.7")
    loss, _ = strategy.loss(s.theta, s, batch, env)
    replay = strategy.draw(s, batch, env)
    stored = s.memory["buffer_logits"][replay.noise["slot"]]
    expected = F.cross_entropy(env.net(s.theta, batch.x, batch.task), batch.y)
    expected = expected + 0.7 * F.mse_loss(env.net(s.theta, replay.x, replay.task), stored)
    torch.testing.assert_close(loss, expected)
    held = s.memory["buffer_index"][replay.noise["slot"]]
    assert torch.equal(held, replay.index)  # logits and sample are of the same slot


def test_of_a_buffer_with_few_samples_the_distance_is_the_mean_over_those(
    mid_run, holding, replanned
):
    strategy, env, s, (batch, *_) = run(mid_run, "strategy=der", "strategy.alpha=0.7")
    s = holding(s, 3)
    batch = replanned(strategy, s, batch, env)
    loss, _ = strategy.loss(s.theta, s, batch, env)
    held = env.gather(s.memory["buffer_index"][:3], s.memory["buffer_task"][:3], s.t)
    expected = F.cross_entropy(env.net(s.theta, batch.x, batch.task), batch.y)
    distance = F.mse_loss(env.net(s.theta, held.x, held.task), s.memory["buffer_logits"][:3])
    torch.testing.assert_close(loss, expected + 0.7 * distance)


@pytest.mark.parametrize("name", ["der", "derpp"])
def test_an_empty_buffer_changes_nothing(mid_run, name):
    strategy, env, s, (batch, *_) = run(mid_run, f"strategy={name}", tasks=0)
    loss, _ = strategy.loss(s.theta, s, batch, env)
    expected = F.cross_entropy(env.net(s.theta, batch.x, batch.task), batch.y)
    torch.testing.assert_close(loss, expected)


def test_class_balanced_refilling_stores_the_logits_at_the_end_of_the_task(mid_run):
    _, env, s, _ = run(mid_run, "strategy=der", "strategy.policy=class_balanced", tasks=1)
    rows = s.memory["buffer_index"]
    batch = env.gather(rows, 0, s.t)
    expected = env.net(s.theta, batch.x, batch.task).detach()
    torch.testing.assert_close(s.memory["buffer_logits"], expected)
