"""Gradients of logits, and the inputs of layers, measured in one pass over a task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.projection import layer_inputs
from cl_runner.training.env import Env

CHUNK = 2**26  # elements of single samples' gradients at once: 256 MiB


def logit_gradients(s: TrainState, task: Task, env: Env, *, number: int, every: bool) -> Tensor:
    """Gradients [at most `number`, P] of single samples' logits, random samples of a task.

    Of each sample's true class; or, if `every`, of every class active in training, and of as many
    samples as then fit into `number`.
    """
    active = env.active(torch.full_like(s.t, task.index).view(1), s.t)
    classes = torch.arange(env.num_classes, device=env.device)
    classes = classes if active is None else classes[active[0]]

    def logit(theta: Tensor, x: Tensor, task: Tensor, c: Tensor) -> Tensor:
        return env.net(theta, x[None], task[None])[0].gather(0, c[None])[0]

    gradients = torch.func.vmap(torch.func.grad(logit), in_dims=(None, 0, 0, 0))
    chunk = max(1, CHUNK // s.theta.numel())

    def collect(rows: list[Tensor], batch: Batch) -> list[Tensor]:
        c = classes.expand(len(batch.y), -1) if every else batch.y[:, None]
        n = torch.arange(len(c), device=c.device)[:, None].expand_as(c).flatten()
        for part, label in zip(n.split(chunk), c.flatten().split(chunk), strict=True):
            rows.append(gradients(s.theta.detach(), batch.x[part], batch.task[part], label))
        return rows

    samples = number // len(classes) if every else number
    none: list[Tensor] = []
    rows, _ = env.fold(collect, none, s, task, samples=samples)
    return torch.cat(rows)


def matrix_layers(env: Env, strategy: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of the network by name, in its order. Raises UserError for other kinds."""
    found = {}
    for name, module in env.flat.module.named_modules():
        whole = all(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Conv2d) and whole:
            found[name] = module
        else:
            check(
                next(module.parameters(recurse=False), None) is None,
                f"strategy={strategy} knows Linear and Conv2d layers only, and the model's "
                f"{name} is a {type(module).__name__}{'' if whole else ', frozen'}; use model=mlp "
                "or model=cnn, adapter=none and model.freeze=[]",
            )
    return found


def shared_layers(env: Env, strategy: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """`matrix_layers` without the output layer where each task has outputs of its own."""
    found = matrix_layers(env, strategy)
    if env.stream.scenario == "task":
        found.popitem()
    return found


def input_grams(
    s: TrainState,
    task: Task,
    env: Env,
    layers: Mapping[str, nn.Module],
    *,
    samples: int | None,
    ones: bool = False,
) -> dict[str, Tensor]:
    """R R^T [d, d] float64 of each layer's inputs R [d, n], on random samples of a task.

    samples: how many; None: all. ones: with a 1 appended to the inputs of layers that have a bias.
    """
    grams: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = layer_inputs(layer, inputs[0]).double()
            if ones and layer.bias is not None:
                x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            grams[name] = grams[name] + x.T @ x if name in grams else x.T @ x

        return layers[name].register_forward_pre_hook(add)

    def look(_: None, batch: Batch) -> None:
        env.net(s.theta, batch.x, batch.task)

    handles = [watch(name) for name in layers]
    try:
        with torch.no_grad():
            env.fold(look, None, s, task, samples=samples)
    finally:
        for handle in handles:
            handle.remove()
    return grams
