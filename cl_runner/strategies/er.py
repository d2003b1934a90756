"""Experience replay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState, concatenate, generator_for
from cl_runner.errors import UserError, check, one_of
from cl_runner.functional import buffers
from cl_runner.functional.buffers import Slots
from cl_runner.nn.networks import Network
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.features import herded
from cl_runner.training.env import FOLD_CHUNK, Env

PREFIX = "buffer_"
LARGEST = 1_000_000  # samples; drawing from a buffer takes time in proportion to its size
REFILLED = ("class_balanced", "herding")  # at the end of each task, not after each step
POLICIES = ("reservoir", "ring", *REFILLED)


@dataclass(frozen=True, kw_only=True)
class ER(Strategy):
    """Each step trains on the incoming batch and on one drawn from a buffer of old samples.

    Chaudhry et al. 2019, arXiv 1902.10486 (reservoir and ring); Rolnick et al. 2019, 1811.11682.
    - policy `reservoir`: every sample of the stream is held with equal probability; `ring`: the
      latest of each class; both fed after each step. `class_balanced`: at the end of each task all
      classes seen so far get equal random shares; `herding`: equal shares of the samples whose mean
      feature is closest to their class's, the best first, and of old classes the best stay (Rebuffi
      et al. 2017, 1611.07725, algorithms 4 and 5). In domain-incremental learning, where the tasks
      share their classes, "class" means a task's class for all but reservoir.
    - per_class in the place of buffer_size: each class has that many places from its own task on,
      or one for each of its samples, and keeps what it holds (as in van de Ven et al. 2022, below);
      the buffer is as large as all classes need. For every policy but reservoir.
    - weighting `concatenation`: one mean over the batch and the replayed samples; `task_share`:
      1/t and 1 - 1/t of their two means in task t (the weights of generative replay in van de Ven
      et al. 2022, Nature Machine Intelligence 4, 1185).
    The replayed samples are drawn uniformly, without replacement; from a buffer that holds fewer
    than the replay batch, all of them.

    A task of several epochs offers every sample once an epoch, as in the DER authors' code
    (aimagelab/mammoth): reservoir and ring may then hold a sample several times, each place of
    which counts in buffer_samples and buffer_bytes, and it is presentations of which each is held
    with equal probability.
    """

    buffer_size: int | None = 500
    replay_batch_size: int = 128
    policy: str = "reservoir"
    per_class: int | None = None
    weighting: str = "concatenation"

    def __post_init__(self) -> None:
        check_places(self.buffer_size, self.per_class)
        check(
            self.replay_batch_size >= 1,
            f"strategy.replay_batch_size must be at least 1, got {self.replay_batch_size}",
        )
        one_of("strategy.policy", self.policy, POLICIES)
        check(
            self.per_class is None or self.policy != "reservoir",
            "strategy.per_class has no meaning for strategy.policy=reservoir, which knows no "
            f"classes; use {', '.join(POLICIES[1:])}",
        )
        one_of("strategy.weighting", self.weighting, ("concatenation", "task_share"))

    def places(self, env: Env) -> int:
        """How many samples the buffer has room for, K."""
        return places(self.buffer_size, self.per_class, env)

    def replayed(self, env: Env) -> int:
        """Samples drawn per step."""
        return min(self.replay_batch_size, self.places(env))

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        return {
            "draw": (self.places(env),),
            "replay_augment": (self.replayed(env), 3),
            "reservoir": (batch_size,),
        }

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            self.policy == "reservoir" or self.places(env) >= env.num_bins,
            f"strategy.buffer_size={self.buffer_size} is too small for strategy.policy="
            f"{self.policy}, which needs at least one place for each of {env.num_bins} classes",
        )
        if self.policy == "herding":
            check_features("strategy.policy=herding", env)
        empty = torch.full((self.places(env),), -1, device=env.device)
        slots = {"index": empty, "task": torch.zeros_like(empty), **self.empty_slots(theta, env)}
        return store(slots) | {
            "seen": torch.zeros(env.num_bins, dtype=torch.int64, device=env.device)
        }

    def empty_slots(self, theta: Tensor, env: Env) -> Slots:
        """What a variant keeps of each sample besides its row and task, [K, ...], empty."""
        return {}

    def keep(self, s: TrainState, batch: Batch, aux: Aux, env: Env) -> Slots:
        """What a variant keeps of the samples of a batch, [B, ...].

        aux is that of the step; at the end of a task there is none, and the network is to answer in
        evaluation mode.
        """
        return {}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        replay = self.replay(s, batch, env)
        s, aux = super().step(s, self.join(s, batch, replay), env)
        return self.remember(s, batch, aux, env), aux

    def replay(self, s: TrainState, batch: Batch, env: Env, which: str = "") -> Batch:
        """Samples drawn from the buffer; weight 0 where it holds fewer than asked for.

        `which` names the noise of a second, independent draw; noise["slot"] tells the slots.
        Places without a sample show one of the batch again, so that BatchNorm sees nothing else.
        """
        slots = load(s.memory)
        replayed = self.replayed(env)
        chosen, filled = buffers.draw(slots["index"], batch.noise["draw" + which], replayed)
        again = torch.arange(replayed, device=chosen.device) % len(batch.y)
        index = torch.where(filled, slots["index"][chosen], batch.index[again])
        task = torch.where(filled, slots["task"][chosen], batch.task[again])
        augment = batch.noise["replay_augment" + which]
        replay = env.gather(index, task, s.t, weight=filled.float(), augment=augment)
        replay.noise["slot"] = chosen
        return replay

    def join(self, s: TrainState, batch: Batch, replay: Batch) -> Batch:
        """One batch of both, weighted as `weighting` says."""
        assert replay.weight is not None
        new, old = torch.ones_like(batch.y, dtype=torch.float32), replay.weight
        if self.weighting == "task_share":
            share = 1 / (s.t + 1)
            new, old = new * share / len(new), old * (1 - share) / old.sum().clamp_min(1)
        return concatenate(batch._replace(weight=new), replay._replace(weight=old))

    def remember(self, s: TrainState, batch: Batch, aux: Aux, env: Env) -> TrainState:
        """The state after the batch's samples have been offered to the buffer."""
        if self.policy in REFILLED:
            return s
        memory, slots = s.memory, load(s.memory)
        seen, bins = memory["seen"], env.bins(batch.y, batch.task)
        if self.policy == "ring":
            per_bin = self.places(env) // env.num_bins
            target = buffers.ring_targets(seen, per_bin, bins)
        else:
            uniform = batch.noise["reservoir"][: len(bins)]
            target = buffers.reservoir_targets(seen.sum(), self.places(env), uniform)
        new = {"index": batch.index, "task": batch.task, **self.keep(s, batch, aux, env)}
        seen = seen.scatter_add(0, bins, torch.ones_like(bins))
        return s._replace(memory=memory | store(buffers.add(slots, new, target)) | {"seen": seen})

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        if self.policy not in REFILLED:
            return s
        best = buffers.shuffled(generator_for(env.device, env.seed, "buffer", task.index))
        if self.policy == "herding":
            best = herded(s, task, env, self.places(env))
        slots = load(s.memory)
        keep = buffers.balance(*bins_of(slots, task, env), best, self.per_class)
        new = arrived(slots, task, keep)
        if slots.keys() > new.keys():
            new |= self.kept_of(s, new["index"], task.index, env)
        return s._replace(memory=s.memory | store(buffers.refill(slots, new, keep)))

    def kept_of(self, s: TrainState, index: Tensor, task: int | Tensor, env: Env) -> Slots:
        """What `keep` says of training rows `index` [n] of a task, or of tasks [n], not augmented.

        As it is at the end of a task: in chunks, and by the network in evaluation mode.
        """
        tasks = torch.full_like(index, task) if isinstance(task, int) else task
        chunks = zip(index.split(FOLD_CHUNK), tasks.split(FOLD_CHUNK), strict=True)
        parts = [self.keep(s, env.gather(*chunk, s.t), {}, env) for chunk in chunks]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_places(buffer_size: int | None, per_class: int | None) -> None:
    """Refuse all but one of the two, within its bounds."""
    check(
        buffer_size is None or per_class is None,
        f"strategy.per_class={per_class} takes the place of strategy.buffer_size={buffer_size}: "
        "set strategy.buffer_size=null",
    )
    name, value = ("buffer_size", buffer_size) if per_class is None else ("per_class", per_class)
    if value is None:
        raise UserError("one of strategy.buffer_size and strategy.per_class must be set")
    check(1 <= value <= LARGEST, f"strategy.{name} must lie between 1 and {LARGEST}, got {value}")


