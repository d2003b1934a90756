"""What a run keeps between its tasks, in bytes: as it stands, and at most (`budget.bytes`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from cl_runner.config.schema import Config
from cl_runner.core import TrainState
from cl_runner.errors import UserError, check
from cl_runner.results.columns import kept_bytes
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env

Held = dict[str, int | None]  # by the names of columns
PLACES = ("buffer_size", "per_class")  # the fields of strategies that say how large a buffer is


def footprint(strategy: Strategy, s: TrainState, env: Env) -> Held:
    """What a state holds: parameters, buffered samples, and the rest of the strategy's memory.

    Buffers store row numbers; what is counted is the samples they stand for, at the data set's own
    precision, because that is what a method that may not keep the data would have to store; not so
    where a strategy keeps something else in their place. What is kept with each sample (its logits,
    say) counts as buffer too; its label and task do not. Not counted either is memory that follows
    from the rest (`Strategy.uncounted`). Of the parameters, those of a generator are also counted
    apart.
    """
    index = s.memory.get("buffer_index")
    return held(
        strategy, s.theta, s.memory, env, None if index is None else int((index >= 0).sum())
    )


def at_most(strategy: Strategy, env: Env) -> Held:
    """The same of a run at its largest: with every place of its buffer taken.

    All other tensors are allocated at full size before the first task.
    """
    memory = strategy.init(env.flat.theta, env)
    index = memory.get("buffer_index")
    return held(strategy, env.flat.theta, memory, env, None if index is None else index.numel())


def held(
    strategy: Strategy, theta: Tensor, memory: Mapping[str, Tensor], env: Env, samples: int | None
) -> Held:
    """What parameters theta [P], a memory and a buffer of so many samples hold; None: no buffer."""
    size = env.stream.x[0].nbytes if strategy.buffers_inputs else 0
    slots = {k: v for k, v in memory.items() if k.startswith("buffer_")}
    size += sum(v[0].nbytes for k, v in slots.items() if k not in {"buffer_index", "buffer_task"})
    apart = {*slots, *strategy.uncounted}
    rest = sum(v.nbytes for k, v in memory.items() if k not in apart)
    generator = [v for k, v in env.flat.views(theta.detach()).items() if "generator." in k]
    return {
        "parameters": theta.numel(),
        "parameter_bytes": theta.nbytes,
        "generator_parameters": sum(v.numel() for v in generator) if generator else None,
        "buffer_samples": samples,
        "buffer_bytes": None if samples is None else samples * size,
        "memory_bytes": rest,
    }


def total(of: Held) -> int:
    """The bytes of all that is held."""
    return sum(of[name] or 0 for name in kept_bytes())


def check_bytes(config: Config, strategy: Strategy, env: Env) -> None:
    """Raise UserError if the run may come to hold more than `budget.bytes`; says what to lower."""
    limit = config.budget.bytes
    if limit is None:
        return
    most = at_most(strategy, env)
    parts = [f"{name.removesuffix('_bytes')} {most[name] or 0}" for name in kept_bytes()]
    said = f"strategy={strategy.name} may hold {total(most)} bytes ({', '.join(parts)})"
    check(
        total(most) <= limit,
        f"budget.bytes={limit} is too little: {said}; lower {remedy(config, strategy, env, limit)}",
    )


def remedy(config: Config, strategy: Strategy, env: Env, limit: int) -> str:
    """What to lower: a buffer to the most places that fit, or else the model."""
    sizes = {"int", "list[int]"}
    model = " or ".join(f"model.{f.name}" for f in fields(config.model) if f.type in sizes)
    key = next((k for k in PLACES if isinstance(getattr(strategy, k, None), int)), None)
    if key is None:
        return model
    fits, too_many = 0, getattr(strategy, key)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if needed(strategy, key, middle, env) <= limit:
            fits = middle
        else:
            too_many = middle
    if fits and needed(strategy, key, fits, env):
        return f"strategy.{key} to {fits}, or {model}"
    return f"{model}, since no strategy.{key} fits"


def needed(strategy: Strategy, key: str, places: int, env: Env) -> int:
    """The bytes of a strategy with so many places; 0: it refuses so few."""
    try:
        fewer: dict[str, Any] = {key: places}
        return total(at_most(replace(strategy, **fewer), env))
    except UserError:
        return 0
