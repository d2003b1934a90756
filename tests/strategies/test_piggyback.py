"""Piggyback: the step on the masks' numbers, the backbone, and that nothing is forgotten."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    *("strategy=piggyback", "benchmark=split_digits", "scenario=task"),
    *("model.hidden_sizes=[16,12]", "benchmark.num_tasks=3", "benchmark.train_samples=120"),
    *("training.epochs=2", "training.batch_size=32"),
)
FAST = ("optimizer=adam", "optimizer.lr=0.003", "optimizer.weight_decay=0.01")


def test_a_step_moves_the_numbers_as_if_the_mask_were_they(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=1)
    s = strategy.begin_task(s, env.stream[1], env)
    hidden = env.flat.views(s.theta.detach())
    numbers = {k: torch.linspace(0, 0.01, v.numel()).view_as(v) for k, v in hidden.items()}
    kept = {k: numbers[k] if k in ("layers.0.weight", "layers.1.weight") else hidden[k]
            for k in hidden}  # fmt: skip
    s = s._replace(theta=torch.cat([v.flatten() for v in kept.values()]))
    backbone = env.flat.views(s.memory["backbone"])
    used = {k: v.clone().requires_grad_() for k, v in backbone.items()}
    masked = ("layers.0.weight", "layers.1.weight")
    used |= {k: (backbone[k] * (kept[k] > 5e-3)).requires_grad_() for k in masked}
    own = ("layers.2.weight", "layers.2.bias")
    used |= {k: kept[k].clone().requires_grad_() for k in own}
    x = batch.x.flatten(1)
    for i in range(3):
        x = F.linear(x, used[f"layers.{i}.weight"], used[f"layers.{i}.bias"])
        x = F.relu(x) if i < 2 else x
    loss = F.cross_entropy(torch.where(batch.active, x, -torch.inf), batch.y)
    loss.backward()
    new, _ = strategy.step(s, batch, env)
    moved = env.flat.views(new.theta)
    for k in masked:
        expected = kept[k] - 0.1 * backbone[k] * used[k].grad
        torch.testing.assert_close(moved[k], expected, rtol=1e-4, atol=1e-8)
        assert float((moved[k] - kept[k]).norm()) > 1e-5
    for k in own:
        torch.testing.assert_close(moved[k], kept[k] - 0.1 * used[k].grad, rtol=1e-4, atol=1e-7)
    for k in ("layers.0.bias", "layers.1.bias"):
        assert torch.equal(moved[k], kept[k])


@pytest.mark.parametrize("backbone", ["first_task", "initial"])
def test_old_answers_never_change_by_a_bit(prepared, backbone):
    _, strategy, env = prepared(*TOY, *FAST, f"strategy.backbone={backbone}")
    s = initial_state(strategy, env)
    initial = s.theta.detach().clone()
    x, answers, heads = torch.rand(9, 1, 8, 8), [], env.own_classes
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        own = [strategy.predict(s, x, t, env)[:, classes] for t, classes in enumerate(heads)]
        answers.append(own[task.index])
        for t, old in enumerate(answers):
            assert torch.equal(own[t], old)
        if task.index == 0:
            begun = s.memory["backbone"].clone()
    assert torch.equal(s.memory["backbone"], begun)
    assert torch.equal(begun, initial) == (backbone == "initial")
    masks, masked = s.memory["masks"], s.memory["masked"]
    shares = [float(mask[masked].float().mean()) for mask in masks]
    assert (shares[0] == 1) == (backbone == "first_task")
    assert all(0.1 < share < 1 for share in shares[1:]), shares
    assert masks[:, ~masked].all()


def test_the_first_task_is_naive(prepared):
    def after(name: str) -> torch.Tensor:
        own = (f"strategy={name}", *TOY[1:])
        _, strategy, env = prepared(*own)
        s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
        return s.theta.detach()

    torch.testing.assert_close(after("piggyback"), after("naive"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.backbone=imagenet",), "strategy.backbone must be one of first_task, initial"),
        (("strategy.mask_scale=0.001",), "mask_scale must be more than strategy.threshold"),
        (("scenario=domain",), "strategy=piggyback does not support scenario=domain"),
        (("model=reduced_resnet18", "model.width=2"), "needs a model without BatchNorm"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    toy = [t for t in TOY if "hidden_sizes" not in t] if len(overrides) > 1 else TOY
    with pytest.raises(UserError, match=message):
        prepared(*toy, *overrides)
