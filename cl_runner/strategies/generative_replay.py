"""Deep generative replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.config.schema import Adam
from cl_runner.core import Batch, Task, TrainState, generator_for
from cl_runner.errors import check, one_of
from cl_runner.functional.generative import (
    answer_error,
    answers,
    critic_error,
    elbo_error,
    normal,
)
from cl_runner.functional.losses import cross_entropy
from cl_runner.nn.generators import GENERATORS, Scholar
from cl_runner.strategies.base import Aux, Strategy, without_meaning
from cl_runner.strategies.parts.pixels import has_pixels, to_inputs, to_pixels
from cl_runner.training import optim
from cl_runner.training.env import Env, kept, statistics

PARTS = {"vae": ("generator",), "gan": ("generator.decoder", "generator.critic")}
BETAS = {"vae": [0.9, 0.999], "gan": [0.5, 0.9]}  # of Adam; gan: Gulrajani et al.'s code for MNIST
POSITIVE = ("temperature", "latent_size", "generator_lr", "replay_batch_size", "critic_steps")
SAMPLES = 64  # in a picture


@dataclass(frozen=True, kw_only=True)
class GenerativeReplay(Strategy):
    """Replays what a generator, trained along, makes of the past (Shin et al. 2017, 1705.08690).

    The scholar is a classifier and a generator. In task t the old scholar, frozen after task t - 1,
    generates inputs x' and answers them, and both parts learn 1/t new data + (1 - 1/t) x':
      classifier: 1/t CE(f(x), y) + (1 - 1/t) CE(f(x'), old f(x')) by the run's optimizer,
      generator:  1/t G(x) + (1 - 1/t) G(x') by Adam with `generator_lr`, one step per step.
    Nothing of the old data is kept. In the first task the weight of x' is 0.
    - generator `vae`: G is the negative evidence lower bound, -E log p(x|z) + KL(q(z|x) | p(z)),
      Bernoulli pixels and Gaussian z (van de Ven & Tolias 2018, 1809.10635; van de Ven et al. 2022,
      Nature Machine Intelligence 4, 1185, whose code divides it by the number of pixels too).
      `gan`: a Wasserstein GAN with `gradient_penalty` (Gulrajani et al. 2017, 1704.00028), the kind
      Shin et al. use, here fully connected; each step takes `critic_steps` steps of the critic,
      with new latents but the same batch, where Gulrajani et al. take new batches, and then one of
      the decoder.
    - labels `hard`: the old classifier's likeliest class; `distillation`: its softmax at the
      `temperature`, against the new one's at the same; without the factor T^2, as in the nmi code.
    - An answer is over the classes seen before; in domain-incremental learning over all. In task-
      incremental learning x' has no task: each past task's outputs answer it, and the losses are
      averaged (as in the nmi code); likewise with training.active_classes=current.
    - hidden_sizes: of the encoder (or critic), reversed in the decoder; latent_size: of z.
    - replay_batch_size: number of x' per step; null: as many as the batch holds.
    The schedule of the learning rate is the classifier's alone. The old classifier answers in
    evaluation mode: without dropout, BatchNorm with the statistics it had when it was kept.
    """

    detectable: ClassVar[tuple[str, ...]] = ("domain",)  # else it must know old classes

    generator: str = "vae"
    labels: str = "distillation"
    temperature: float = 2.0
    hidden_sizes: list[int] = field(default_factory=lambda: [400, 400])
    latent_size: int = 100
    generator_lr: float = 1e-3
    replay_batch_size: int | None = None
    gradient_penalty: float = 10.0
    critic_steps: int = 5

    def __post_init__(self) -> None:
        one_of("strategy.generator", self.generator, tuple(GENERATORS))
        one_of("strategy.labels", self.labels, ("hard", "distillation"))
        for key in POSITIVE:
            value = getattr(self, key)
            check(value is None or value > 0, f"strategy.{key} must be positive, got {value}")
        check(
            all(size >= 1 for size in self.hidden_sizes),
            f"strategy.hidden_sizes must be positive, got {self.hidden_sizes}",
        )
        check(
            self.gradient_penalty >= 0,
            f"strategy.gradient_penalty must be at least 0, got {self.gradient_penalty}",
        )
        if self.labels == "hard":
            without_meaning(self, "strategy.labels=hard", "temperature")
        if self.generator == "vae":
            names = ("gradient_penalty", "critic_steps")
            without_meaning(self, "strategy.generator=vae", *names)

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        classifier = make_net()  # first: the initial weights that it has without a generator
        make = GENERATORS[self.generator]
        return Scholar(classifier, make(env.input_shape, self.hidden_sizes, self.latent_size))

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        R, Z = self.replay_batch_size or batch_size, self.latent_size
        N, k = batch_size + R, self.critic_steps
        if self.generator == "vae":
            return {"replay": (R, Z), "latent": (N, Z)}
        return {"replay": (R, Z), "fake": (k + 1, N, Z), "between": (k, N)}

    @property
    def softness(self) -> float | None:
        """The temperature of the old classifier's answers; None: its likeliest class."""
        return self.temperature if self.labels == "distillation" else None

    @property
    def adam(self) -> Adam:
        """The optimizer of the generator's parts."""
        return Adam(name="adam", lr=self.generator_lr, betas=BETAS[self.generator])

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            has_pixels(env.stream),
            f"strategy={self.name} needs images: uint8, or floats in [0, 1] for its pixels",
        )
        return kept("scholar", theta, env.flat.buffers) | self.fresh_slots(theta, env)

    def fresh_slots(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        """The slots of the generator's optimizer before its first step, by part."""
        return {
            f"{part}.{key}": value
            for part in PARTS[self.generator]
            for key, value in optim.init(self.adam, theta.detach()[span(env, part)]).items()
        }

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        memory = s.memory | kept("scholar", s.theta, s.buffers)
        if env.optimizer.reset:
            memory |= self.fresh_slots(s.theta, env)
        return s._replace(memory=memory)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        both = self.replay(s, batch, env)
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, both, env)
        old, own, aux = s.theta.detach(), span(env, "classifier"), {**aux, "loss": loss}
        s = env.update(s, grad)
        s = s._replace(theta=torch.cat([s.theta[own], old[own.stop :]]))
        if self.generator == "vae":
            return self.update(s, "generator", grad, env), aux
        for i in range(self.critic_steps):
            grad, _ = env.grad_and_value(partial(self.critic_loss, i))(s.theta, s, both, env)
            s = self.update(s, "generator.critic", grad, env)
        grad, _ = env.grad_and_value(self.decoder_loss)(s.theta, s, both, env)
        return self.update(s, "generator.decoder", grad, env), aux

    def replay(self, s: TrainState, batch: Batch, env: Env) -> Batch:
        """The batch [B] with R generated inputs behind its own.

        noise["answers"] [H, R, K] are the old classifier's, which stand for labels; noise["weight"]
        [B + R] weighs all inputs in a mean. In the first task inputs of the batch take the place of
        generated ones, so that BatchNorm sees no other.
        """
        B, scholar, share = len(batch.y), s.memory["scholar"], 1 / (s.t + 1)
        R = self.replay_batch_size or B
        again = torch.arange(R, device=batch.x.device) % B
        task = torch.cat([batch.task, torch.zeros_like(again)])  # the classifier ignores it
        x = to_inputs(self.decode(scholar, batch.noise["replay"][:R], env), env.stream)
        x = torch.where(s.t == 0, batch.x[again], x)
        logits = env.answers(scholar, x, task[B:], statistics(s.memory, "scholar"))
        answered = answers(logits, self.heads(s, env)[0], self.softness)
        new = x.new_ones(B) if batch.weight is None else batch.weight
        new, old = new * share / new.sum().clamp_min(1e-12), x.new_ones(R) * (1 - share) / R
        return batch._replace(
            x=torch.cat([batch.x, x]),
            task=task,
            noise=batch.noise | {"answers": answered, "weight": torch.cat([new, old])},
        )

    def heads(self, s: TrainState, env: Env) -> tuple[Tensor, Tensor]:
        """The sets of classes [H, K] over which an old input is answered, and their weights [H]."""
        past = torch.arange(env.num_tasks, device=s.t.device) < s.t  # [T]
        if per_task(env):
            return env.own_classes, past / s.t.clamp_min(1)
        return (env.own_classes & past[:, None]).any(0)[None], torch.ones_like(past[:1]).float()

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        """Of a batch as `replay` makes it."""
        B, share, (heads, counts) = len(batch.y), 1 / (s.t + 1), self.heads(s, env)
        logits = env.net(theta, batch.x, batch.task)
        new = cross_entropy(logits[:B], batch.y, batch.active, batch.weight)
        shown = heads if per_task(env) else env.active(torch.zeros_like(batch.task[:1]), s.t)
        old = answer_error(logits[B:], batch.noise["answers"], shown, self.softness).mean(-1)  # [H]
        loss = share * new + (1 - share) * (counts * old).sum()
        if self.generator == "vae":
            loss = loss + self.vae_loss(theta, batch, env)
        return loss, {"logits": logits[:B]}

    def vae_loss(self, theta: Tensor, batch: Batch, env: Env) -> Tensor:
        """The weighted mean of the negative evidence lower bound, in nats per pixel."""
        x, uniform = to_pixels(batch.x, env.stream), batch.noise["latent"][: len(batch.x)]
        encode, decode = (
            partial(env.flat.call, theta, task=0, part=part) for part in ("encode", "decode")
        )
        return (batch.noise["weight"] * elbo_error(encode, decode, x, uniform)).sum() / x[0].numel()

    def critic_loss(
        self, i: int, theta: Tensor, s: TrainState, batch: Batch, env: Env
    ) -> tuple[Tensor, Aux]:
        """The critic's i-th loss of a step, against the decoder of s.theta."""
        x, N = to_pixels(batch.x, env.stream), len(batch.x)
        fake = self.decode(s.theta, batch.noise["fake"][i, :N], env)
        critic, u = self.critic(theta, env), batch.noise["between"][i, :N]
        error = critic_error(critic, x, fake, u, self.gradient_penalty)
        return (batch.noise["weight"] * error).sum(), {}

    def decoder_loss(
        self, theta: Tensor, s: TrainState, batch: Batch, env: Env
    ) -> tuple[Tensor, Aux]:
        """The decoder's loss, against the critic of s.theta."""
        fake = self.decode(theta, batch.noise["fake"][-1, : len(batch.x)], env)
        return -self.critic(s.theta, env)(fake).mean(), {}

    def decode(self, theta: Tensor, uniform: Tensor, env: Env) -> Tensor:
        """Generated pixels [B, C, H, W] in [0, 1]; uniform: [B, Z]."""
        return env.flat.call(theta, normal(uniform), 0, part="decode").sigmoid()

    def critic(self, theta: Tensor, env: Env) -> Callable[[Tensor], Tensor]:
        """The critic with the parameters in theta: pixels [B, C, H, W] -> scores [B]."""
        return lambda x: env.flat.call(theta, x, 0, part="criticise")[:, 0]

    def update(self, s: TrainState, part: str, grad: Tensor, env: Env) -> TrainState:
        """The state after a step of Adam of a part of the generator along `grad` [P]."""
        own, prefix = span(env, part), f"{part}."
        slots = {k.removeprefix(prefix): v for k, v in s.memory.items() if k.startswith(prefix)}
        new, slots = optim.update(self.adam, s.theta[own], grad[own], slots)
        theta = torch.cat([s.theta[: own.start], new, s.theta[own.stop :]])
        return s._replace(theta=theta, memory=s.memory | {prefix + k: v for k, v in slots.items()})

    def pictures(self, s: TrainState, env: Env) -> dict[str, Tensor]:
        generator = generator_for(torch.device("cpu"), env.seed, "pictures")
        uniform = torch.rand(SAMPLES, self.latent_size, generator=generator).to(env.device)
        return {"samples": self.decode(s.theta.detach(), uniform, env)}


def per_task(env: Env) -> bool:
    """Whether a sample is scored on the classes of its own task, which a generated one has not."""
    only_own = env.stream.scenario == "class" and env.training.active_classes == "current"
    return env.stream.scenario == "task" or only_own


def span(env: Env, part: str) -> slice:
    """Where in theta the parameters of a part of the network lie, which are contiguous."""
    end = list(accumulate(env.flat.sizes))
    own = [i for i, name in enumerate(env.flat.names) if name.startswith(f"{part}.")]
    return slice(end[own[0]] - env.flat.sizes[own[0]], end[own[-1]])
