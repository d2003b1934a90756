"""A replay buffer in a strategy's memory: its room, what is drawn from it, what enters it.

The buffer holds rows of the training set, as `functional.buffers` describes them; in the memory
their names begin with PREFIX. "seen" [bins] counts the samples that were offered to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState, Window, generator_for
from cl_runner.errors import UserError, check, one_of
from cl_runner.functional import buffers
from cl_runner.functional.buffers import Slots
from cl_runner.nn.network import Network
from cl_runner.strategies.parts.features import herded
from cl_runner.training.env import FOLD_CHUNK, Env

PREFIX = "buffer_"
LARGEST = 1_000_000  # samples; drawing from a buffer takes time in proportion to its size
REFILLED = ("class_balanced", "herding")  # at the end of each task, not after each step
POLICIES = ("reservoir", "ring", "dual", *REFILLED)
SHORT = 0.1  # of the places, policy dual: those of the latest samples
# Rows and tasks that are held [..., K], the current task -> which of them may be drawn, bool
Drawable = Callable[[Slots, Tensor], Tensor]
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


def check_buffer(
    buffer_size: int | None, per_class: int | None, policy: str, replay_batch_size: int
) -> None:
    """Refuse places as `check_places` does, an unknown policy or one without classes, no replay."""
    check_places(buffer_size, per_class)
    check(
        replay_batch_size >= 1,
        f"strategy.replay_batch_size must be at least 1, got {replay_batch_size}",
    )
    one_of("strategy.policy", policy, POLICIES)
    for other, why in (("reservoir", "which knows no classes"), ("dual", "whose ring knows none")):
        check(
            per_class is None or policy != other,
            f"strategy.per_class has no meaning for strategy.policy={other}, {why}; use ring, "
            "class_balanced, herding",
        )


def why_borders(policy: str, weighting: str, scenario: str) -> str:
    """Why a buffer has to be told where tasks begin (`Strategy.needs_borders`); "": it has not."""
    if policy in REFILLED:
        return f"strategy.policy={policy} fills the buffer when a task ends"
    if policy in ("ring", "dual") and scenario == "domain":
        return f"strategy.policy={policy} has places for each task where tasks share their classes"
    return "strategy.weighting=task_share counts the tasks" if weighting == "task_share" else ""


def why_tasks(policy: str, scenario: str) -> str:
    """Why a buffer needs the stream's own tasks (`Strategy.needs_tasks`); "": it does not."""
    if policy == "reservoir" or scenario != "domain":
        return ""
    return f"strategy.policy={policy} balances over the stream's own tasks"


