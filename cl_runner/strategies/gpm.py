"""Gradient projection memory: GPM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.projection import grow_projector
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.gradients import input_grams, shared_layers
from cl_runner.training.env import Env

THRESHOLD = [0.95, 0.99]  # of the first layer, and of all others, if there are any


@dataclass(frozen=True, kw_only=True)
class GPM(Strategy):
    """Steps orthogonal to the old tasks' inputs of each layer (Saha et al. 2021, 2103.09762).

    Algorithm 1. At the end of a task, of each layer's inputs R [d, n] on `samples` samples, the
    fewest leading directions of R - M M^T R are appended to M with which M explains `threshold` of
    |R|^2 (eq. 8 and 9; eq. 5 in the first task). The gradient of the layer's weights W [outputs, d]
    then loses its part in that subspace, grad <- grad - grad M M^T: W x stays as it is for all x in
    it. A convolution's inputs are its patches. M is kept as the projector M M^T [d, d].
    - Biases, which the paper's networks do not have, are trained in the first task only: then what
      a layer answers to an x in the subspace does not change at all.
    - The output layer is projected in domain-incremental learning, where the tasks share it; in
      task-incremental learning each task has outputs of its own, which are trained freely.
    - In the first task the authors' code keeps one direction less than eq. 5 says; we do not.
    What is projected is the gradient, as in the paper, which uses plain SGD: steps with Adam, with
    weight decay or with momentum carried over from an earlier task leave the subspace's complement.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task", "domain")
    detectable: ClassVar[tuple[str, ...]] = ("domain",)
    float64: ClassVar[bool] = True

    threshold: list[float] = field(default_factory=lambda: list(THRESHOLD))
    samples: int = 300

    def __post_init__(self) -> None:
        check(
            len(self.threshold) >= 1 and all(0 < e <= 1 for e in self.threshold),
            f"strategy.threshold must be one or more numbers in (0, 1], got {self.threshold}",
        )
        check(self.samples >= 1, f"strategy.samples must be at least 1, got {self.samples}")

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        numbers, projected = len(self.threshold), len(shared_layers(env, self.name))
        check(
            numbers <= projected or self.threshold == THRESHOLD,
            f"strategy.threshold has {numbers} numbers, and {projected} layers are projected: "
            "leave out those at the end",
        )
        return {
            name: theta.detach().new_zeros(2 * (layer.weight[0].numel(),))
            for name, layer in shared_layers(env, self.name).items()
        }

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        parts = env.flat.views(grad)
        for name, projector in s.memory.items():
            g = parts[f"{name}.weight"]
            parts[f"{name}.weight"] = g - (g.flatten(1) @ projector).view_as(g)
            if (bias := f"{name}.bias") in parts:
                parts[bias] = parts[bias] * (s.t == 0)
        grad = torch.cat([g.flatten() for g in parts.values()])
        return env.update(s, grad), {**aux, "loss": loss}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        layers = shared_layers(env, self.name)
        grams = input_grams(s, task, env, layers, samples=self.samples)
        last = len(self.threshold) - 1
        memory = {
            name: grow_projector(s.memory[name], gram, self.threshold[min(i, last)])
            for i, (name, gram) in enumerate(grams.items())
        }
        return s._replace(memory=memory)
