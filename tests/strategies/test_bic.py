"""Bias correction: the correction by torch's optimizer, the loss by hand, who is kept apart."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.functional.calibration import correction
from cl_runner.strategies.bic import corrected

TOY = (
    "strategy=bic",
    "benchmark=split_digits",
    "benchmark.train_samples=300",
    "strategy.buffer_size=60",
    "strategy.validation=0.3",
    "strategy.replay_batch_size=10",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)


def classes(*chosen: int) -> torch.Tensor:
    return torch.isin(torch.arange(6), torch.tensor(chosen))


def biased(n: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of n samples of four classes, the last two too loud; classes 4 and 5 are unseen."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 4
    logits = spread * (torch.randn(n, 6, generator=generator) + spread * F.one_hot(y, 6))
    logits[:, 2:4] = 2 * logits[:, 2:4] + 3
    return logits, y


@pytest.mark.parametrize("spread", [2.0, 20.0])  # 20: told apart without a mistake
def test_the_correction_is_the_minimum_that_torch_finds(spread):
    logits, y = biased(60, spread)
    found = correction(logits, y, classes(2, 3), classes(0, 1, 2, 3))
    numbers = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        q = corrected(logits.double(), numbers, classes(2, 3))[:, :4]
        pull = ((numbers[0] - 1) ** 2 + numbers[1] ** 2) / 2
        loss = F.cross_entropy(q, y, reduction="sum") + pull
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(found, numbers.detach().float(), rtol=1e-3, atol=1e-4)


def test_the_correction_undoes_a_bias():
    logits, y = biased(4000, 2.0)
    alpha, beta = correction(logits, y, classes(2, 3), classes(0, 1, 2, 3)).tolist()
    assert alpha == pytest.approx(0.5, abs=0.05) and beta == pytest.approx(-1.5, abs=0.15)


def test_the_loss_by_hand(mid_run):
    """Cross-entropy over 6 classes, 4 / 6 of the distillation of answers that were corrected."""
    strategy, env, s, (batch, *_) = mid_run(*TOY, "strategy.lambda=0.7", tasks=2)
    found = s.memory["correction"]
    s = strategy.begin_task(s, env.stream[2], env)
    assert torch.equal(s.memory["old_correction"], found) and found.tolist() != [1, 0]
    assert s.memory["correction"].tolist() == [1, 0]
    old, theta = s.memory["old"].clone(), s.theta.detach() * 1.2
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, _ = strategy.loss(theta, s, both, env)
    logits, z = (env.net(w, both.x, both.task) for w in (theta, old))
    z[:, 2:4] = found[0] * z[:, 2:4] + found[1]  # the second task's
    expected = F.cross_entropy(logits[:, :6], both.y)
    p, log_q = (z[:, :4] / 2).softmax(1), (logits[:, :4] / 2).log_softmax(1)
    expected = expected - 0.7 * 4 / 6 * (p * log_q).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_validation_samples_are_as_many_of_each_class_and_trained_on_by_no_step(mid_run):
    strategy, env, s, batches = mid_run(*TOY, tasks=2)
    flag, index = s.memory["buffer_validation"], s.memory["buffer_index"]
    held = env.stream.y[index]
    assert Counter(held.tolist()) == dict.fromkeys(range(4), 15)
    assert Counter(held[flag].tolist()) == dict.fromkeys(range(4), 4)  # 0.3 of 15
    trained = set()
    for t in range(3):
        rows, _ = strategy.training_set(s, env.stream, t, env)
        trained |= set(rows.tolist())
    assert not trained & set(index[flag].tolist())
    assert set(index[~flag].tolist()) <= trained
    new = strategy.held_out(env.stream[2], env)
    labels = env.stream.y[env.stream[2].train[new]]
    assert Counter(labels.tolist()) == {4: 4, 5: 4}
    replayed = {int(i) for batch in batches for i in strategy.draw(s, batch, env).index}
    assert replayed and not replayed & set(index[flag].tolist())


def test_what_is_predicted_is_corrected_for_the_latest_task(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=2)
    s = s._replace(t=torch.ones_like(s.t))  # as when the second task has ended
    logits = strategy.predict(s, batch.x, 1, env)
    plain = env.net(s.theta, batch.x, batch.task)
    alpha, beta = s.memory["correction"]
    assert torch.equal(logits[:, :2], plain[:, :2])
    torch.testing.assert_close(logits[:, 2:4], alpha * plain[:, 2:4] + beta)
    assert bool((logits[:, :4].amin(1) > logits[:, 4:].amax(1)).all())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.buffer_size=19", "19 places are too few for strategy=bic, which needs two"),
        ("training.active_classes=current", "training.active_classes must be all or seen"),
    ],
)
def test_what_cannot_be_is_refused(prepared, override, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, override)
