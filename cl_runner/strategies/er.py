"""Experience replay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState, generator_for
from cl_runner.env import Env
from cl_runner.errors import check, one_of
from cl_runner.functional import buffers
from cl_runner.strategies.base import Aux, Strategy

POLICIES = ("reservoir", "class_balanced", "ring")


@dataclass(frozen=True, kw_only=True)
class ER(Strategy):
    """Each step trains on the incoming batch and on one drawn from a buffer of old samples.

    Chaudhry et al. 2019, arXiv 1902.10486 (reservoir and ring); Rolnick et al. 2019, 1811.11682.
    - policy `reservoir`: every sample of the stream is held with equal probability; `ring`: the
      latest of each class; both fed after each step. `class_balanced`: at the end of each task all
      classes seen so far get equal random shares. In domain-incremental learning, where the tasks
      share their classes, "class" means a task's class for ring and class_balanced.
    - weighting `concatenation`: one mean over the batch and the replayed samples; `task_share`:
      1/t and 1 - 1/t of their two means in task t (the weights of generative replay in van de Ven
      et al. 2022, Nature Machine Intelligence 4, 1185).
    The replayed samples are drawn uniformly, without replacement; from a buffer that holds fewer
    than the replay batch, all of them.
    """

    buffer_size: int = 500
    replay_batch_size: int = 128
    policy: str = "reservoir"
    weighting: str = "concatenation"

    def __post_init__(self) -> None:
        check(
            self.buffer_size >= 1,
            f"strategy.buffer_size must be at least 1, got {self.buffer_size}",
        )
        check(
            self.replay_batch_size >= 1,
            f"strategy.replay_batch_size must be at least 1, got {self.replay_batch_size}",
        )
        one_of("strategy.policy", self.policy, POLICIES)
        one_of("strategy.weighting", self.weighting, ("concatenation", "task_share"))

    @property
    def replayed(self) -> int:
        """Samples drawn per step."""
        return min(self.replay_batch_size, self.buffer_size)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {
            "draw": (self.buffer_size,),
            "replay_augment": (self.replayed, 3),
            "reservoir": (batch_size,),
        }

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            self.policy == "reservoir" or self.buffer_size >= env.num_bins,
            f"strategy.buffer_size={self.buffer_size} is too small for strategy.policy="
            f"{self.policy}, which needs at least one place for each of {env.num_bins} classes",
        )
        empty = torch.full((self.buffer_size,), -1, device=env.device)
        return {
            "buffer_index": empty,
            "buffer_task": torch.zeros_like(empty),
            "seen": torch.zeros(env.num_bins, dtype=torch.int64, device=env.device),
        }

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        s, aux = super().step(s, self.with_replay(s, batch, env), env)
        if self.policy != "class_balanced":
            s = s._replace(memory=self.remember(s.memory, batch, env))
        return s, aux

    def with_replay(self, s: TrainState, batch: Batch, env: Env) -> Batch:
        """The batch and the replayed samples, weighted; what the buffer lacks has weight 0.

        Places without a sample show one of the batch again, so that BatchNorm sees nothing else.
        """
        index, task = s.memory["buffer_index"], s.memory["buffer_task"]
        slot, filled = buffers.draw(index, batch.noise["draw"], self.replayed)
        B = len(batch.y)
        again = torch.arange(self.replayed, device=index.device) % B
        index = torch.where(filled, index[slot], batch.index[again])
        task = torch.where(filled, task[slot], batch.task[again])
        new, old = torch.ones(B, device=index.device), filled.float()
        if self.weighting == "task_share":
            share = 1 / (s.t + 1)
            new, old = new * share / B, old * (1 - share) / old.sum().clamp_min(1)
        replay = env.gather(index, task, s.t, weight=old, augment=batch.noise["replay_augment"])
        return env.concatenate(batch._replace(weight=new), replay)

    def remember(self, memory: dict[str, Tensor], batch: Batch, env: Env) -> dict[str, Tensor]:
        """The memory after the batch's samples have been offered to the buffer."""
        seen, bins = memory["seen"], env.bins(batch.index, batch.task)
        arrived = torch.ones_like(bins, dtype=torch.bool)
        if self.policy == "ring":
            per_bin = self.buffer_size // env.num_bins
            target = buffers.ring_targets(seen, per_bin, bins, arrived, self.buffer_size)
        else:
            uniform = batch.noise["reservoir"][: len(bins)]
            target = buffers.reservoir_targets(seen.sum(), self.buffer_size, arrived, uniform)
        index, task = buffers.add(
            memory["buffer_index"], memory["buffer_task"], batch.index, batch.task, target
        )
        seen = seen.scatter_add(0, bins, arrived.long())
        return {"buffer_index": index, "buffer_task": task, "seen": seen}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if self.policy != "class_balanced":
            return s
        index, tasks = s.memory["buffer_index"], s.memory["buffer_task"]
        held = index.clamp_min(0)
        new_tasks = torch.full_like(task.train, task.index)
        index, tasks = buffers.balance(
            index,
            tasks,
            env.bins(held, tasks),
            task.train,
            new_tasks,
            env.bins(task.train, new_tasks),
            generator_for(env.device, env.seed, "buffer", task.index),
        )
        return s._replace(memory=s.memory | {"buffer_index": index, "buffer_task": tasks})