def places(buffer_size: int | None, per_class: int | None, env: Env) -> int:
    """The samples that a buffer has room for, which one of the two says."""
    if per_class is None:
        assert buffer_size is not None
        return buffer_size
    size = per_class * env.num_bins
    check(
        size <= LARGEST,
        f"strategy.per_class={per_class} for each of {env.num_bins} classes makes {size} places, "
        f"and {LARGEST} are the most",
    )
    return size


def check_features(what: str, env: Env) -> None:
    """Refuse a network that does not show the activations before its output layer."""
    check(
        isinstance(env.flat.module, Network),
        f"{what} needs the features before the output layer, which this strategy's network, "
        "wrapped as it is, does not show",
    )


def bins_of(slots: Slots, task: Task, env: Env) -> tuple[Tensor, Tensor, Tensor]:
    """The slots' bins [K], which are filled [K], and the bins of the task's samples [n]."""
    index, labels = slots["index"], env.stream.labels
    held = env.bins(labels(index.clamp_min(0), slots["task"]), slots["task"])
    tasks = torch.full_like(task.train, task.index)
    return held, index >= 0, env.bins(labels(task.train, tasks), tasks)


def arrived(slots: Slots, task: Task, keep: Tensor) -> Slots:
    """Row and task of the task's samples that are among the positions `keep`."""
    index = task.train[buffers.arrivals(slots, keep)]
    return {"index": index, "task": torch.full_like(index, task.index)}


def load(memory: dict[str, Tensor]) -> Slots:
    """The buffer's slots in a strategy's memory."""
    return {k.removeprefix(PREFIX): v for k, v in memory.items() if k.startswith(PREFIX)}


def store(slots: Slots) -> dict[str, Tensor]:
    """Slots by the names that they have in a strategy's memory."""
    return {PREFIX + k: v for k, v in slots.items()}
