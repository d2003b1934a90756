"""SupSup: the step on the scores, what a mask takes, and that nothing is forgotten."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    *("strategy=supsup", "benchmark=split_digits", "scenario=task", "model.hidden_sizes=[16,12]"),
    *("benchmark.num_tasks=3", "benchmark.train_samples=120", "training.epochs=2"),
    *("training.batch_size=32", "strategy.density=0.3"),
)


def by_hand(theta, weights, batch, shapes, density):
    """The loss' gradient in the scores, layer by layer in plain Python."""
    layers, at = [], 0
    for shape in shapes:
        n = shape.numel()
        layers.append((theta[at : at + n].view(shape), weights[at : at + n].view(shape)))
        at += n
    used = []
    for s, w in layers:
        order = s.abs().flatten().argsort(descending=True)
        mask = torch.zeros(s.numel())
        mask[order[: -int(-density * s.numel() // 1)]] = 1
        used.append((w * mask.view(s.shape)).requires_grad_())
    x = batch.x.flatten(1)
    for i in range(0, len(used), 2):
        x = F.linear(x, used[i], used[i + 1])
        x = F.relu(x) if i + 2 < len(used) else x
    logits = torch.where(batch.active, x, -torch.inf)
    gradients = torch.autograd.grad(F.cross_entropy(logits, batch.y), used)
    parts = [(g * w * s.sign()).flatten() for g, (s, w) in zip(gradients, layers, strict=True)]
    return torch.cat(parts)


def test_a_step_moves_the_scores_as_if_the_mask_were_they(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=1)
    s = strategy.begin_task(s, env.stream[1], env)
    expected = by_hand(s.theta, s.memory["weights"], batch, env.flat.shapes, 0.3)
    assert float(expected.norm()) > 1e-4
    new, _ = strategy.step(s, batch, env)
    torch.testing.assert_close(new.theta, s.theta - 0.1 * expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["optimizer=sgd", "optimizer=adam"])
def test_old_answers_never_change_by_a_bit(prepared, optimizer):
    _, strategy, env = prepared(*TOY, optimizer)
    s = initial_state(strategy, env)
    x, weights = torch.rand(9, 1, 8, 8), s.memory["weights"].clone()
    answers = []
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        answers.append(strategy.predict(s, x, task.index, env))
        for t, old in enumerate(answers):
            assert torch.equal(strategy.predict(s, x, t, env), old)
    assert torch.equal(s.memory["weights"], weights)
    masks = s.memory["masks"]
    assert masks.dtype == torch.bool and not torch.equal(masks[0], masks[1])
    for layer in (env.flat.views(mask) for mask in masks):
        for name, own in layer.items():
            share = -(-3 * own.numel() // 10) if "weight" in name else own.numel()
            assert int(own.sum()) == share, name


def test_within_a_task_its_scores_answer(mid_run):
    strategy, env, s, _ = mid_run(*TOY, tasks=1)
    s = strategy.begin_task(s, env.stream[1], env)
    x = torch.rand(4, 1, 8, 8)
    kept = s.memory["weights"] * strategy.mask(s.theta.detach(), env)
    own = env.net(kept, x, torch.ones(4, dtype=torch.int64))
    assert torch.equal(strategy.predict(s, x, 1, env), own)
    assert not torch.equal(strategy.predict(s, x, 0, env), own)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.density=0",), r"strategy.density must lie in \(0, 1\), got 0"),
        (("scenario=class",), "strategy=supsup does not support scenario=class"),
        (("model=reduced_resnet18", "model.width=2"), "needs a model without BatchNorm"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    toy = [t for t in TOY if "hidden_sizes" not in t] if len(overrides) > 1 else TOY
    with pytest.raises(UserError, match=message):
        prepared(*toy, *overrides)
