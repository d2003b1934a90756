"""Variational continual learning: VCL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.config.schema import Adam
from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import UserError, check
from cl_runner.functional.generative import normal
from cl_runner.functional.losses import cross_entropy
from cl_runner.nn.networks import plain
from cl_runner.nn.variational import MeanField
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts.penalty import Quadratic
from cl_runner.training import optim
from cl_runner.training.env import Env


@dataclass(frozen=True, kw_only=True)
class VCL(Strategy):
    """The posterior of a task's weights is the next one's prior (Nguyen et al. 2018, 1710.10628).

    Each weight is a Gaussian of its own, q = N(m, s^2); the loss of task t is E_q of the mean
    cross-entropy + lambda / N KL(q | q_{t-1}), with N the samples of the task, q_0 = N(0, 1), and
    lambda = 1 in the paper (eq. 4). KL = sum_p log(s0 / s) + (s^2 + (m - m0)^2) / (2 s0^2) - 1/2.
    - Weights are drawn for each sample of a batch anew, by the outputs of each layer (local
      reparametrisation, as in Swaroop et al. 2019, 1905.02099); once, where the authors draw ten
      times for a whole batch.
    - The means' part of KL is a quadratic penalty, whose proximal step follows the optimizer's
      (`Quadratic.proximal_step`): the same minimum, and stable however narrow q_{t-1} is.
    - The widths, as log s, are trained by Adam with a rate of their own, `std_lr`: one step on a
      weight and on the logarithm of its width are not alike, and plain SGD moves the latter hardly
      at all. The authors train both by Adam 1e-3, for a hundred epochs.
    - Means begin as the model's own initial weights; the authors' are those of a network that was
      trained on the first task without widths. Widths begin at `initial_std`.
    - Outputs that no task has trained yet keep q_0 as their prior and stay as they are, like the
      authors' heads, which are made when their task begins.
    - It predicts by the means; the authors take the mean answer of 100 draws. What eval.online
      reads is the training step's own draw.
    - lambda below 1 is a posterior that is colder than the paper's. With few samples per parameter
      the bound itself prefers weights that are as wide as q_0 and say nothing: on permuted_digits,
      84 parameters a sample, lambda = 1 learns nothing. By default, and in few steps, widths do not
      get far from where they begin, and the penalty on the means stays near that of strategy=l2:
      lambda / (N initial_std^2) is its strength, so the two belong together.
    - What forgets seems to be the noise. Drawn weights keep the gradient from vanishing when a task
      is learnt, and Adam, whose steps do not shrink with it, goes on to move all means. On Split
      MNIST by task (Adam 1e-3, 500 steps a task, validation ACC, one seed; naive 0.907) it ends
      with initial_std = 0.001 at 0.974, 0.976 and 0.971 for a lambda of 0.0001, 0.01 and 0.1; with
      0.01 at 0.912 to 0.926 for lambdas from 0.001 to 0.1, though 0.01 is as strong as the first;
      with 0.05, lambda = 1 and std_lr = 0.01 at 0.847.
    Not here: coresets. It is for model=mlp. What is shown as the loss is with the widths' part of
    KL, up to a constant, and without the means'.
    """

    regulariser: ClassVar[bool] = True
    detectable: ClassVar[tuple[str, ...]] = ()
    uncounted: ClassVar[tuple[str, ...]] = ("trained",)  # follows from the tasks so far

    lambda_: float = 3e-5
    initial_std: float = 0.001
    std_lr: float = 0.003

    def __post_init__(self) -> None:
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(
            0 < self.initial_std <= 1,
            f"strategy.initial_std must lie in (0, 1], got {self.initial_std}",
        )
        check(self.std_lr > 0, f"strategy.std_lr must be positive, got {self.std_lr}")

    @property
    def adam(self) -> Adam:
        """The widths' optimizer."""
        return Adam(name="adam", lr=self.std_lr)

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        network = make_net()
        if not plain(network):
            needs = "model=mlp, model.norm=none, adapter=none and model.freeze=[]"
            raise UserError(f"strategy={self.name} needs {needs}")
        return MeanField(network, self.initial_std)

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        module = env.flat.module
        assert isinstance(module, MeanField)
        sizes = [bias.numel() for name, bias in module.mean.named_parameters() if "bias" in name]
        return {f"layer_{i}": (batch_size, size) for i, size in enumerate(sizes)}

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        zero = torch.zeros_like(theta, requires_grad=False)
        slots = optim.init(self.adam, zero[: len(zero) // 2])
        return {
            "prior": zero,  # m0 and log s0, [2 P]
            "trained": torch.ones_like(zero, dtype=torch.bool),
            "samples": torch.ones_like(slots["lr"]),  # N
        } | {f"std_{name}": slot for name, slot in slots.items()}

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        memory = s.memory | {
            "trained": trained(task.index, env),
            "samples": torch.full_like(s.memory["samples"], len(task.samples()[0])),
        }
        return s._replace(memory=memory)

    def means_penalty(self, s: TrainState) -> Quadratic:
        """KL's lambda / N sum_p (m - m0)^2 / (2 s0^2) of all parameters [2 P]: 0 on the widths."""
        m0, log_s0 = s.memory["prior"].chunk(2)
        precision = torch.exp(-2 * log_s0) * s.memory["trained"][: len(m0)]
        importance = torch.cat([precision, torch.zeros_like(m0)])
        return Quadratic(0.5 * self.lambda_ / s.memory["samples"], importance, s.memory["prior"])

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        noise = [normal(batch.noise[name][: len(batch.y)]) for name in self.noise(1, env)]
        logits = env.flat.call(theta, batch.x, batch.task, noise=noise)
        log_s, log_s0 = theta.chunk(2)[1], s.memory["prior"].chunk(2)[1]
        widths = 0.5 * (2 * (log_s - log_s0)).exp() - log_s
        divergence = (widths * s.memory["trained"][: len(log_s)]).sum()
        likelihood = cross_entropy(logits, batch.y, batch.active, batch.weight)
        loss = likelihood + self.lambda_ / s.memory["samples"] * divergence
        return loss, {"logits": logits}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, batch, env)
        slots = {k.removeprefix("std_"): v for k, v in s.memory.items() if k.startswith("std_")}
        widths, of_widths = s.theta.detach().chunk(2)[1], grad.chunk(2)[1].clone()
        new = self.means_penalty(s).proximal_step(env.update(s, grad), env)
        log_s, slots = optim.update(self.adam, widths, of_widths, slots)
        log_s = torch.where(s.memory["trained"][: len(log_s)], log_s, widths)
        theta = torch.cat([new.theta.chunk(2)[0], log_s])
        memory = s.memory | {f"std_{name}": slot for name, slot in slots.items()}
        return new._replace(theta=theta, memory=memory), {**aux, "loss": loss}

    def end_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        prior = torch.where(trained(task.index, env), s.theta.detach(), s.memory["prior"])
        return s._replace(memory=s.memory | {"prior": prior})


def trained(t: int, env: Env) -> Tensor:
    """Which parameters [2 P] some task up to t trains: all but the outputs of later tasks."""
    classes = env.own_classes[: t + 1].any(0)
    if env.active_table is None:
        classes = torch.ones_like(classes)
    later = env.flat.output_mask(~classes)  # of the last Linear layer: the widths'
    widths = later.chunk(2)[1]
    return ~torch.cat([widths, widths])
