"""PackNet: tasks packed into one network by pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.frozen import only
from cl_runner.training.env import Env
from cl_runner.training.fit import fit, plan

FREE = -1  # the owner of a weight that no task uses; the weight is 0


@dataclass(frozen=True, kw_only=True)
class PackNet(Strategy):
    """Each task trains the weights that are free and gives the smallest of them back.

    Mallya & Lazebnik 2018, arXiv 1711.05769. A task takes all free weights and trains them on top
    of those of earlier tasks, which stay fixed. Then, in each layer, the share `prune` of its
    weights that is smallest in magnitude is set to 0 and freed, and the others are retrained for
    `retrain_epochs` (null: half as many steps as the task was trained, rounded up). Task k is
    predicted with the weights of the tasks up to k, so that nothing is ever forgotten.
    - Biases of the hidden layers are trained in the first task only (the authors' default).
    - The last task keeps all its weights: nothing is pruned or retrained (the authors' scripts).
    - Each task's own outputs belong to it, biases included, and are not pruned.
    - Each phase begins with a fresh optimizer, at the run's learning rate (the authors retrain at a
      tenth of it). Their first network comes from ImageNet; here it is the first task's.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task",)

    prune: float = 0.75
    retrain_epochs: int | None = None

    def __post_init__(self) -> None:
        check(0 <= self.prune < 1, f"strategy.prune must lie in [0, 1), got {self.prune}")
        check(
            self.retrain_epochs is None or self.retrain_epochs >= 0,
            f"strategy.retrain_epochs must be at least 0, got {self.retrain_epochs}",
        )

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            not env.flat.buffers,
            f"strategy={self.name} needs a model without BatchNorm, whose statistics are shared; "
            "use model=mlp or model=cnn",
        )
        owner = torch.zeros_like(theta, dtype=torch.int16, requires_grad=False)
        for t, own in enumerate(env.own_classes):
            owner = owner.masked_fill(env.flat.output_mask(own), t)
        return {"owner": owner}  # [P] the task that trains it and all later ones use

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        owner = s.memory["owner"]
        owner = owner.masked_fill(owner == FREE, task.index)
        return env.restart(s, s.theta)._replace(memory={"owner": owner})

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = super().step(s, batch, env)
        return only(new, s, s.memory["owner"] == s.t), aux

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        t = task.index
        if t == env.num_tasks - 1:
            return s
        owner = freed(s.theta.detach(), s.memory["owner"], t, self.prune, env)
        theta = s.theta.detach().masked_fill(owner == FREE, 0.0)
        s = env.commit(env.restart(s, theta)._replace(memory={"owner": owner}))
        _, per_epoch, trained = plan(len(task.train), env.training)
        half, epochs = -(-trained // 2), self.retrain_epochs
        steps = half if epochs is None else epochs * per_epoch // env.training.passes
        return fit(s, env, self, (task.train, t), steps=steps, phase="retrain")

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        owner = s.memory["owner"]
        theta = s.theta.detach().masked_fill((owner == FREE) | (owner > task), 0.0)
        return super().predict(s._replace(theta=theta), x, task, env)


def freed(theta: Tensor, owner: Tensor, t: int, share: float, env: Env) -> Tensor:
    """The owners [P] after task t has given back a share of its weights, in each hidden layer."""
    owner = owner.clone()
    every = torch.ones(env.num_classes, dtype=torch.bool, device=env.device)
    output = env.flat.views(env.flat.output_mask(every))
    weights, owners = env.flat.views(theta), env.flat.views(owner)
    for name, weight in weights.items():
        if weight.ndim > 1 and not bool(output[name].any()):
            own = (owners[name] == t).flatten().nonzero()[:, 0]
            smallest = weight.flatten()[own].abs().argsort(stable=True)
            owners[name].view(-1)[own[smallest[: round(share * len(own))]]] = FREE
    return owner
