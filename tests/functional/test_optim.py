"""Optimizers and schedules against torch.optim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_runner.config.schema import SGD, Adam, Optimizer
from cl_runner.training import optim

P, STEPS = 12, 30
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "weight_decay": 0.05}),
    ("sgd", {"lr": 0.05, "momentum": 0.9}),
    ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("sgd", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.05, "clip_value": 0.4}),
    ("sgd", {"lr": 0.1, "clip_value": 0.4}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "clip_norm": 2.0}),
    ("adam", {"lr": 0.01, "clip_value": 1.0, "clip_norm": 2.0}),
    ("adam", {"lr": 0.01, "weight_decay": 0.1, "clip_value": 0.4}),
    ("sgd", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    ("adam", {"lr": 0.01}),
    ("adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("adam", {"lr": 0.02, "betas": [0.5, 0.9], "eps": 1e-3}),
    ("adam", {"lr": 0.01, "betas": [0.0, 0.0], "eps": 0.1}),
    ("adamw", {"lr": 0.01, "weight_decay": 0.0}),
    ("adamw", {"lr": 0.01, "weight_decay": 0.1}),
    ("adamw", {"lr": 0.02, "weight_decay": 0.5, "betas": [0.7, 0.95], "eps": 1e-4}),
]
TORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def configure(name: str, **keys: Any) -> Optimizer:
    return (SGD if name == "sgd" else Adam)(name=name, **keys)


def start() -> Tensor:
    return torch.randn(P, generator=torch.Generator().manual_seed(0))


def gradient(theta: Tensor, step: int) -> Tensor:
    """Of a loss that is neither linear nor the same at each step."""
    phase = torch.arange(P) * 0.7 + step
    return theta.detach() + 2 * torch.sin(3 * theta.detach() + phase)


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_same_parameters_as_torch_optim(name: str, keys: dict[str, Any]) -> None:
    config = configure(name, **keys)
    theta, reference = start(), torch.nn.Parameter(start())
    theirs = TORCH[name]([reference], **{k: v for k, v in keys.items() if "clip" not in k})
    slots = optim.init(config, theta)
    for step in range(STEPS):
        if step == STEPS // 2:  # as a schedule does
            slots = slots | {"lr": slots["lr"] * 0.3}
            theirs.param_groups[0]["lr"] *= 0.3
        reference.grad = gradient(theta, step)  # both get the same, or rounding errors grow
        theta, slots = optim.update(config, theta, gradient(theta, step), slots)
        if config.clip_value is not None:
            assert reference.grad.abs().max() > config.clip_value  # or nothing is clipped
            torch.nn.utils.clip_grad_value_([reference], config.clip_value)
        if config.clip_norm is not None:
            length = torch.nn.utils.clip_grad_norm_([reference], config.clip_norm)
            assert length > config.clip_norm
        theirs.step()
        torch.testing.assert_close(theta, reference.detach(), rtol=0, atol=1e-6)
    assert (theta - start()).abs().min() > 1e-4  # something has moved


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_arguments_are_not_modified_and_not_shared(name: str, keys: dict[str, Any]) -> None:
    # s.theta stays what it was until the step is committed: strategies need the move.
    config = configure(name, **keys)
    theta = start()
    _, slots = optim.update(config, theta, gradient(theta, 0), optim.init(config, theta))
    grad = gradient(theta, 1)
    before = {"theta": theta.clone(), "grad": grad.clone()} | {
        key: slot.clone() for key, slot in slots.items()
    }
    new_theta, new_slots = optim.update(config, theta, grad, slots)
    after = {"theta": theta, "grad": grad, **slots}
    assert all(torch.equal(before[key], after[key]) for key in before)
    new_theta.fill_(7)
    for slot in new_slots.values():
        if slot.dim():  # the learning rate may be the same tensor
            slot.fill_(7)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_slots_are_tensors_of_the_parameters_size_or_scalars(
    name: str, keys: dict[str, Any]
) -> None:
    config = configure(name, **keys)
    slots = optim.init(config, start().requires_grad_())
    assert slots["lr"].item() == pytest.approx(keys["lr"])
    assert all(slot.shape in ((), (P,)) and not slot.requires_grad for slot in slots.values())
    _, after = optim.update(config, start(), start(), slots)
    assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
        k: (v.shape, v.dtype) for k, v in slots.items()
    }


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_slots_are_on_the_parameters_device(name: str, keys: dict[str, Any]) -> None:
    theta = start().to("meta")
    slots = optim.init(configure(name, **keys), theta)
    assert {slot.device for slot in slots.values()} == {theta.device}


@pytest.mark.parametrize(
    ("schedule", "keys"),
    [("constant", {}), ("cosine", {}), ("step", {"milestones": [0.5, 0.75], "decay": 0.2})],
)
def test_schedules_are_those_of_torch(schedule: str, keys: dict[str, Any]) -> None:
    config = configure("sgd", lr=0.4, schedule=schedule, **keys)
    optimizer = torch.optim.SGD([torch.nn.Parameter(start())], lr=0.4)
    rates = torch.optim.lr_scheduler
    scheduler = {
        "constant": lambda: rates.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda: rates.CosineAnnealingLR(optimizer, T_max=40),
        "step": lambda: rates.MultiStepLR(optimizer, milestones=[20, 30], gamma=0.2),
    }[schedule]()
    for step in range(40):
        rate = 0.4 * optim.rate_factor(config, step / 40)
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_warm_restarts_are_those_of_torch() -> None:
    """Three cycles of 4, 8 and 16 steps; the authors of GDumb end a cycle at a least rate, too."""
    config = configure("sgd", lr=0.4, schedule="cosine", cycles=3, min_lr=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(start())], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=4, T_mult=2, eta_min=0.1
    )
    for step in range(28):
        rate = 0.4 * optim.rate_factor(config, step / 28)
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_nothing_is_overwritten_but_a_gradient_that_is_spent(
    name: str, keys: dict[str, Any]
) -> None:
    config, results = configure(name, **keys), []
    for spent in (False, True):
        theta, grad = start(), gradient(start(), 0)
        slots = optim.init(config, theta)
        before = {key: value.clone() for key, value in slots.items()}
        new, after = optim.update(config, theta, grad, slots, spent=spent)
        assert torch.equal(theta, start())
        assert spent or torch.equal(grad, gradient(start(), 0))
        assert all(torch.equal(slots[key], value) for key, value in before.items())
        later = {key: value.clone() for key, value in after.items()}
        optim.update(config, new, gradient(new, 1), after, spent=True)
        assert all(torch.equal(after[key], value) for key, value in later.items())
        results.append(new)
    assert torch.equal(*results)


@pytest.mark.parametrize("clip", [{"clip_value": 0.4}, {"clip_norm": 2.0}])
def test_runs_in_a_stack_are_clipped_alike(clip: dict[str, float]) -> None:
    config = configure("sgd", lr=0.1, momentum=0.9, **clip)
    thetas = torch.stack([start(), 2 * start()])
    grads = torch.stack([gradient(theta, 0) for theta in thetas])

    def step(theta: Tensor, grad: Tensor) -> Tensor:
        return optim.update(config, theta, grad, optim.init(config, theta))[0]

    stacked = torch.func.vmap(step)(thetas, grads)
    alone = torch.stack([step(*own) for own in zip(thetas, grads, strict=True)])
    torch.testing.assert_close(stacked, alone, rtol=0, atol=1e-6)
    clipped = grads.clamp(-0.4, 0.4)
    if "clip_norm" in clip:
        lengths = grads.norm(dim=1, keepdim=True)
        assert lengths.min() > 2.0
        clipped = grads * 2.0 / lengths
    torch.testing.assert_close(stacked, thetas - 0.1 * clipped)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("sgd", {"lr": 0.1}),
        ("sgd", {"lr": 0.05, "momentum": 0.9}),
        ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
        ("adam", {"lr": 0.01, "betas": [0.5, 0.9], "eps": 1e-3}),
        ("adamw", {"lr": 0.02, "weight_decay": 0.0}),
    ],
)
def test_the_step_size_is_what_a_constant_gradient_moves_theta_by(
    name: str, keys: dict[str, Any]
) -> None:
    config, theta = configure(name, **keys), start().double()
    slots, grad = optim.init(config, theta), start().double() + 3
    for _ in range(400):  # momentum's sum has converged
        before = theta
        theta, slots = optim.update(config, theta, grad, slots)
    moved = (before - theta) / grad
    torch.testing.assert_close(optim.step_size(config, slots).expand(P), moved, check_dtype=False)
