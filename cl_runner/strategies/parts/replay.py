"""A replay buffer in a strategy's memory: its room, what is drawn from it, what enters it.

The buffer holds rows of the training set, as `functional.buffers` describes them; in the memory
their names begin with PREFIX. "seen" [bins] counts the samples that were offered to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState, generator_for
from cl_runner.errors import UserError, check, one_of
from cl_runner.functional import buffers
from cl_runner.functional.buffers import Slots
from cl_runner.nn.networks import Network
from cl_runner.strategies.parts.features import herded
from cl_runner.training.env import FOLD_CHUNK, Env

PREFIX = "buffer_"
LARGEST = 1_000_000  # samples; drawing from a buffer takes time in proportion to its size
REFILLED = ("class_balanced", "herding")  # at the end of each task, not after each step
POLICIES = ("reservoir", "ring", *REFILLED)
# What is held of a batch's samples besides row and task, [B, ...]: (s, batch, aux, env) -> ...
Keep = Callable[[TrainState, Batch, dict[str, Any], Env], Slots]


# Its room.


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


def check_policy(policy: str, per_class: int | None) -> None:
    """Refuse an unknown policy, and shares of classes for one that knows no classes."""
    one_of("strategy.policy", policy, POLICIES)
    check(
        per_class is None or policy != "reservoir",
        "strategy.per_class has no meaning for strategy.policy=reservoir, which knows no "
        f"classes; use {', '.join(POLICIES[1:])}",
    )


def check_room(places: int, policy: str, env: Env) -> None:
    """Refuse a buffer, or a network, that the policy cannot work with."""
    check(
        policy == "reservoir" or places >= env.num_bins,
        f"strategy.buffer_size={places} is too small for strategy.policy={policy}, which needs at "
        f"least one place for each of {env.num_bins} classes",
    )
    if policy == "herding":
        check_features("strategy.policy=herding", env)


def check_features(what: str, env: Env) -> None:
    """Refuse a network that does not show the activations before its output layer."""
    check(
        isinstance(env.flat.module, Network),
        f"{what} needs the features before the output layer, which this strategy's network, "
        "wrapped as it is, does not show",
    )


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


# Its slots.


def empty_rows(size: int, env: Env) -> Slots:
    """Slots [K] without a sample."""
    index = torch.full((size,), -1, device=env.device)
    return {"index": index, "task": torch.zeros_like(index)}


def load(memory: dict[str, Tensor]) -> Slots:
    """The buffer's slots in a strategy's memory."""
    return {k.removeprefix(PREFIX): v for k, v in memory.items() if k.startswith(PREFIX)}


def store(slots: Slots) -> dict[str, Tensor]:
    """Slots by the names that they have in a strategy's memory."""
    return {PREFIX + k: v for k, v in slots.items()}


# In each step.


def drawn(s: TrainState, batch: Batch, size: int, env: Env, which: str = "") -> Batch:
    """`size` samples of the buffer, uniformly; weight 0 where it holds fewer than asked for.

    `which` names the noise of a second, independent draw; noise["slot"] tells the slots.
    Places without a sample show one of the batch again, so that BatchNorm sees nothing else.
    """
    slots = load(s.memory)
    chosen, filled = buffers.draw(slots["index"], batch.noise["draw" + which], size)
    again = torch.arange(size, device=chosen.device) % len(batch.y)
    index = torch.where(filled, slots["index"][chosen], batch.index[again])
    task = torch.where(filled, slots["task"][chosen], batch.task[again])
    augment = batch.noise["replay_augment" + which]
    replay = env.gather(index, task, s.t, weight=filled.float(), augment=augment)
    replay.noise["slot"] = chosen
    return replay


def held_of(s: TrainState, replay: Batch, name: str) -> Tensor:
    """What the buffer holds as `name` of the samples that `drawn` gave, [B, ...]."""
    return load(s.memory)[name][replay.noise["slot"]]


def offered(s: TrainState, batch: Batch, kept: Slots, policy: str, env: Env) -> TrainState:
    """The state after a batch's samples were offered to the buffer, a reservoir or a ring.

    kept: what is held of them besides row and task, [B, ...].
    """
    slots, seen, bins = load(s.memory), s.memory["seen"], env.bins(batch.y, batch.task)
    size = len(slots["index"])
    if policy == "ring":
        target = buffers.ring_targets(seen, size // env.num_bins, bins)
    else:
        uniform = batch.noise["reservoir"][: len(bins)]
        target = buffers.reservoir_targets(seen.sum(), size, uniform)
    slots = buffers.add(slots, {"index": batch.index, "task": batch.task, **kept}, target)
    seen = seen.scatter_add(0, bins, torch.ones_like(bins))
    return s._replace(memory=s.memory | store(slots) | {"seen": seen})


# At the end of a task.


def refilled(
    s: TrainState, task: Task, policy: str, per_class: int | None, keep: Keep, env: Env
) -> TrainState:
    """The state with equal shares of all classes so far, at random or by herding."""
    slots = load(s.memory)
    best = buffers.shuffled(generator_for(env.device, env.seed, "buffer", task.index))
    if policy == "herding":
        best = herded(s, task, env, len(slots["index"]))
    chosen = buffers.balance(*bins_of(slots, task, env), best, per_class)
    new = arrived(slots, task, chosen)
    if slots.keys() > new.keys():
        new |= kept_of(keep, s, new["index"], task.index, env)
    return s._replace(memory=s.memory | store(buffers.refill(slots, new, chosen)))


def bins_of(slots: Slots, task: Task, env: Env) -> tuple[Tensor, Tensor, Tensor]:
    """The slots' bins [K], which are filled [K], and the bins of the task's samples [n]."""
    index, labels = slots["index"], env.stream.labels
    held = env.bins(labels(index.clamp_min(0), slots["task"]), slots["task"])
    tasks = torch.full_like(task.train, task.index)
    return held, index >= 0, env.bins(labels(task.train, tasks), tasks)


def arrived(slots: Slots, task: Task, chosen: Tensor) -> Slots:
    """Row and task of the task's samples that are among the positions `chosen`."""
    index = task.train[buffers.arrivals(slots, chosen)]
    return {"index": index, "task": torch.full_like(index, task.index)}


def kept_of(keep: Keep, s: TrainState, index: Tensor, task: int | Tensor, env: Env) -> Slots:
    """What `keep` says of training rows `index` [n] of a task, or of tasks [n], not augmented.

    As it is at the end of a task: in chunks, and by the network in evaluation mode.
    """
    tasks = torch.full_like(index, task) if isinstance(task, int) else task
    chunks = zip(index.split(FOLD_CHUNK), tasks.split(FOLD_CHUNK), strict=True)
    parts = [keep(s, env.gather(*chunk, s.t), {}, env) for chunk in chunks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
