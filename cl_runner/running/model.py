"""What makes a model of a run's weights, written beside them: `exporting` builds it of that.

`weights.safetensors` has the network's tensors. `model.json` has the configuration, what there is
to know of the stream without its samples, and the digests of both files of tensors.
`model.safetensors` has what of the strategy's memory its predictions look at, and the network as
it was trained where adapters are merged in the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_runner.config.schema import Config, LoRA
from cl_runner.config.weights import WEIGHTS, digest
from cl_runner.core import Stream, Task, TrainState
from cl_runner.results.files import write_bytes, write_text
from cl_runner.results.names import MODEL, MODEL_MEMORY
from cl_runner.running import weights
from cl_runner.running.tasks import Member
from cl_runner.training.env import Env
from cl_runner.training.extractor import inputs_of
from cl_runner.version import __version__

FORMAT = 1  # of model.json; another number, another meaning
NETWORK, MEMORY = "network.", "memory."  # how the names in model.safetensors begin


class Noted(dict[str, Tensor]):
    """A memory that notes which of its tensors are looked at."""

    def __init__(self, memory: Mapping[str, Tensor]) -> None:
        super().__init__(memory)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.seen.add(key)
        return super().__getitem__(key)


def save(out: Path, config: Config, member: Member, s: TrainState) -> None:
    """Write the weights of a complete run, and what makes a model of them. Raises UserError.

    model.json is the last: where it is, the others are whole.
    """
    import safetensors.torch

    env = member.env
    s = settled(member, s)
    weights.save(out, s, env)
    tensors = {f"{MEMORY}{name}": v for name, v in s.memory.items()} | {"t": s.t}
    if isinstance(config.adapter, LoRA):
        tensors |= {f"{NETWORK}{name}": v for name, v in env.flat.module.state_dict().items()}
    tensors = {name: v.detach().cpu().contiguous().clone() for name, v in tensors.items()}
    write_bytes(out / MODEL_MEMORY, safetensors.torch.save(tensors))
    content = {
        "format": FORMAT,
        "cl_runner": __version__,
        "config": dict(config.resolved),
        "stream": described(env, config),
        "files": {name: digest(out / name) for name in (WEIGHTS, MODEL_MEMORY)},
    }
    write_text(out / MODEL, json.dumps(content, indent=1) + "\n")


@torch.no_grad()
def settled(member: Member, s: TrainState) -> TrainState:
    """The state with as much of its memory as predictions look at, for any task."""
    strategy, env = member
    env.flat.module.eval()
    s = strategy.settled(env.commit(s), env)
    noted = Noted(s.memory)
    stream = env.stream
    x = env.inputs(stream.x.new_zeros(1, *stream.x.shape[1:]))
    for task in range(len(stream)):
        strategy.predict(s._replace(memory=noted), x, task, env)
    env.flat.module.train()
    return s._replace(memory={name: s.memory[name] for name in sorted(noted.seen)})


def described(env: Env, config: Config) -> dict[str, Any]:
    """A run's stream as JSON, without its samples; of a run on features, that of the images."""
    stream, on, benchmark = env.stream, env.on_features, config.benchmark
    given = stream.x[:0] if stream.given is None else stream.given
    inputs = inputs_of(stream) if on is None else on.extractor.inputs
    resize, pad_to = (None, None) if stream.given is None else (benchmark.resize, benchmark.pad_to)
    sides = [*given.shape[2:]] if resize is None else [resize, resize]
    return {
        "scenario": stream.scenario,
        "boundaries": stream.boundaries,
        "dtype": str(given.dtype).removeprefix("torch."),
        "given_shape": list(given.shape[1:]),
        "resize": resize,
        "input_shape": [len(inputs.scale), *(sides if pad_to is None else [pad_to, pad_to])],
        "changed_by_tasks": stream.transform is not None,
        "scale": inputs.scale.flatten().tolist(),
        "shift": None if inputs.shift is None else inputs.shift.flatten().tolist(),
        "label": stream.label.tolist(),
        "outputs": list(outputs(stream)),
        "tasks": [
            {
                "name": task.name,
                "classes": list(own := names_of(task)),
                "names": [" / ".join(own[c]) or f"output {c}" for c in own],
                "train": len(task.train),
                "test": len(task.test),
            }
            for task in stream
        ],
    }


def names_of(task: Task) -> dict[int, list[str]]:
    """What a task's outputs stand for, each once, in ascending order; classes may have no name."""
    named: dict[int, dict[str, None]] = {c: {} for c in sorted(set(task.classes))}
    for c, name in zip(task.classes, task.names, strict=True):
        named[c] |= {name: None} if name else {}
    return {c: list(names) for c, names in named.items()}


def outputs(stream: Stream) -> Iterator[str]:
    """What each of the network's outputs stands for; of several classes all, in their tasks' order.

    An output that no task has, or that has no name, is called by its number.
    """
    every = [names_of(task) for task in stream]
    for c in range(stream.num_classes):
        names = dict.fromkeys(name for own in every for name in own.get(c, ()))
        yield " / ".join(names) or f"output {c}"
