"""Orthogonal weights modification: OWM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.projection import shrink_projector
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.gradients import input_grams, matrix_layers
from cl_runner.strategies.parts.kronecker import matrices, vector
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class OWM(Strategy):
    """Steps that do not change what each layer makes of the old tasks' inputs (Zeng et al. 2019).

    arXiv 1810.01256. The gradient of a layer's weights W [O, I], its bias as one more
    column on inputs with a 1 appended, is multiplied by P = alpha (alpha I + C)^-1 [I, I], with C
    the sum over old tasks of the mean of x x^T over a task's inputs x of the layer: directions in
    which these are large beside alpha are all but closed, the others stay open. A convolution's
    inputs are its patches. P is followed from task to task by recursive least squares; no sample is
    kept, and the outputs of all tasks may be one layer, so that it learns classes one after another
    (class-incremental learning), where other regularisers do not.
    - The paper follows the mean input of each batch after a task, and its alpha falls within a
      task; the authors' code (beijixiong3510/OWM) follows it in each training step, the current
      task's too. Here every sample counts, once, after the task, by the weights that it ended
      with, and alpha is one number: how many samples a task has changes nothing.
    - Biases, which the authors leave as they are or do without, are trained, as weights of the 1.
    What is projected is the gradient, as in the paper, which uses plain SGD: steps with Adam, with
    weight decay or with momentum carried over from an earlier task are not. The optimizer's lr can
    be larger than naive's; the authors' is 3.
    """

    detectable: ClassVar[tuple[str, ...]] = ("domain", "class")
    float64: ClassVar[bool] = True

    alpha: float = 0.3
    samples: int | None = None

    def __post_init__(self) -> None:
        check(self.alpha > 0, f"strategy.alpha must be positive, got {self.alpha}")
        check(
            self.samples is None or self.samples >= 1,
            f"strategy.samples must be at least 1, got {self.samples}",
        )

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        sizes = {
            name: layer.weight[0].numel() + (layer.bias is not None)
            for name, layer in matrix_layers(env, self.name).items()
        }
        like = theta.detach()
        return {name: torch.diag(like.new_ones(size)) for name, size in sizes.items()}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        parts = matrices(grad, s.memory, env.flat)
        grad = vector({name: g @ s.memory[name] for name, g in parts.items()}, env.flat)
        return env.update(s, grad, spent=True), {**aux, "loss": loss}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        layers, number = matrix_layers(env, self.name), len(task.samples()[0])
        grams = input_grams(s, task, env, layers, samples=self.samples, ones=True)
        count = number if self.samples is None else min(self.samples, number)
        memory = {
            name: shrink_projector(s.memory[name], gram / count, self.alpha)
            for name, gram in grams.items()
        }
        return s._replace(memory=memory)