def check_room(places: int, policy: str, env: Env) -> None:
    """Refuse a buffer, or a network, that the policy cannot work with."""
    long = places - short(places) if policy == "dual" else places
    check(
        policy == "reservoir" or long >= env.num_bins,
        f"strategy.buffer_size={places} is too small for strategy.policy={policy}, which needs at "
        f"least one place for each of {env.num_bins} classes"
        + (", besides those of its ring" if policy == "dual" else ""),
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


def short(places: int) -> int:
    """How many places the latest samples have, policy dual."""
    return max(1, round(SHORT * places))


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


# In a window of W steps, worked out before them.


def planned(
    memory: Slots,
    t: Tensor,
    window: Window,
    policy: str,
    size: int,
    drawable: Drawable,
    env: Env,
) -> tuple[Slots, Slots]:
    """What the buffer does in the steps of task t: `batch.plan` of each, and the memory after them.

    For each uniform "draw..." of the window's noise: `size` samples of those that are drawable.
    """
    slots, seen = load(memory), memory["seen"]
    source, counted = entering(slots, seen, window, policy, env)
    course = buffers.moving_course if policy == "dual" else buffers.course
    held = {
        name: course(slots[name], values, source)
        for name, values in (("index", window.index), ("task", window.task))
    }
    plan = {name: rows[1:] for name, rows in held.items()} | {"seen": counted, "source": source}
    before = {name: rows[:-1] for name, rows in held.items()}
    for name, uniform in window.noise.items():
        if name.startswith("draw"):
            samples = draws(before, drawable(before, t), uniform, size, window, env)
            plan |= {f"{name}.{key}": values for key, values in samples.items()}
    after = store({name: rows[-1] for name, rows in held.items()}) | {"seen": counted[-1]}
    return plan, after


def entering(
    slots: Slots, seen: Tensor, window: Window, policy: str, env: Env
) -> tuple[Tensor, Tensor]:
    """Which of the batch's samples each slot takes in each step, [W, K], or -1: none.

    With policy dual also B + j: what slot j held. And what has been `seen` after it, [W, bins].
    A batch that is shown in several steps is offered in the last of them alone.
    """
    W, K, bins = len(window.y), len(slots["index"]), env.bins(window.y, window.task)
    none = torch.full((W, K), -1, device=bins.device)
    if policy in REFILLED:
        return none, seen.expand(W, -1)
    bins, each = bins[window.leaving], seen.new_zeros(W, len(seen))
    each[window.leaving].scatter_add_(1, bins, torch.ones_like(bins))
    counted = seen + each.cumsum(0)
    none[window.leaving] = arriving(slots, seen, window, bins, policy, env)
    return none, counted


def arriving(
    slots: Slots, seen: Tensor, window: Window, bins: Tensor, policy: str, env: Env
) -> Tensor:
    """Of `entering`, the steps in which batches are offered, whose bins are [L, B]: [L, K]."""
    (L, B), K = bins.shape, len(slots["index"])
    uniform = window.noise["reservoir"][window.leaving, :B]
    if policy == "dual":
        ring = short(K)
        index, task = slots["index"][:ring].clamp_min(0), slots["task"][:ring]
        own = env.bins(env.stream.labels(index, task).clamp_min(0), task)  # of an empty slot: any
        source = buffers.dual_sources(seen, own, bins, (K - ring) // env.num_bins, uniform)
        return F.pad(source, (0, K - source.shape[1]), value=-1)
    if policy == "ring":
        target = buffers.ring_targets(seen, K // env.num_bins, bins.flatten())
    else:
        target = buffers.reservoir_targets(seen.sum(), K, uniform.flatten())
    return buffers.sources(target.view(L, B), K)


def draws(
    held: Slots, drawable: Tensor, uniform: Tensor, size: int, window: Window, env: Env
) -> Slots:
    """`size` samples for each step: their "slot", "index", "task", class "y" and "filled", [W, R].

    held: rows and tasks [W, K] before each step, of which those that are drawable [W, K] are drawn,
    uniformly. Where these are fewer than asked for, samples of the batch are shown again, so that
    BatchNorm sees nothing else; they are not `filled`.
    """
    slot, filled = buffers.draw(drawable, uniform, size)
    again = torch.arange(size, device=slot.device) % window.y.shape[1]
    index = torch.where(filled, held["index"].gather(1, slot), window.index[:, again])
    task = torch.where(filled, held["task"].gather(1, slot), window.task[:, again])
    y = env.stream.labels(index, task)
    return {"slot": slot, "index": index, "task": task, "y": y, "filled": filled}


# In each step.


def drawn(s: TrainState, batch: Batch, env: Env, which: str = "") -> Batch:
    """The samples of the buffer that are planned; weight 0 where it holds fewer than asked for.

    `which` names a second, independent draw; noise["slot"] tells the slots.
    """
    name = f"draw{which}."
    own = {k.removeprefix(name): v for k, v in batch.plan.items() if k.startswith(name)}
    images = env.stream.images(own["index"], own["task"])
    x = env.inputs(images, batch.noise["replay_augment" + which])
    active, weight = env.active(own["task"], s.t), own["filled"].float()
    noise = {"slot": own["slot"]}
    return Batch(x, own["y"], own["task"], active, weight, own["index"], noise, {})


def held_of(s: TrainState, replay: Batch, name: str) -> Tensor:
    """What the buffer holds as `name` of samples that were drawn from it, [B, ...]."""
    return load(s.memory)[name][replay.noise["slot"]]


def offered(s: TrainState, plan: Slots, kept: Slots, policy: str) -> TrainState:
    """The state after a batch's samples were offered to the buffer, as it was `planned`.

    kept: what is held of them besides row and task, [B, ...].
    """
    slots = {}
    for name, values in kept.items():
        held = s.memory[PREFIX + name]
        given = torch.cat([values, held]) if policy == "dual" else values
        slots[name] = buffers.write(held, given, plan["source"])
    slots |= {"index": plan["index"], "task": plan["task"]}
    return s._replace(memory=s.memory | store(slots) | {"seen": plan["seen"]})


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
        new |= kept_of(keep, s, new["index"], new["task"], env)
    return s._replace(memory=s.memory | store(buffers.refill(slots, new, chosen)))


def bins_of(slots: Slots, task: Task, env: Env) -> tuple[Tensor, Tensor, Tensor]:
    """The slots' bins [K], which are filled [K], and the bins of the task's samples [n]."""
    index, labels = slots["index"], env.stream.labels
    held = env.bins(labels(index.clamp_min(0), slots["task"]), slots["task"])
    new, tasks = by_task(task)
    return held, index >= 0, env.bins(labels(new, tasks), tasks)


def arrived(slots: Slots, task: Task, chosen: Tensor) -> Slots:
    """Row and task of the task's samples that are among the positions `chosen`."""
    index, tasks = by_task(task)
    new = buffers.arrivals(slots, chosen)
    return {"index": index[new], "task": tasks[new]}


def by_task(task: Task) -> tuple[Tensor, Tensor]:
    """The rows [n] of a task's training samples and the task of each [n]."""
    index, tasks = task.samples()
    return index, torch.full_like(index, tasks) if isinstance(tasks, int) else tasks


def kept_of(keep: Keep, s: TrainState, index: Tensor, task: int | Tensor, env: Env) -> Slots:
    """What `keep` says of training rows `index` [n] of a task, or of tasks [n], not augmented.

    As it is at the end of a task: in chunks, and by the network in evaluation mode.
    """
    tasks = torch.full_like(index, task) if isinstance(task, int) else task
    chunks = zip(index.split(FOLD_CHUNK), tasks.split(FOLD_CHUNK), strict=True)
    parts = [keep(s, env.gather(*chunk, s.t), {}, env) for chunk in chunks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
