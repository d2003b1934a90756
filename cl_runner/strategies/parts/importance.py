"""Importances of parameters, measured in one pass over a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check, one_of
from cl_runner.functional.importance import (
    FACTOR_BYTES,
    LABEL_RULES,
    Cotangents,
    Forward,
    Size,
    Use,
    add_gradient_sizes,
    ruled_layers,
    score_cotangents,
    split,
    traced,
)
from cl_runner.functional.kronecker import Factors, add_factors, mirrored
from cl_runner.training.env import Env


def check_fisher(labels: str, samples: int | None) -> None:
    """Refuse what `fisher_diagonal` cannot be asked for."""
    one_of("strategy.fisher_labels", labels, LABEL_RULES)
    check(
        samples is None or samples >= 1,
        f"strategy.fisher_samples must be at least 1, got {samples}",
    )


def mean_gradient_sizes(
    s: TrainState,
    task: Task,
    env: Env,
    cotangents_of: Cotangents,
    size: Size,
    samples: int | None,
) -> Tensor:
    """Mean over a task's training samples of sum_c size(d <g_c, f(x)> / d theta), as [P].

    `cotangents_of(logits, batch)` gives the vectors g_c [B, K]. `samples` asks for a random subset.
    Dropout is off and BatchNorm uses its running statistics. Networks that RULES do not cover, or
    that use a layer more than once, are differentiated sample by sample.
    """

    def forward(batch: Batch) -> Tensor:
        return env.net(s.theta, batch.x, batch.task)

    layers, at_once = by_rules(first_sample(s.t, task, env), env, forward)

    def add(total: Tensor, batch: Batch) -> Tensor:
        if not layers:
            return total.add_(sample_by_sample(batch))
        views = env.flat.views(total).values()
        sums = {id(p): view for p, view in zip(env.flat.parameters, views, strict=True)}
        for part in split(batch, at_once):
            add_gradient_sizes(sums, layers, forward, part, cotangents_of, size)
        return total

    def sample_by_sample(batch: Batch) -> Tensor:
        def score(theta: Tensor, x: Tensor, task: Tensor, g: Tensor) -> Tensor:
            return (env.net(theta, x[None], task[None]) * g).sum()

        gradients = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0, 0, 0))
        theta = s.theta.detach()
        sums = torch.zeros_like(theta)
        for part in split(batch, FACTOR_BYTES // theta.nbytes):
            with torch.no_grad():
                logits = forward(part)
            for g in cotangents_of(logits, part):
                sums += size(gradients(theta, part.x, part.task, g)).sum(0)
        return sums

    total = torch.zeros_like(s.theta, requires_grad=False)
    total, count = env.fold(add, total, s, task, samples=samples)
    return total / count


def by_rules(one: Batch, env: Env, forward: Forward) -> tuple[list[nn.Module], int]:
    """The layers whose gradients follow RULES, if all do, and how many samples to take at once."""
    uses = ruled_uses(one, env, forward)
    return [use.layer for use in uses], FACTOR_BYTES // max(1, sum(u.factor.nbytes for u in uses))


def ruled_uses(one: Batch, env: Env, forward: Forward) -> list[Use]:
    """What a pass of one sample makes of the layers; nothing, unless RULES hold for all of it."""
    env.flat.module.eval()
    layers = ruled_layers(env.flat.module)
    _, uses = traced(layers, forward, one)
    env.flat.module.train()
    each_once = sorted(id(use.layer) for use in uses) == sorted(id(layer) for layer in layers)
    as_ruled = all(use.factor.dim() == 3 and len(use.factor) == 1 for use in uses)
    return uses if each_once and as_ruled else []


def first_sample(t: Tensor, task: Task, env: Env) -> Batch:
    """A batch of one of a task's samples. t: 0-d, for which classes count as seen."""
    index, tasks = task.samples()
    return env.gather(index[:1], tasks if isinstance(tasks, int) else tasks[:1], t)


def fisher_diagonal(
    s: TrainState, task: Task, env: Env, *, labels: str, samples: int | None
) -> Tensor:
    """F [P]: mean over a task's training samples (or `samples` of them) of squared scores.

    labels: one of LABEL_RULES. The classes are those active in training.
    """
    return mean_gradient_sizes(s, task, env, scores(labels), torch.square, samples)


def scores(labels: str) -> Cotangents:
    """Those of log p, over the classes active in training, by one of LABEL_RULES."""

    def cotangents(logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        return score_cotangents(logits, batch.y, batch.active, labels, batch.noise["label"])

    return cotangents


def kronecker_factors(
    s: TrainState, task: Task, env: Env, *, labels: str, samples: int | None
) -> dict[str, Factors]:
    """A and G of each layer, by its name: means over a task's training samples (or `samples`).

    labels: one of LABEL_RULES. The classes are those active in training; dropout is off.
    """

    def forward(batch: Batch) -> Tensor:
        return env.net(s.theta, batch.x, batch.task)

    names = structured_layers(env)
    layers, at_once = by_rules(first_sample(s.t, task, env), env, forward)

    def add(sums: dict[nn.Module, Factors], batch: Batch) -> dict[nn.Module, Factors]:
        for part in split(batch, at_once):
            add_factors(sums, layers, forward, part, scores(labels))
        return sums

    zero = {use.layer: empty_factors(use, s.theta.detach()) for use in names.values()}
    sums, count = env.fold(add, zero, s, task, samples=samples)
    return {
        name: Factors(*(mirrored(upper) / count for upper in sums[use.layer]))
        for name, use in names.items()
    }


def structured_layers(env: Env) -> dict[str, Use]:
    """The layers of the network, and what a sample's pass makes of each, by their names.

    Raises UserError unless these are Linear and Conv2d layers that hold all parameters, each used
    once.
    """

    def forward(batch: Batch) -> Tensor:
        return env.net(env.flat.theta, batch.x, batch.task)

    first = env.stream[0]
    t = torch.zeros((), dtype=torch.int64, device=first.train.device)
    uses = {use.layer: use for use in ruled_uses(first_sample(t, first, env), env, forward)}
    named = {name: m for name, m in env.flat.module.named_modules() if m in uses}
    known = all(
        isinstance(m, nn.Linear | nn.Conv2d) and all(p.requires_grad for p in m.parameters())
        for m in named.values()
    )
    check(
        bool(named) and known,
        "strategy.curvature=kron needs a model whose parameters are all in Linear and Conv2d "
        "layers, each used once, without BatchNorm: use model=mlp or model=cnn, or "
        "strategy.curvature=diagonal",
    )
    return {name: uses[m] for name, m in named.items()}


def empty_factors(use: Use, like: Tensor) -> Factors:
    """A and G of a layer before any sample: all 0, of the kind of `like`."""
    layer = use.layer
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    inputs = layer.weight[0].numel() + (layer.bias is not None)
    return Factors(*(like.new_zeros(n, n) for n in (inputs, len(layer.weight))))


def output_sensitivity(s: TrainState, task: Task, env: Env, *, samples: int | None) -> Tensor:
    """Omega [P]: mean over samples of |d |f(x)|^2 / d theta|, of the outputs active in training.

    Aljundi et al. 2018, arXiv 1711.09601, eq. 2 and section 4.1: needs no labels.
    """

    def outputs(logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        return [2 * (logits if batch.active is None else logits * batch.active)]

    return mean_gradient_sizes(s, task, env, outputs, torch.abs, samples)
