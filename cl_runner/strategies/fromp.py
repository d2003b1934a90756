"""Functional regularisation of the memorable past: FROMP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.function_space import (
    half_square,
    inverse_kernel,
    probabilities,
    uncertainty,
)
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.costs import costs
from cl_runner.strategies.parts.gradients import CHUNK
from cl_runner.strategies.parts.importance import fisher_diagonal
from cl_runner.strategies.parts.replay import by_task, empty_rows, load, store
from cl_runner.training.env import Env
from cl_runner.training.optim import shortened

PRIOR = 1e-5  # delta, added to the Fisher information; and to the diagonal of a kernel
MEMORY_LIMIT = 4 * 2**30  # bytes


@dataclass(frozen=True, kw_only=True)
class FROMP(Strategy):
    """Holds the network's answers to few memorable samples in place (Pan et al. 2020, 2004.14070).

    Loss + lambda / 2 sum_{i < t, c} (p - p')^T K^-1 (p - p'), with p [n] the probabilities of class
    c that the network gives to the n memorable samples of task i, p' those that it gave them when
    task t began, and K [n, n] the kernel of a Gaussian process:
    K = J diag(1 / (F + delta)) J^T + delta I, J [n, P] the gradients of p in theta, and F the
    diagonal of the Fisher information (of the softmax's generalised Gauss-Newton matrix), summed,
    not averaged, over all samples of all tasks so far. J, K and p' are those of where task t
    begins, for the samples of all tasks before it; samples are correlated within a task and a
    class, and nowhere else. This is what the authors' code (team-approx-bayes/fromp) computes, with
    delta = 1e-5.
    - Memorable are the samples with the largest sum_c p (1 - p) at the end of their task, as many
      of each class; each task but the last has buffer_size / num_tasks places.
    - Memorable samples pass the network in evaluation mode, as in the authors' code.
    - lambda is the authors' tau: they divide the loss by it in the place of weighing the penalty,
      which for Adam is the same. Adam, forgotten when a task begins (optimizer.reset=true), is
      theirs, and the optimizer's here.
    - The gradient, penalty and all, is brought down to the length clip_norm where it is longer: the
      authors' 0.01, of a loss divided by tau, is 0.01 tau. For F is a sum, the penalty is steep: a
      step of plain SGD on it diverges where lr * lambda * max F > 2, as for `ewc`, and a proximal
      step has no closed form. It is a key of the strategy since a run without options needs it.
    - In task-incremental learning p is over the task's own classes; in class-incremental learning,
      which is not in the paper, over those active in training.
    A step passes all places forward, those of tasks to come with weight 0, so that it is one graph:
    it costs as much in the first task as in the last. What is shown as the loss is with the
    penalty.
    """

    uncounted: ClassVar[tuple[str, ...]] = ("inverse_kernels", "probabilities")  # made anew
    tells_cost: ClassVar[bool] = True
    float64: ClassVar[bool] = True

    buffer_size: int = 500
    lambda_: float = 0.1
    clip_norm: float | None = 3.0

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(
            self.clip_norm is None or self.clip_norm > 0,
            f"strategy.clip_norm must be positive or null, got {self.clip_norm}",
        )

    def notes(self, env: Env) -> Iterator[str]:
        yield from costs(self, env, "fewer places, strategy.buffer_size,")

    def needs_borders(self, scenario: str) -> str:
        return "it chooses samples of each task and makes their kernels when the next one begins"

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        per_task = self.buffer_size // env.num_tasks
        classes = int(env.own_classes.sum(1).max())
        check(
            per_task >= classes,
            f"strategy.buffer_size={self.buffer_size} is too small for strategy={self.name}, which "
            f"needs at least one place for each of {classes} classes of {env.num_tasks} tasks",
        )
        n, tasks = per_task // classes * classes, max(1, env.num_tasks - 1)
        shape = (tasks, classes if env.stream.scenario == "task" else env.num_classes, n)
        size = 4 * max(2 * n * theta.numel(), n * shape[0] * shape[1] * shape[2])
        check(
            size <= MEMORY_LIMIT,
            f"strategy.buffer_size={self.buffer_size} and {theta.numel()} parameters take "
            f"{size / 2**30:.1f} GiB for a kernel; strategy={self.name} may take "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB: fewer places, or a smaller model",
        )
        zero = theta.detach().new_zeros
        return store(empty_rows(tasks * n, env)) | {
            "fisher": torch.zeros_like(theta, requires_grad=False),
            "probabilities": zero(shape),  # p'
            "inverse_kernels": zero(*shape, n),  # K^-1; 0 where no sample is
        }

    def functions(self, s: TrainState, env: Env) -> Tensor:
        """The outputs [T, C] whose probabilities are held for a task's samples, its own first.

        Others where a task has fewer classes than C: of these p and p' are 0.
        """
        C = s.memory["probabilities"].shape[1]
        return env.own_classes.int().sort(dim=1, descending=True, stable=True).indices[:, :C]

    def memorable(self, theta: Tensor, s: TrainState, env: Env) -> Tensor:
        """Of all places the probabilities [tasks, C, n], by theta."""
        slots, (tasks, C, n) = load(s.memory), s.memory["probabilities"].shape
        batch = env.gather(slots["index"].clamp_min(0), slots["task"], s.t)
        p = probabilities(env.still(theta, batch.x, batch.task), batch.active)
        shown = self.functions(s, env)[:tasks, None].expand(tasks, n, C)
        return p.view(tasks, n, -1).gather(2, shown).mT

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(theta, s, batch, env)
        change = self.memorable(theta, s, env) - s.memory["probabilities"]
        return loss + self.lambda_ * half_square(change, s.memory["inverse_kernels"]), aux

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        if self.clip_norm is not None:
            grad = shortened(grad, self.clip_norm)
        return env.update(s, grad, spent=True), {**aux, "loss": loss}

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if task.index == 0:
            return s
        theta = s.theta.detach()
        inverse_kernels = torch.zeros_like(s.memory["inverse_kernels"])
        for t in range(task.index):
            held = load(s.memory)["index"].view(len(inverse_kernels), -1)[t] >= 0
            for k, J in enumerate(self.jacobians(theta, s, t, env)):
                kernel = inverse_kernel(J, 1 / (s.memory["fisher"] + PRIOR), PRIOR)
                inverse_kernels[t, k] = kernel * held[:, None] * held
        with torch.no_grad():
            p = self.memorable(theta, s, env)
        return s._replace(
            memory=s.memory | {"probabilities": p, "inverse_kernels": inverse_kernels}
        )

    def jacobians(self, theta: Tensor, s: TrainState, t: int, env: Env) -> Iterator[Tensor]:
        """The gradients [n, P] in theta of the probabilities of task t's samples, by class."""
        slots, tasks = load(s.memory), len(s.memory["probabilities"])
        index, task = (slots[name].view(tasks, -1)[t] for name in ("index", "task"))
        batch = env.gather(index.clamp_min(0), task, s.t)
        active = batch.active
        if active is None:
            active = torch.ones(len(index), env.num_classes, dtype=torch.bool, device=env.device)

        def one(theta: Tensor, x: Tensor, task: Tensor, active: Tensor, c: Tensor) -> Tensor:
            p = probabilities(env.still(theta, x[None], task[None]), active[None])
            return p[0].gather(0, c[None])[0]

        gradients = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0, None))
        chunk = max(1, CHUNK // len(theta))
        parts = [v.split(chunk) for v in (batch.x, batch.task, active)]
        for c in self.functions(s, env)[t]:
            rows = [gradients(theta, x, of, a, c) for x, of, a in zip(*parts, strict=True)]
            yield torch.cat(rows)

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if task.index == env.num_tasks - 1:
            return s
        number = len(task.samples()[0])
        fisher = fisher_diagonal(s, task, env, labels="exact", samples=None) * number
        memory = s.memory | {"fisher": s.memory["fisher"] + fisher}
        slots, new = load(s.memory), self.chosen(s, task, env)
        for name, values in slots.items():
            blocks = values.clone().view(len(s.memory["probabilities"]), -1)
            blocks[task.index, : len(new[name])] = new[name]
            memory |= store({name: blocks.flatten()})
        return s._replace(memory=memory)

    def chosen(self, s: TrainState, task: Task, env: Env) -> dict[str, Tensor]:
        """Rows and tasks of a task's samples with the largest uncertainty, of each class."""

        def look(found: list[Tensor], batch: Batch) -> list[Tensor]:
            p = probabilities(env.net(s.theta, batch.x, batch.task), batch.active)
            return [*found, uncertainty(p)]

        none: list[Tensor] = []
        scores = torch.cat(env.fold(look, none, s, task)[0])
        index, tasks = by_task(task)
        y = env.stream.labels(index, tasks)
        classes = env.own_classes[task.index].nonzero().flatten()
        each = s.memory["probabilities"].shape[2] // int(env.own_classes.sum(1).max())
        best = []
        for c in classes:
            (own,) = (y == c).nonzero(as_tuple=True)
            best.append(own[scores[own].topk(min(each, len(own))).indices])
        places = torch.cat(best)
        return {"index": index[places], "task": tasks[places]}
