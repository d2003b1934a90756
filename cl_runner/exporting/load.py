"""A finished run as a module: `load_model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from cl_runner.config.parse import validate
from cl_runner.config.schema import Config
from cl_runner.config.weights import WEIGHTS
from cl_runner.core import Stream, Task, TrainState
from cl_runner.errors import UserError, check
from cl_runner.exporting.card import card_of
from cl_runner.exporting.deployed import Deployed, effective
from cl_runner.exporting.description import Description, complete_run, read
from cl_runner.exporting.preparation import Preparation
from cl_runner.nn.adapters import adapted, merged
from cl_runner.nn.frozen import frozen
from cl_runner.nn.networks import build, factory
from cl_runner.results.files import DAMAGED
from cl_runner.results.names import MODEL_MEMORY
from cl_runner.running.model import MEMORY, NETWORK
from cl_runner.running.prepare import strategy_of
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


def load_model(
    run: str | Path, *, task: int | str | None = None, plugins: Sequence[str] = ()
) -> Deployed:
    """The model of a complete run that was made with checkpoint.keep=true, in evaluation mode.

    It maps images [B, C, H, W] as the data set gives them (uint8, before resizing and padding), or
    feature vectors [B, D] float32, to probabilities [B, K]: what the run's evaluation takes the
    largest of. Attributes: `classes` the K names, `tasks`, `input_shape`, `dtype`, `card`.

    run: the run's folder; no data set is read. task: of a task-incremental run, which it must be
    told, by number from 1 or by name; K then counts that task's classes. plugins: the packages of
    yours that the run was made with; they are imported, and none that is not named here.

    Raises UserError, in one line, for a folder without such a run, files that were changed, and a
    strategy whose predictions are not those of one network. Nothing that is read executes.
    """
    folder = complete_run(Path(run).expanduser())
    description = read(folder)
    asked = description.task(task)
    config = configuration(description, plugins)
    tensors = {name: tensors_of(folder / name) for name in (WEIGHTS, MODEL_MEMORY)}
    try:
        return built(description, config, tensors[WEIGHTS], tensors[MODEL_MEMORY], asked, folder)
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: its files make no model ({reason}); {DAMAGED}") from None


def configuration(description: Description, plugins: Sequence[str]) -> Config:
    """The run's configuration, without what a model does not need. Raises UserError."""
    named = description.config.get("plugins", [])
    check(isinstance(named, list), f"the run's plugins are no list: {named!r}")
    unasked = [name for name in named if name not in plugins]
    check(
        not unasked,
        f"the run was made with plugins={named}: name those that may be imported "
        f"(--plugins {','.join(map(str, named))})",
    )
    model = description.config.get("model")
    check(isinstance(model, dict), f"the run's model is no group of keys: {model!r}")
    starting = {"weights": None, "weights_for": None}  # the weights are those that the run left
    without = {k: v for k, v in model.items() if k not in starting}  # type: ignore[union-attr]
    own = {key: value for key, value in description.config.items() if key != "plots"}
    own |= {"device": "cpu", "plugins": list(named), "model": without}
    return validate(OmegaConf.create(own))


def tensors_of(path: Path) -> Tensors:
    """The tensors of a file, copied. Raises UserError for what is no file of safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # Cloned: a file's tensors lie anywhere in memory, for which sums may differ in last digits.
        return {name: v.clone() for name, v in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no file of safetensors ({reason}); {DAMAGED}") from None


def built(
    description: Description,
    config: Config,
    weights: Tensors,
    kept: Tensors,
    asked: int | None,
    folder: Path,
) -> Deployed:
    """The model of a run's description and tensors, for the task that is asked for, if any."""
    strategy, stream = strategy_of(config), without_samples(description)
    new = factory(config.model, stream.input_shape, stream.num_classes, config.plugins)
    trained = frozen(adapted(new, config.adapter), config.model.freeze)
    env = environment(config, strategy, stream, trained)
    network = group(kept, NETWORK) or weights
    env.flat.module.load_state_dict(network)  # into the memory of theta
    s = TrainState(env.flat.theta.detach(), env.flat.buffers, {}, group(kept, MEMORY), kept["t"])
    task = asked if asked is not None else 0
    found = effective(strategy, s, task, env)
    env.flat.commit(found.theta.clone())
    env.flat.settle(dict(found.buffers))
    plain = build(lambda: strategy.wrap(new, env), config.seed)
    plain.load_state_dict({k: v.detach().clone() for k, v in merged(env.flat.module).items()})
    own = range(stream.num_classes) if asked is None else description.tasks[asked].classes
    names = description.outputs if asked is None else description.tasks[asked].names
    shape = description.given_shape
    about = {
        "classes": tuple(names),
        "tasks": description.titles,
        "task": None if asked is None else description.titles[asked],
        "input_shape": shape if shape[1] > 1 else shape[2:],
        "card": card_of(description, folder, asked),
    }
    return Deployed(
        preparation=Preparation(description),
        network=plain,
        strategy=strategy,
        s=s,
        task=task,
        env=env,
        columns=torch.tensor(list(own)),
        about=about,
    )


def environment(
    config: Config, strategy: Strategy, stream: Stream, make_net: Callable[[], nn.Module]
) -> Env:
    """The environment of a run that takes no step, in evaluation mode."""
    env = Env(
        stream=stream,
        make_net=lambda env: strategy.wrap(make_net, env),
        optimizer=config.optimizer,
        training=config.training,
        seed=config.seed,
    )
    env.flat.module.eval()
    return env


def group(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def without_samples(of: Description) -> Stream:
    """The stream as far as a model needs it: one black image, and tasks without samples."""
    none = torch.zeros(0, dtype=torch.int64)
    kind: Any = torch.uint8 if of.dtype == "uint8" else torch.float32
    x = torch.zeros(1, of.given_shape[0], *of.input_shape[1:], dtype=kind)
    y = torch.zeros(1, dtype=torch.int64)
    tasks = tuple(
        Task(i, task.classes, task.names, none, none, none, task.name)
        for i, task in enumerate(of.tasks)
    )
    shift = None if of.shift is None else torch.tensor(of.shift)[:, None, None]
    return Stream(
        x=x,
        y=y,
        x_test=x,
        y_test=y,
        tasks=tasks,
        tables={"label": torch.tensor(of.label)},
        num_classes=len(of.outputs),
        scenario=of.scenario,
        scale=torch.tensor(of.scale)[:, None, None],
        shift=shift,
        boundaries=of.boundaries,
    )
