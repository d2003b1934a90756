"""The quadratic penalty against its formula, autograd and the papers."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cl_runner import strategies
from cl_runner.config.schema import SGD, Adam, Optimizer
from cl_runner.core import TrainState
from cl_runner.errors import Diverged
from cl_runner.functional.losses import quadratic_proximal
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state
from cl_runner.strategies.parts.penalty import PENALTIES, Quadratic, descend
from cl_runner.training import optim

P, LR = 11, 0.1
WEIGHTS = pytest.mark.parametrize("weight", [1.5, torch.tensor(1.5)])


def vectors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Theta, anchor, gradient and importance [P], in double precision."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, P, generator=generator, dtype=torch.float64).abs())


def state(theta: Tensor) -> TrainState:
    return TrainState(theta, {}, {"lr": torch.tensor(LR)}, {}, torch.tensor(0))


def env_of(optimizer: Optimizer) -> SimpleNamespace:
    """What `descend` takes of an environment."""

    def update(s: TrainState, grad: Tensor, *, spent: bool) -> TrainState:
        assert spent  # nobody needs the gradient any more, so that its memory may become theta's
        theta, opt = optim.update(optimizer, s.theta, grad, s.opt)
        return s._replace(theta=theta, opt=opt)

    return SimpleNamespace(
        optimizer=optimizer,
        update=update,
        step_size=lambda s: optim.step_size(optimizer, s.opt),
    )


PLAIN = SGD(name="sgd", lr=LR)


@WEIGHTS
def test_it_is_what_its_docstring_says(weight) -> None:
    theta, anchor, _, importance = vectors()
    terms = zip(theta.tolist(), anchor.tolist(), importance.tolist(), strict=True)
    expected = sum(1.5 * F * (here - there) ** 2 for here, there, F in terms)
    assert float(Quadratic(weight, importance, anchor)(theta)) == pytest.approx(expected)


@WEIGHTS
def test_the_closed_gradient_is_that_of_autograd_and_is_added_in_place(weight) -> None:
    theta, anchor, grad, importance = vectors()
    penalty, leaf = Quadratic(weight, importance, anchor), theta.clone().requires_grad_()
    expected = grad + torch.autograd.grad(penalty(leaf), leaf)[0]
    assert penalty.pull(grad, theta) is grad
    torch.testing.assert_close(grad, expected)


@WEIGHTS
def test_the_proximal_step_has_the_learning_rate_and_minimises_its_objective(weight) -> None:
    theta, anchor, _, importance = vectors()
    penalty = Quadratic(weight, importance, anchor)
    after = penalty.proximal_step(state(theta), env_of(PLAIN))
    assert after._replace(theta=theta) == state(theta)
    size = torch.tensor(LR) * 3
    assert torch.equal(after.theta, quadratic_proximal(theta, anchor, importance, size))
    z = after.theta.clone().requires_grad_()
    objective = 0.5 * (z - theta).square().sum() + float(torch.tensor(LR)) * penalty(z)
    (slope,) = torch.autograd.grad(objective, z)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-7)


@pytest.mark.parametrize("how", PENALTIES)
def test_a_step_down_the_sum_is_explicit_or_implicit_in_the_penalty(how: str) -> None:
    theta, anchor, grad, importance = vectors()
    penalty, env = Quadratic(1.5, importance, anchor), env_of(PLAIN)
    after = descend(state(theta), grad.clone(), penalty, how, env)
    where = theta if how == "loss" else after.theta  # where the penalty's gradient is taken
    expected = theta - LR * grad - LR * 3 * importance * (where - anchor)
    torch.testing.assert_close(after.theta, expected, rtol=1e-6, atol=1e-7)


OPTIMIZERS = [
    PLAIN,
    SGD(name="sgd", lr=0.05, momentum=0.9),
    SGD(name="sgd", lr=0.05, momentum=0.9, nesterov=True),
    Adam(name="adam", lr=0.003),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("weight", [1e-2, 1.0, 1e6])
def test_proximal_steps_come_to_rest_where_loss_and_penalty_do(optimizer, weight) -> None:
    """On the loss 1/2 sum_p H_p (theta_p - a_p)^2, whose minimum with the penalty is known."""
    theta, anchor, a, importance = vectors()
    H = torch.linspace(0.2, 3, P, dtype=torch.float64)
    penalty, env = Quadratic(weight, importance, anchor), env_of(optimizer)
    s = state(theta)._replace(opt=optim.init(optimizer, theta))
    for _ in range(3000):
        s = descend(s, H * (s.theta - a), penalty, "proximal", env)
    pull = 2 * weight * importance
    torch.testing.assert_close(s.theta, (H * a + pull * anchor) / (H + pull), rtol=0, atol=1e-3)


FORMULAS = {  # each method's own, of lambda, importance and distance to the anchor
    "l2": lambda c, F, d: c / 2 * (F * d**2).sum(),
    "ewc": lambda c, F, d: c / 2 * (F * d**2).sum(),
    "er_ewc": lambda c, F, d: c / 2 * (F * d**2).sum(),
    "si": lambda c, F, d: c * (F * d**2).sum(),
    "mas": lambda c, F, d: c * (F * d**2).sum(),
    "rwalk": lambda c, F, d: c * (F * d**2).sum(),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_strategys_penalty_is_its_papers(prepared, name: str) -> None:
    _, strategy, env = prepared(f"strategy={name}", "model.hidden_sizes=[8]", "strategy.lambda=7")
    s = initial_state(strategy, env)
    key = "fisher" if "ewc" in name else "importance"
    F = torch.rand_like(s.memory[key])
    s = s._replace(memory=s.memory | {key: F})
    theta = s.theta.detach() + 0.1
    expected = FORMULAS[name](7, F, theta - s.memory["anchor"])
    torch.testing.assert_close(strategy.quadratic(s)(theta), expected)


def test_every_strategy_with_a_penalty_has_its_formula_here() -> None:
    found = {n for n in strategies.available() if hasattr(strategies.find(n), "quadratic")}
    assert found == {*FORMULAS, "xdg", "soft_sharing"}  # XdG's is SI's


EXPLICIT = ("strategy=ewc", "strategy.penalty=loss")


@pytest.mark.parametrize(("momentum", "limit"), [(0.0, 2.0), (0.9, 3.8)])
def test_steps_that_diverge_are_told_where_they_begin_to(prepared, momentum, limit):
    """On the quadratic itself: heavy-ball steps of lr shrink the error below the limit only."""
    _, strategy, env = prepared(*EXPLICIT, f"optimizer.momentum={momentum}")
    s = initial_state(strategy, env)
    lr = env.optimizer.lr
    for share, told in ((0.98, False), (1.02, True)):
        steepest = share * limit / (lr * strategy.lambda_)
        importance = torch.zeros_like(s.theta)
        importance[3] = steepest
        there = s._replace(memory=s.memory | {"fisher": importance})
        assert bool(list(strategy.remarks(there, env))) == told
        error, velocity = 1.0, 0.0
        for _ in range(2000):
            velocity = momentum * velocity + strategy.lambda_ * steepest * error
            error -= lr * velocity
        assert (abs(error) > 1) == told


@pytest.mark.parametrize("quiet", [("strategy.penalty=proximal",), ("optimizer=adam",)])
def test_what_cannot_diverge_says_nothing(prepared, quiet):
    _, strategy, env = prepared(*EXPLICIT, *quiet)
    s = initial_state(strategy, env)
    steep = s._replace(memory=s.memory | {"fisher": torch.full_like(s.theta, 1e6)})
    assert not list(strategy.remarks(steep, env))


def test_it_is_said_once_in_a_run(configure, tmp_path, capsys):
    steep = (*EXPLICIT, "strategy.lambda=300", "training.epochs=2", "benchmark.num_tasks=4")
    with suppress(Diverged):
        run(configure(*steep, "verbose=true"), tmp_path)
    assert capsys.readouterr().out.count("the penalty has become too steep") == 1
