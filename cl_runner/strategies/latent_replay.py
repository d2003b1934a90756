"""Latent replay: activations are stored and replayed instead of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.buffers import Slots
from cl_runner.functional.losses import cross_entropy
from cl_runner.nn.networks import activation_shapes
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.replay import REFILLED, held_of, kept_of, load, store
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class LatentReplay(ER):
    """ER that stores the activations after the network's first `layer` stages, not the inputs.

    Pellegrini et al. 2020, arXiv 1912.01100. Incoming samples pass the lower stages; their
    activations and the stored ones then pass the upper stages together. For the stored ones to stay
    valid, from the second task on the lower stages learn at `lower_lr_factor` times the learning
    rate: with 0 they stay what the first task made of them, bit for bit, and replay is that of ER
    without its cost; above 0 the activations age. (It scales the optimizer's step, which for SGD
    and Adam is the same as scaling their learning rate.)

    The authors' code (vlomonaco/ar1-pytorch, AR1*) starts from a pre-trained network, frozen below
    the layer from the first batch on, with Batch Renormalisation there in evaluation mode. Here the
    first task is the pre-training: as in that code its steps replay nothing; at its end the
    activations that are held are computed anew. What one task has made of the lower stages need not
    serve the next: frozen, they leave this strategy far below naive fine-tuning on permuted MNIST
    (ACC on validation data .638, naive .761). So by default they go on learning, at a hundredth of
    the rate: .726 there, and .752 with buffer_size=1500, the authors' own. It costs little where
    tasks share their features: on validation data of split and permuted digits and MNIST and of
    rotated digits the mean ACC of eight cells is .789 with 0.01, .785 with 0, and falls above.

    A model with BatchNorm below the layer is refused, since what comes out of it depends on the
    batch and on statistics that go on moving. What is held is chosen by `policy`, as in ER (by
    default every sample so far is equally likely); in their code batch i replaces buffer_size / i
    random places by random samples of its own. Not here: what they combine it with (CWR* for the
    output layer, a penalty on the weights).

    What a step stores is what the upper stages saw: of the augmented input, if the run augments,
    and after dropout, if the lower stages have it. What is computed at the end of a task (of the
    first one, and of each where `policy` refills the buffer then) is of the plain input, in
    evaluation mode. The labels come from the rows of the training set; their images are read along
    with them and not used.
    """

    buffers_inputs: ClassVar[bool] = False
    uncounted: ClassVar[tuple[str, ...]] = ("lower",)  # follows from the architecture

    layer: int = 1
    lower_lr_factor: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            0 <= self.lower_lr_factor <= 1,
            f"strategy.lower_lr_factor must lie in [0, 1], got {self.lower_lr_factor}",
        )

    def needs_borders(self, scenario: str) -> str:
        return "it slows the lower stages down when the first task ends"

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        stages = len(activation_shapes(env.flat.module, env.input_shape))
        check(
            1 <= self.layer < stages,
            f"strategy.layer must lie between 1 and {stages - 1}, since this model has {stages} "
            f"stages, got {self.layer}",
        )
        lower = lower_parameters(env, self.layer)
        owners = {name.rpartition(".")[0] for name in lower}
        check(
            not any(f"{owner}.running_mean" in env.flat.buffers for owner in owners),
            f"strategy={self.name} needs a model without BatchNorm below strategy.layer="
            f"{self.layer}, where it would make the stored activations invalid",
        )
        views = env.flat.views(theta.detach())
        mask = torch.cat([torch.full_like(v.flatten(), n in lower) for n, v in views.items()])
        return super().init(theta, env) | {"lower": mask.bool()}

    def empty_slots(self, theta: Tensor, env: Env) -> Slots:
        shape = activation_shapes(env.flat.module, env.input_shape)[self.layer - 1]
        return {"latent": torch.zeros(self.places(env), *shape, device=env.device)}

    def keep(self, s: TrainState, batch: Batch, aux: Aux, env: Env) -> Slots:
        if not aux:
            return {"latent": env.answers(s.theta, batch.x, batch.task, last=self.layer)}
        return {"latent": aux["latent"].detach()}

    def draw(self, s: TrainState, batch: Batch, env: Env, which: str = "") -> Batch:
        replay = super().draw(s, batch, env, which)
        assert replay.weight is not None
        return replay._replace(weight=replay.weight * (s.t > 0))

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        replay = self.draw(s, batch, env)
        new = env.net(theta, batch.x, batch.task, last=self.layer)  # [B, ...]
        assert replay.weight is not None
        old = held_of(s, replay, "latent")
        again = new[torch.arange(len(old), device=new.device) % len(new)]  # as ER.draw has it
        filled = (replay.weight > 0).view(-1, *[1] * (old.dim() - 1))
        old = torch.where(filled, old, again)
        both = self.join(s, batch._replace(x=new), replay._replace(x=old))
        logits = env.net(theta, both.x, both.task, first=self.layer)
        loss = cross_entropy(logits, both.y, both.active, both.weight)
        return loss, {"logits": logits, "latent": new}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = Strategy.step(self, s, batch, env)
        slow = s.memory["lower"] & (s.t > 0)
        rate = torch.where(slow, self.lower_lr_factor, 1.0)
        new = new._replace(theta=torch.lerp(s.theta.detach(), new.theta, rate))
        return self.remember(new, batch, aux, env), aux

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        s = super().end_task(s, task, env)
        if task.index > 0 or self.policy in REFILLED:
            return s
        slots = load(s.memory)
        held = slots["index"] >= 0
        kept = kept_of(self.keep, s, slots["index"][held], slots["task"][held], env)
        latent = slots["latent"].clone()
        latent[held] = kept["latent"]
        return s._replace(memory=s.memory | store({"latent": latent}))


def lower_parameters(env: Env, layer: int) -> set[str]:
    """Names of the parameters on which the activations after the first `layer` stages depend."""
    flat = env.flat
    x = torch.zeros(2, *env.input_shape, device=env.device)  # two: BatchNorm takes no single one
    task = torch.zeros(2, dtype=torch.int64, device=env.device)
    with torch.enable_grad():
        output = env.net(flat.theta, x, task, last=layer).sum()
        if not output.requires_grad:  # nothing is trained there
            return set()
        grads = torch.autograd.grad(output, flat.parameters, allow_unused=True)
    return {name for name, grad in zip(flat.names, grads, strict=True) if grad is not None}
