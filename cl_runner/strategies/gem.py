"""Gradient episodic memory: GEM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, TrainState
from cl_runner.errors import check
from cl_runner.functional import buffers
from cl_runner.functional.projection import project_cone
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.replay import load, store
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class GEM(Strategy):
    """No step may raise the loss on any previous task's memory (Lopez-Paz & Ranzato 2017).

    arXiv 1706.08840, section 3. The memory M_k holds the last buffer_size / num_tasks samples of
    each task k. g_k is the gradient on the whole of M_k; where g . g_k is negative for some k < t,
    the step is along the nearest vector for which no such product is, found by a quadratic program
    in t - 1 variables v. margin is the paper's gamma ("memory strength"), which favours backward
    transfer: the program is solved with v_k >= gamma, as in the authors' code, which keeps the
    constraints; the text adds gamma to the v_k of the solution, which need not. The solution is
    exact; the authors add eps = 0.001 to the diagonal of the program's matrix, by which a
    constraint may be missed, and by the more the shorter the gradients are.

    The number of g_k grows with the tasks and the program is solved on the host, so that a step is
    not one graph; it costs a pass over the memories of all previous tasks. What is projected is the
    gradient: the step of an optimizer that is not plain SGD need not satisfy the constraints.
    """

    one_graph: ClassVar[bool] = False
    float64: ClassVar[bool] = True
    shown_once: ClassVar[str] = "whose memory takes the samples of every step"

    buffer_size: int = 500
    margin: float = 0.5

    def __post_init__(self) -> None:
        check(self.margin >= 0, f"strategy.margin must be at least 0, got {self.margin}")

    def needs_borders(self, scenario: str) -> str:
        return "it has a memory and a constraint for each task"

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            self.buffer_size >= env.num_tasks,
            f"strategy.buffer_size={self.buffer_size} is too small for strategy={self.name}, "
            f"which needs at least one place for each of {env.num_tasks} tasks",
        )
        size = self.buffer_size // env.num_tasks * env.num_tasks
        seen = torch.zeros(env.num_tasks, dtype=torch.int64, device=env.device)
        return store({"index": torch.full((size,), -1, device=env.device)}) | {"seen": seen}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        gradient = env.grad_and_value(self.loss)
        g, (loss, aux) = gradient(s.theta, s, batch, env)
        references = [gradient(s.theta, s, self.recall(s, k, env), env)[0] for k in range(int(s.t))]
        s = env.update(s, project_cone(g, references, self.margin))
        return self.remember(s, batch, env), {**aux, "loss": loss}

    def recall(self, s: TrainState, k: int, env: Env) -> Batch:
        """All that is held of task k."""
        index = s.memory["buffer_index"].view(env.num_tasks, -1)[k]
        return env.gather(index[index >= 0], k, s.t)

    def remember(self, s: TrainState, batch: Batch, env: Env) -> TrainState:
        """The state with the batch in its tasks' rings."""
        slots, seen = load(s.memory), s.memory["seen"]
        per_task = len(slots["index"]) // env.num_tasks
        target = buffers.ring_targets(seen, per_task, batch.task)
        slots = buffers.add(slots, {"index": batch.index}, target)
        seen = seen.scatter_add(0, batch.task, torch.ones_like(batch.task))
        return s._replace(memory=store(slots) | {"seen": seen})
