"""Orthogonal gradient descent: OGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.functional.projection import new_directions, project_out
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.gradients import logit_gradients
from cl_runner.training.env import Env

MEMORY_LIMIT = 4 * 2**30  # bytes


@dataclass(frozen=True, kw_only=True)
class OGD(Strategy):
    """Steps orthogonal to the gradients of old samples' logits (Farajtabar et al. 2020).

    arXiv 1910.07104, algorithm 1. At the end of a task the gradients in theta of the logits of
    random samples of it are made an orthonormal basis, together with those of all earlier tasks;
    later gradients lose their components along it, so that these logits stay as they are to first
    order.
    - logits `ground_truth`: one direction per sample, of its true class's logit (OGD-GTL, the
      paper's choice); `all`: one per class active in training (OGD-ALL), so of fewer samples.
    With plain SGD the step is the projected gradient. Momentum is a sum of projected gradients,
    orthogonal too with optimizer.reset=true. Adam scales each parameter apart and weight decay
    pulls at theta: their steps are not orthogonal to the basis.
    The basis takes directions * P numbers for each task but the last, after which nothing is
    trained, and a step reads those of the tasks before it twice: none in the first. How many these
    are is asked by the host, so that a step is not one graph. The paper keeps 200 directions, of a
    network with 100 units in each layer, a third of ours.
    """

    one_graph: ClassVar[bool] = False
    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")

    directions: int = 100
    logits: str = "ground_truth"

    def __post_init__(self) -> None:
        check(
            self.directions >= 1, f"strategy.directions must be at least 1, got {self.directions}"
        )
        one_of("strategy.logits", self.logits, ("ground_truth", "all"))

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            self.logits == "ground_truth" or self.directions >= env.num_classes,
            f"strategy.directions={self.directions} is too small for strategy.logits=all, which "
            f"needs at least one for each of {env.num_classes} classes",
        )
        tasks, P = env.num_tasks - 1, theta.numel()
        size = tasks * self.directions * P * theta.element_size()
        check(
            size <= MEMORY_LIMIT,
            f"strategy.directions={self.directions} for each of {tasks} tasks and {P} parameters "
            f"takes {size / 2**30:.1f} GiB; strategy={self.name} may take "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB: fewer directions, or a smaller model",
        )
        return {block(t): theta.detach().new_zeros(self.directions, P) for t in range(tasks)}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        for basis in self.of_earlier_tasks(s):
            grad = project_out(grad, basis)
        return env.update(s, grad), {**aux, "loss": loss}

    def of_earlier_tasks(self, s: TrainState) -> list[Tensor]:
        """Their parts of the basis, [directions, P] each, orthogonal to each other."""
        return [s.memory[block(t)] for t in range(int(s.t))]

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if task.index == env.num_tasks - 1:
            return s
        gradients = logit_gradients(
            s, task, env, number=self.directions, every=self.logits == "all"
        )
        basis = torch.zeros_like(s.memory[block(task.index)])
        basis[: len(gradients)] = new_directions(gradients, self.of_earlier_tasks(s))
        return s._replace(memory=s.memory | {block(task.index): basis})


def block(t: int) -> str:
    """The name in memory of the directions of task t."""
    return f"basis_{t}"
