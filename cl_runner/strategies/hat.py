"""Hard attention to the task: HAT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.losses import cross_entropy, weighted_mean
from cl_runner.nn.gated import Attention, chain, hidden_units
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.training.env import Env
from cl_runner.training.fit import plan

LARGEST_EMBEDDING = 6.0  # |e| is kept below it, and |s e| in the compensation below the next;
LARGEST_EXPONENT = 50.0  # both are the authors' code's thres_emb and thres_cosh


@dataclass(frozen=True, kw_only=True)
class HAT(Strategy):
    """Learns which units a task uses, and keeps those from later ones (Serra et al. 2018).

    arXiv 1801.01423; details are from the authors' hat.py and mlp_hat.py. Task t multiplies the
    hidden units by its attention a_t = sigmoid(s e_t), with trained embeddings e_t.
    - Within each epoch s grows linearly from 1 / s_max to s_max; at s_max, where a_t is almost
      binary, the network is tested and the cumulative attention A = max over tasks a_t is taken.
    - The step on the weight from unit j to unit i is multiplied by 1 - min(A_i, A_j); on i's bias,
      and on weights from the input, by 1 - A_i.
    - Loss + lambda sum_i a_i (1 - A_i) / sum_i (1 - A_i) (the paper's c): few units beyond those
      that earlier tasks use.
    - The embeddings' gradient is compensated for s: s_max / s (cosh(s e) + 1) / (cosh(e) + 1).
    Differences: the authors scale the gradient, for plain SGD, where scaling the step is the same;
    Adam would undo that, and momentum and weight decay go round it. Embeddings and outputs of other
    tasks do not move either. With `training.iterations` the sweeps of s are as many as the epochs
    that these make, rounded. The last step of a sweep is at s_max; in the authors' code it is one
    step short of it. The authors' gradient clipping at 10,000 is left out.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    uncounted: ClassVar[tuple[str, ...]] = ("free",)  # follows from what is claimed

    lambda_: float = 0.75
    s_max: float = 400.0

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(self.s_max > 1, f"strategy.s_max must be more than 1, got {self.s_max}")

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        network = chain(make_net(), self.name)
        units = hidden_units(network, env.input_shape)
        return Attention(network, units, torch.randn(env.num_tasks, sum(units)), self.s_max)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        count = torch.ones((), dtype=torch.int64, device=env.device)
        return {
            "claimed": torch.zeros_like(embeddings(theta.detach(), env)[0]),  # A [units]
            "free": torch.ones_like(theta, requires_grad=False),  # [P] factor on each step
            "remaining": count,  # steps of the task, this one included
            "period": count.clone(),  # steps in which s grows from 1 / s_max to s_max
        }

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        _, per_epoch, total = plan(len(task.train), env.training)
        period = -(-total // max(1, round(total / per_epoch)))
        memory = s.memory | {
            "free": free_share(s.memory["claimed"], task.index, env),
            "remaining": torch.full_like(s.memory["remaining"], total),
            "period": torch.full_like(s.memory["period"], period),
        }
        return s._replace(memory=memory)

    def scale(self, s: TrainState) -> Tensor:
        """The coming step's s, 0-d."""
        left = (s.memory["remaining"] - 1) % s.memory["period"]
        progress = 1 - left / (s.memory["period"] - 1).clamp_min(1)
        return 1 / self.s_max + (self.s_max - 1 / self.s_max) * progress

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        scale = self.scale(s)
        logits = env.flat.call(theta, batch.x, batch.task, scale=scale)
        loss = cross_entropy(logits, batch.y, batch.active, batch.weight)
        e = embeddings(theta, env).index_select(0, s.t.view(1))[0]
        sparsity = weighted_mean(torch.sigmoid(scale * e), 1 - s.memory["claimed"])
        return loss + self.lambda_ * sparsity, {"logits": logits}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        before = s.theta.detach()
        compensated = self.compensation(embeddings(before, env), self.scale(s))
        grad = with_embeddings(grad, embeddings(grad, env) * compensated, env)
        new = env.update(s, grad)
        theta = torch.lerp(before, new.theta, s.memory["free"])
        e = embeddings(theta, env).clamp(-LARGEST_EMBEDDING, LARGEST_EMBEDDING)
        memory = s.memory | {"remaining": s.memory["remaining"] - 1}
        new = new._replace(theta=with_embeddings(theta, e, env), memory=memory)
        return new, {**aux, "loss": loss}

    def compensation(self, e: Tensor, scale: Tensor) -> Tensor:
        """s_max / s (cosh(s e) + 1) / (cosh(e) + 1): the gradient as if s were always s_max."""
        exponent = (scale * e).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
        return self.s_max / scale * (exponent.cosh() + 1) / (e.cosh() + 1)

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        a = torch.sigmoid(self.s_max * embeddings(s.theta.detach(), env)[task.index])
        return s._replace(memory=s.memory | {"claimed": torch.maximum(s.memory["claimed"], a)})


def embeddings(vector: Tensor, env: Env) -> Tensor:
    """The part of a vector [P] that belongs to the embeddings, [T, units]."""
    return env.flat.views(vector)["table"]


def with_embeddings(vector: Tensor, part: Tensor, env: Env) -> Tensor:
    """The vector [P] with another such part."""
    parts = env.flat.views(vector) | {"table": part}
    return torch.cat([p.flatten() for p in parts.values()])


def free_share(claimed: Tensor, t: int, env: Env) -> Tensor:
    """The share of each parameter's step that task t may take, [P], from A [units]."""
    module = env.flat.module
    assert isinstance(module, Attention)
    free = torch.where(env.flat.output_mask(env.own_classes[t]), 1.0, 0.0)
    parts = env.flat.views(free)
    parts["table"][t] = 1.0
    names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    source = claimed.new_ones(1)
    for name, target in zip(names[:-1], claimed.split(module.units), strict=True):
        weight = parts[f"{name}.weight"]  # [units, inputs, ...]
        # A channel is the source of as many inputs as it has pixels when it is flattened.
        inputs = source.repeat_interleave(weight.shape[1] // len(source))
        used = torch.minimum(target[:, None], inputs)
        weight.copy_(1 - used.view(*used.shape, *(1,) * (weight.ndim - 2)))
        parts[f"{name}.bias"].copy_(1 - target)
        source = target
    return free
