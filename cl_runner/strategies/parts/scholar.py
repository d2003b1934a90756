"""A scholar, that is a classifier and a generator in one theta: how it is trained and what it says.

The generator's parts have Adam optimizers of their own, whose slots lie in the strategy's memory
under the names of the parts; the classifier has the run's.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from cl_runner.config.schema import Adam
from cl_runner.core import Batch, TrainState
from cl_runner.strategies.parts.pixels import to_inputs
from cl_runner.training import optim
from cl_runner.training.env import Env, kept, statistics

SAMPLES = 64  # in a picture


def span(env: Env, part: str) -> slice:
    """The slice of theta that holds the parameters of a part of the network."""
    end = list(accumulate(env.flat.sizes))
    own = [i for i, name in enumerate(env.flat.names) if name.startswith(f"{part}.")]
    return slice(end[own[0]] - env.flat.sizes[own[0]], end[own[-1]])


def fresh_slots(adam: Adam, parts: tuple[str, ...], theta: Tensor, env: Env) -> dict[str, Tensor]:
    """The slots of the parts' optimizers before their first step, for the strategy's memory."""
    return {
        f"{part}.{key}": value
        for part in parts
        for key, value in optim.init(adam, theta.detach()[span(env, part)]).items()
    }


def begin_task(s: TrainState, adam: Adam, parts: tuple[str, ...], env: Env) -> TrainState:
    """The state with its network kept as the old scholar; the optimizers reset if the run's is."""
    memory = s.memory | kept("scholar", s.theta, s.buffers)
    if env.optimizer.reset:
        memory |= fresh_slots(adam, parts, s.theta, env)
    return s._replace(memory=memory)


def classifier_step(s: TrainState, grad: Tensor, env: Env) -> TrainState:
    """The state after the run's optimizer has moved the classifier alone along `grad` [P]."""
    old, own = s.theta.detach(), span(env, "classifier")
    s = env.update(s, grad)
    return s._replace(theta=torch.cat([s.theta[own], old[own.stop :]]))


def adam_step(s: TrainState, adam: Adam, part: str, grad: Tensor, env: Env) -> TrainState:
    """The state after a step of Adam of a part of the generator along `grad` [P]."""
    own, prefix = span(env, part), f"{part}."
    slots = {k.removeprefix(prefix): v for k, v in s.memory.items() if k.startswith(prefix)}
    new, slots = optim.update(adam, s.theta[own], grad[own], slots)
    theta = torch.cat([s.theta[: own.start], new, s.theta[own.stop :]])
    return s._replace(theta=theta, memory=s.memory | {prefix + k: v for k, v in slots.items()})


def followed(batch: Batch, pixels: Tensor, task: Tensor, s: TrainState, env: Env) -> Batch:
    """The batch [B] with generated pixels [R, C, H, W] behind it, as inputs of tasks [R].

    noise["weight"] [B + R] weighs all inputs in a mean: 1/t new, 1 - 1/t generated. In the first
    task inputs of the batch take the place of generated ones, so that BatchNorm sees no other.
    """
    B, R, share = len(batch.y), len(pixels), 1 / (s.t + 1)
    again = torch.arange(R, device=batch.x.device) % B
    x = torch.where(s.t == 0, batch.x[again], to_inputs(pixels, env.stream))
    new = x.new_ones(B) if batch.weight is None else batch.weight
    new, old = new * share / new.sum().clamp_min(1e-12), x.new_ones(R) * (1 - share) / R
    return batch._replace(
        x=torch.cat([batch.x, x]),
        task=torch.cat([batch.task, task]),
        noise=batch.noise | {"weight": torch.cat([new, old])},
    )


def old_logits(s: TrainState, both: Batch, env: Env) -> Tensor:
    """The old classifier's logits for the generated inputs at the end of a batch, [R, K]."""
    B = len(both.y)
    buffers = statistics(s.memory, "scholar")
    return env.answers(s.memory["scholar"], both.x[B:], both.task[B:], buffers)


def before(t: Tensor, env: Env) -> Tensor:
    """Which tasks [T] bool come before task t, 0-d."""
    return torch.arange(env.num_tasks, device=t.device) < t


def classes_of(tasks: Tensor, env: Env) -> Tensor:
    """Which classes [K] bool the tasks [T] bool have."""
    return (env.own_classes & tasks[:, None]).any(0)


def drawn(uniform: Tensor, tasks: Tensor, env: Env) -> tuple[Tensor, Tensor]:
    """Classes and their tasks, [R] each, by uniforms [R].

    Each class of each of the `tasks` [T] bool is equally likely. Of no task at all: any number.
    """
    pairs = (env.own_classes & tasks[:, None]).flatten()  # [T K]
    place = (uniform * pairs.sum()).floor()
    pair = (pairs.cumsum(0) <= place[:, None]).sum(1).clamp_max(len(pairs) - 1)
    return pair % env.num_classes, pair // env.num_classes


def so_far(number: int, s: TrainState, env: Env) -> tuple[Tensor, Tensor]:
    """Classes and their tasks up to the present one, in order, equally many of each, [number]."""
    evenly = (torch.arange(number, device=s.t.device) + 0.5) / number
    return drawn(evenly, before(s.t + 1, env), env)


def per_task(env: Env) -> bool:
    """Whether a sample is scored on the classes of its own task alone."""
    only_own = env.stream.scenario == "class" and env.training.active_classes == "current"
    return env.stream.scenario == "task" or only_own
