"""Steps in the null space of the old tasks' layer inputs: Adam-NSCL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import UserError, check
from cl_runner.functional.projection import outside_null_space
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.gradients import input_grams, shared_layers
from cl_runner.strategies.parts.kronecker import matrices, vector
from cl_runner.training.env import Env

GRAM, KEPT = "gram.", "kept."


@dataclass(frozen=True, kw_only=True)
class AdamNSCL(Strategy):
    """Steps in the null space of the old tasks' inputs of each layer (Wang et al. 2021).

    arXiv 2103.07113, algorithm 1. C [d, d] = sum x x^T is the uncentred covariance of a layer's
    inputs x, of all samples of all tasks so far by the weights that each task ended with. What the
    optimizer makes of the gradient, the step dW [outputs, d] itself, loses its part outside the
    null space of C: dW <- dW U U^T, U the singular vectors whose values are next to nothing. So W x
    stays as it is for the x that C has seen. Which values are next to nothing:
    - `share`: the smallest ones, as many as together have at most this share of all (the paper's R,
      eq. 7, by which it tells that its choice was right: below 0.05).
    - `multiple`: those up to `multiple` times the smallest one (the paper's a). Of inputs among
      which some never differ from 0, as the corners of digits, or of fewer samples than d, the
      smallest is 0, and only directions that no input has are left.
    It is the step that is projected, so it holds for any optimizer, with momentum and weight decay;
    optimizer=adam optimizer.reset=true is the paper's. `gpm` collects the complement, task by task.
    - The authors' code divides U U^T by its Frobenius norm, so that steps are shorter by the root
      of the number of directions; the paper does not, nor do we. It also adds up batches' mean
      inputs, the paper and we samples'.
    - A bias is the weight of an input that is always 1, and is projected as such; the authors'
      networks have none but in the output layer.
    - The output layer is projected in domain-incremental learning, where the tasks share it; in
      task-incremental learning, the paper's, each task has outputs of its own, which learn freely.
    - Not here: BatchNorm, whose parameters the authors hold by an EWC penalty of 100; rates of
      their own for output layer and later tasks.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task", "domain")
    detectable: ClassVar[tuple[str, ...]] = ("domain",)
    float64: ClassVar[bool] = True

    share: float | None = 0.05
    multiple: float | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.multiple is None):
            raise UserError("exactly one of strategy.share and strategy.multiple must be set")
        check(
            self.share is None or 0 <= self.share < 1,
            f"strategy.share must lie in [0, 1), got {self.share}",
        )
        check(
            self.multiple is None or self.multiple >= 1,
            f"strategy.multiple must be at least 1, got {self.multiple}",
        )

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        memory: dict[str, Tensor] = {}
        for name, layer in shared_layers(env, self.name).items():
            size = layer.weight[0].numel() + (layer.bias is not None)
            zero = theta.detach().new_zeros(size, size)
            memory |= {GRAM + name: zero.double(), KEPT + name: zero}
        return memory

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        new = env.update(s, grad)
        moved = matrices(new.theta - s.theta.detach(), by_layer(s.memory, KEPT), env.flat)
        outside = {name: D @ s.memory[KEPT + name] for name, D in moved.items()}
        return new._replace(theta=new.theta - vector(outside, env.flat)), {**aux, "loss": loss}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        layers = shared_layers(env, self.name)
        new = input_grams(s, task, env, layers, samples=None, ones=True)
        memory = dict(s.memory)
        for name, gram in by_layer(s.memory, GRAM).items():
            memory[GRAM + name] = gram + new[name]
            kept = outside_null_space(memory[GRAM + name], self.share, self.multiple)
            memory[KEPT + name] = kept.to(s.theta.dtype)
        return s._replace(memory=memory)


def by_layer(memory: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The memory's tensors of one kind, by the names of the layers."""
    return {k.removeprefix(kind): v for k, v in memory.items() if k.startswith(kind)}
