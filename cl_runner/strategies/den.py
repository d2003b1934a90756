"""Dynamically expandable networks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState, Window, generator_for
from cl_runner.errors import UserError, check
from cl_runner.functional import growing
from cl_runner.functional.growing import as_vector, touching, within
from cl_runner.functional.losses import quadratic
from cl_runner.nn.growing import hidden_sizes, indices, layers, stamped, units, with_reserve
from cl_runner.nn.networks import plain
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.frozen import only
from cl_runner.training.engines import Learner, Memory
from cl_runner.training.env import Env
from cl_runner.training.fit import fit

log = logging.getLogger(__name__)


def remember(s: TrainState, **entries: Tensor) -> TrainState:
    """The state with these entries of its memory replaced."""
    return s._replace(memory=s.memory | entries)


@dataclass(frozen=True, kw_only=True)
class DEN(Strategy):
    """Retrains what a task is connected to, adds units it lacks, divides those that drift.

    Yoon et al. 2018, arXiv 1708.01547. The first task trains the whole network; later task t finds
    the weights W^{t-1} (algorithm 1):
    - selective retraining (algorithm 2): its outputs train alone; S are the units connected to them
      by weights that are not 0; then the weights within S train;
    - expansion (algorithm 3), if the mean training loss is above `tau`: each hidden layer gets
      `expand` new units, and only their weights train, a unit's incoming ones shrunk as a group
      (`gamma`); new units without any incoming weight are dropped;
    - split (algorithm 4): a unit whose incoming weights moved by more than `sigma` in L2 norm gets
      its old ones back, a copy takes the new ones, and the whole network is retrained.
    Each unit is stamped with the task that added it; task j is predicted by stamps up to j.

    Every phase, `phase_epochs` long (null: as long as the task's training), restarts the optimizer
    and minimises loss + lambda/2 |W - W^{t-1}|^2 + l2/2 |W|^2 + mu |W|_1, the L1 and group norms by
    proximal steps of size lr. So does the authors' code (github.com/jaehong31/DEN). In the paper
    task 1, outputs and new units have mu, S has l2, and a phase before the split and the one after
    it have lambda; mu throughout keeps W sparse, on which the search for S relies.

    Where we differ from both: at most `duplicates` units are divided per hidden layer and task,
    those that drifted most, and a warning tells of the rest (the paper divides all, the code up to
    `expand`, those that drifted least). The task's new units and outputs are fed by the copies
    alone. If nothing is divided, nothing is retrained. The outputs of a later task start from 0.
    Biases count as incoming weights. The code splits only after an expansion; we, as the paper,
    always.

    theta holds (T - 1) (expand + duplicates) units per hidden layer beyond the configured ones, so
    there is always room; memory["stamp"] tells those in use (below T); the others' weights are 0.
    """

    scenarios = ("task",)
    uncounted = ("pull", "trainable")  # follow from the stamps

    mu: float = 3e-4
    l2: float = 1e-4
    lambda_: float = 0.5
    gamma: float = 0.01
    tau: float = 0.01
    sigma: float = 0.05
    expand: int = 10
    duplicates: int = 10
    phase_epochs: int | None = None

    def __post_init__(self) -> None:
        for key in ("mu", "l2", "lambda_", "gamma", "tau", "sigma", "expand", "duplicates"):
            value = getattr(self, key)
            check(value >= 0, f"strategy.{key.rstrip('_')} must be at least 0, got {value}")
        check(
            self.phase_epochs is None or self.phase_epochs >= 1,
            f"strategy.phase_epochs must be at least 1 or null, got {self.phase_epochs}",
        )

    def reserve(self, env: Env) -> int:
        """How many units a hidden layer can gain."""
        return (env.num_tasks - 1) * (self.expand + self.duplicates)

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        net = make_net()
        if not plain(net) or len(net.layers) == 1:
            needs = (
                "model=mlp with at least one hidden layer, model.norm=none, adapter=none and "
                "model.freeze=[]"
            )
            raise UserError(f"strategy={self.name} needs {needs}")
        return with_reserve(net, self.reserve(env))

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        zeros = torch.zeros_like(theta, requires_grad=False)
        sizes = hidden_sizes(env.flat)
        free = [torch.arange(n, device=env.device) >= n - self.reserve(env) for n in sizes]
        return {
            "stamp": torch.cat(free) * env.num_tasks,  # [H] the task that added a unit; T: free
            "old": zeros,  # [P] W^{t-1}
            "pull": zeros.clone(),  # [P] lambda; 0 where there was no weight before
            "trainable": zeros.bool(),  # [P]
        }

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(theta, s, batch, env)
        pull = quadratic(theta, s.memory["old"], s.memory["pull"])
        return loss + pull + 0.5 * self.l2 * theta.square().sum(), aux

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = super().step(s, batch, env)
        theta = growing.soft_threshold(new.theta, s.opt["lr"] * self.mu)
        return only(new._replace(theta=theta), s, s.memory["trainable"]), aux

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        t, own, theta = task.index, env.own_classes[task.index], s.theta.detach().clone()
        before = units(env.flat, s.memory["stamp"] < t, torch.zeros_like(own))
        s = remember(s, old=theta, pull=self.lambda_ * within(before))
        chosen = units(env.flat, s.memory["stamp"] <= t, own)
        if t > 0:
            head = env.flat.output_mask(own)
            s = s._replace(theta=theta.masked_fill(head, 0.0))
            s = self.phase(s, self, within(chosen) & head, task, env, "outputs")
            chosen[1:] = growing.connected(layers(env.flat, s.theta), own)[1:]  # and all inputs
        return env.restart(remember(s, trainable=within(chosen)), s.theta)

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if task.index == 0:
            return s
        if self.expand and self.mean_loss(s, task, env) > self.tau:
            s = self.expansion(s, task, env)
        return self.split(s, task, env)

    def expansion(self, s: TrainState, task: Task, env: Env) -> TrainState:
        """Train new units on the task and drop those that came to nothing."""
        t, own, stamp = task.index, env.own_classes[task.index], s.memory["stamp"]
        stamp = stamped(env.flat, stamp, indices(env.flat, stamp == env.num_tasks, self.expand), t)
        inputs, *new = units(env.flat, stamp == t, torch.zeros_like(own))
        trainable = within(units(env.flat, stamp <= t, own)) & touching([~inputs, *new])
        drawn = growing.linear_init(
            layers(env.flat, s.theta), generator_for(env.device, env.seed, "units", t)
        )
        theta = torch.where(trainable, as_vector(drawn), s.theta.detach())
        s = remember(s, stamp=stamp)._replace(theta=theta)
        s = self.phase(s, Expansion(self), trainable, task, env, "expansion")
        useless = torch.cat(growing.without_input(layers(env.flat, s.theta)[:-1])) & (stamp == t)
        stamp = stamp.masked_fill(useless, env.num_tasks)
        in_use = within(units(env.flat, stamp <= t, torch.ones_like(own)))
        return remember(s, stamp=stamp)._replace(theta=s.theta.detach() * in_use)

    def split(self, s: TrainState, task: Task, env: Env) -> TrainState:
        """Divide the units that drifted and retrain the network; if there are none, do nothing."""
        t, own, stamp = task.index, env.own_classes[task.index], s.memory["stamp"]
        before = within(units(env.flat, stamp < t, torch.ones_like(own)))
        new, old = layers(env.flat, s.theta.detach()), layers(env.flat, s.memory["old"])
        known = layers(env.flat, s.theta.detach() * before)
        moved = growing.drifted(known[:-1], old[:-1], self.sigma)
        originals = [i[: self.duplicates] for i in moved]
        self.warn_of(t, [len(a) - len(b) for a, b in zip(moved, originals, strict=True)])
        if not any(len(i) for i in originals):
            return s
        free = indices(env.flat, stamp == env.num_tasks, self.duplicates)
        copies = [f[: len(i)] for f, i in zip(free, originals, strict=True)]
        stamp = stamped(env.flat, stamp, copies, t)
        divided = growing.duplicate(new, old, originals, copies, units(env.flat, stamp == t, own))
        s = remember(s, stamp=stamp)._replace(theta=as_vector(divided))
        return self.phase(s, self, within(units(env.flat, stamp <= t, own)), task, env, "split")

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        known = units(env.flat, s.memory["stamp"] <= task, env.own_classes.any(0))
        return super().predict(s._replace(theta=s.theta * within(known)), x, task, env)

    def phase(
        self, s: TrainState, learner: Learner, trainable: Tensor, task: Task, env: Env, name: str
    ) -> TrainState:
        """Train the parameters `trainable` [P], and no other, on the task."""
        s = env.restart(remember(s, trainable=trainable), s.theta)
        samples = (task.train, task.index)
        return fit(s, env, learner, samples, epochs=self.phase_epochs, phase=name)

    def mean_loss(self, s: TrainState, task: Task, env: Env) -> float:
        """The mean loss on the task's training samples, without the penalties."""

        def add(total: Tensor, batch: Batch) -> Tensor:
            return total + len(batch.y) * Strategy.loss(self, s.theta, s, batch, env)[0]

        total, number = env.fold(add, torch.zeros((), device=env.device), s, task)
        return float(total) / number

    def warn_of(self, t: int, left: list[int]) -> None:
        """Tell how many units of each hidden layer drifted but were not divided."""
        if any(left):
            log.warning(
                "task %d: %s units of the hidden layers drifted by more than strategy.sigma and "
                "were not divided: strategy.duplicates=%d is the most per layer and task",
                *(t + 1, "+".join(map(str, left)), self.duplicates),
            )


@dataclass(frozen=True)
class Expansion:
    """The strategy's own step and, for the hidden units, group sparsity."""

    den: DEN

    def batch_size(self, t: int, env: Env) -> int:
        return self.den.batch_size(t, env)

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        return {}

    def plan(self, memory: Memory, t: Tensor, window: Window, env: Env) -> tuple[Memory, Memory]:
        return {}, {}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = self.den.step(s, batch, env)
        *hidden, last = layers(env.flat, new.theta)
        members = layers(env.flat, s.memory["trainable"])[:-1]
        hidden = growing.group_threshold(hidden, members, s.opt["lr"] * self.den.gamma)
        return new._replace(theta=as_vector([*hidden, last])), aux
