"""A quadratic penalty on the weights: declared by its formula, descended in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from cl_runner.config.schema import SGD
from cl_runner.core import TrainState
from cl_runner.functional.losses import pulled, quadratic, quadratic_proximal
from cl_runner.training.env import Env

PENALTIES = ("loss", "proximal")  # how a penalty is descended: see `descend`


class Quadratic(NamedTuple):
    """weight * sum_p importance_p (theta_p - anchor_p)^2, which pulls theta [P] to the anchor."""

    weight: float | Tensor  # a tensor, 0-d, if it differs among runs that are trained as one
    importance: Tensor  # [P], or 0-d: the same for all
    anchor: Tensor  # [P]

    @property
    def strength(self) -> float | Tensor:
        """Twice the weight: `functional.losses.quadratic` has a factor of 1/2."""
        return 2 * self.weight

    def __call__(self, theta: Tensor) -> Tensor:
        """The penalty at theta [P], 0-d, to be differentiated."""
        return self.strength * quadratic(theta, self.anchor, self.importance)

    def pull(self, grad: Tensor, theta: Tensor) -> Tensor:
        """Turn grad [P] into grad + the penalty's own gradient at theta [P], in place.

        It costs a third of what autograd takes for the same.
        """
        return pulled(grad, theta, self.anchor, self.importance, self.strength)

    def proximal_step(self, s: TrainState, env: Env) -> TrainState:
        """The state after argmin_z sum_p (z_p - theta_p)^2 / (2 a_p) + penalty(z).

        a_p is how far the optimizer, whose own step this follows, moves theta_p per unit of
        gradient: lr for plain SGD, lr / (1 - momentum), Adam's lr / sqrt(v_p). So the steps come to
        rest where loss + penalty does, and the weight may be as large as it likes.
        """
        step = env.step_size(s) * self.strength
        theta = quadratic_proximal(s.theta, self.anchor, self.importance, step)
        return s._replace(theta=theta)

    def steepest(self) -> Tensor:
        """Its largest second derivative, 0-d."""
        return self.strength * self.importance.max()


class Penalty(Protocol):
    """What `descend` needs of a penalty: see `Quadratic`, and `parts.kronecker.Structured`."""

    def pull(self, grad: Tensor, theta: Tensor) -> Tensor: ...
    def proximal_step(self, s: TrainState, env: Env) -> TrainState: ...
    def steepest(self) -> Tensor: ...


def unstable(s: TrainState, penalty: Penalty, how: str, env: Env) -> Iterator[str]:
    """That steps along the penalty's gradient have become too long for SGD, where they have.

    On a quadratic of curvature L steps of lr with momentum m diverge once lr L > 2 (1 + m).
    """
    if how != "loss" or not isinstance(env.optimizer, SGD):
        return
    longest = float(s.opt["lr"] * penalty.steepest())
    if longest > 2 * (1 + env.optimizer.momentum):
        yield (
            "the penalty has become too steep for optimizer.lr, and its steps diverge: use "
            "strategy.penalty=proximal, or a smaller strategy.lambda or optimizer.lr"
        )


def descend(s: TrainState, grad: Tensor, penalty: Penalty, how: str, env: Env) -> TrainState:
    """The state after a step down loss + penalty. grad [P]: the loss's alone; it is overwritten.

    how: `loss`, the optimizer's step along the gradient of the sum; `proximal`, its step along that
    of the loss, then the penalty's proximal step.
    """
    if how == "loss":
        grad = penalty.pull(grad, s.theta)
    s = env.update(s, grad, spent=True)
    return penalty.proximal_step(s, env) if how == "proximal" else s
