"""Brain-inspired replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.config.schema import Adam
from cl_runner.core import Batch, Task, TrainState, generator_for
from cl_runner.errors import check
from cl_runner.functional.generative import (
    answer_error,
    answers,
    bernoulli_error,
    log_mixture,
    log_normal,
    normal,
    one_hot,
)
from cl_runner.functional.losses import cross_entropy
from cl_runner.nn.generators import Feedback, Scholar
from cl_runner.nn.networks import activation_shapes
from cl_runner.strategies.base import Aux, Strategy
from cl_runner.strategies.parts import scholar
from cl_runner.strategies.parts.costs import costs
from cl_runner.strategies.parts.generators import part
from cl_runner.strategies.parts.pixels import has_pixels, to_pixels
from cl_runner.training.env import Env, kept

PARTS = ("generator",)


@dataclass(frozen=True, kw_only=True)
class BIR(Strategy):
    """Brain-inspired replay (van de Ven, Siegelmann & Tolias 2020, Nature Communications 11, 4069).

    The classifier generates the past itself. From its features h(x) it also reads a code
    q(z|x) = N(m(h), diag v(h)), which a decoder turns back into pixels (replay through feedback).
    Each class c has a Gaussian prior p(z|c) with mean and variances that are learnt (conditional
    replay) and switches a share `gated` of each hidden layer of the decoder off (gating by internal
    context). In task t the network as it was after task t - 1 draws classes c seen before, z from
    p(z|c), decodes x' and answers it: a = softmax(f_old(x') / T), T the `temperature`. Learnt is
      1/t [CE(f(x), y) + G(x, y)] + (1 - 1/t) [-sum_c a_c log softmax(f(x') / T)_c + G(x', a)],
      G(x, a) = [-log p(x|z, gates a) + log q(z|x) - log sum_c a_c p(z|c)] / pixels, z from q(z|x),
    with Bernoulli pixels, and a = y for new samples; the gates of x' are the mean of its classes'
    by a. Nothing of the old data is kept. In the first task the weight of x' is 0.

    As in the authors' code (GMvandeVen/continual-learning, `--brain-inspired`) the divergence is
    estimated by the one z, the temperature is in the answers, in G and in the loss, without the
    factor T^2, log v has no bias, and an answer is over the outputs that the old network trained:
    all of them, or with training.active_classes=seen those of classes seen before. What differs:
    - They have one Adam. Here the classifier, its features among it, has the run's optimizer, and
      what is added has Adam with `generator_lr`: with optimizer=adam of that rate it is the same.
    - They draw each gate alone; here the share of each layer is exact, as in `xdg`.
    - In task-incremental learning, and with training.active_classes=current, x' belongs to the task
      of its class and is answered and scored on that task's classes, as theirs; but they replay
      equally many of each task, and in task-incremental learning they have no gates.
    In domain-incremental learning the gates are those of tasks, as theirs, and x' is of a class and
    of an old task, both drawn.
    - Internal replay, of what pretrained and frozen convolutions make of an image, is not here:
      inputs are replayed, as they do it on MNIST.
    hidden_sizes: of the decoder, from the pixels inwards, as in `generative_replay`.
    """

    detectable: ClassVar[tuple[str, ...]] = ("domain",)  # else it must know old classes
    tells_cost: ClassVar[bool] = True
    uncounted: ClassVar[tuple[str, ...]] = ("gates",)  # follow from the seed

    temperature: float = 2.0
    gated: float = 0.1
    hidden_sizes: list[int] = field(default_factory=lambda: [400, 400])
    latent_size: int = 100
    generator_lr: float = 1e-3
    replay_batch_size: int | None = None

    def __post_init__(self) -> None:
        for key in ("temperature", "latent_size", "generator_lr", "replay_batch_size"):
            value = getattr(self, key)
            check(value is None or value > 0, f"strategy.{key} must be positive, got {value}")
        check(0 <= self.gated < 1, f"strategy.gated must lie in [0, 1), got {self.gated}")
        check(
            all(size >= 1 for size in self.hidden_sizes),
            f"strategy.hidden_sizes must be positive, got {self.hidden_sizes}",
        )

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        classifier = make_net()  # first: the initial weights that it has without a generator
        *_, features, _ = (env.input_shape, *activation_shapes(classifier, env.input_shape))
        sizes = (self.hidden_sizes, self.latent_size, env.num_classes)
        return Scholar(classifier, Feedback(math.prod(features), env.input_shape, *sizes))

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        R, Z = self.replay_batch_size or batch_size, self.latent_size
        return {"class": (R,), "replay": (R, Z), "latent": (batch_size + R, Z)}

    @property
    def adam(self) -> Adam:
        """The optimizer of all but the classifier."""
        return Adam(name="adam", lr=self.generator_lr)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            has_pixels(env.stream),
            f"strategy={self.name} needs images: uint8, or floats in [0, 1] for its pixels",
        )
        slots = scholar.fresh_slots(self.adam, PARTS, theta, env)
        return kept("scholar", theta, env.flat.buffers) | slots | {"gates": self.gates(env)}

    def gates(self, env: Env) -> Tensor:
        """Which hidden units of the decoder are on, 1 or 0: [classes or tasks, units]."""
        contexts = env.num_tasks if env.stream.scenario == "domain" else env.num_classes
        generator = generator_for(torch.device("cpu"), env.seed, "gates")
        tables = []
        for n in self.hidden_sizes[::-1]:
            off = round(self.gated * n)
            check(
                off < n, f"strategy.gated={self.gated} leaves no unit of a layer of {n}; lower it"
            )
            order = torch.rand(contexts, n, generator=generator).argsort(1).argsort(1)
            tables.append((order >= off).float())
        return torch.cat([*tables, torch.zeros(contexts, 0)], 1).to(env.device)

    def notes(self, env: Env) -> Iterator[str]:
        yield from costs(self, env, "smaller strategy.hidden_sizes")

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        return scholar.begin_task(s, self.adam, PARTS, env)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        both = self.replay(s, batch, env)
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, both, env)
        s = scholar.classifier_step(s, grad, env)
        return scholar.adam_step(s, self.adam, "generator", grad, env), {**aux, "loss": loss}

    def replay(self, s: TrainState, batch: Batch, env: Env) -> Batch:
        """The batch [B] with R generated inputs behind its own.

        noise["answers"] [B + R, K]: labels, and what the old classifier says in their stead;
        noise["gates"] [B + R, units]: the decoder's.
        """
        past, u, K = scholar.before(s.t, env), batch.noise, env.num_classes
        R = self.replay_batch_size or len(batch.y)
        y, task = scholar.drawn(u["class"][:R], past, env)
        pixels = self.generated(s.memory["scholar"], y, task, u["replay"][:R], s, env)
        both = scholar.followed(batch, pixels, task, s, env)
        trained = scholar.classes_of(past, env) | (not env.active_by_time)
        heads = env.own_classes[task] if scholar.per_task(env) else trained[None]
        (old,) = answers(scholar.old_logits(s, both, env), heads[None], self.temperature)
        answered = torch.cat([one_hot(batch.y, K), old])
        gates = self.gates_of(answered, torch.cat([s.t.expand(len(batch.y)), task]), s, env)
        return both._replace(noise=both.noise | {"answers": answered, "gates": gates})

    def gates_of(self, classes: Tensor, task: Tensor, s: TrainState, env: Env) -> Tensor:
        """The decoder's gates [N, units] for shares of classes [N, K], or in domain-IL of tasks."""
        table = s.memory["gates"]
        return table[task] if env.stream.scenario == "domain" else classes @ table

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        """Of a batch as `replay` makes it."""
        B, share, answered = len(batch.y), 1 / (s.t + 1), batch.noise["answers"]
        features = env.net(theta, batch.x, batch.task, last=-1)
        logits = env.net(theta, features, batch.task, first=-1)
        new = cross_entropy(logits[:B], batch.y, batch.active, batch.weight)
        shown = env.active(batch.task[B:], s.t)
        shown = None if shown is None else shown[None]
        old = answer_error(logits[B:], answered[None, B:], shown, self.temperature).mean()
        own = (batch.noise["weight"] * self.generator_error(theta, features, batch, env)).sum()
        return share * new + (1 - share) * old + own, {"logits": logits[:B]}

    def generator_error(self, theta: Tensor, features: Tensor, batch: Batch, env: Env) -> Tensor:
        """G of all inputs [B + R], in nats per pixel."""
        x, answered = to_pixels(batch.x, env.stream), batch.noise["answers"]
        mean, log_variance = part(theta, features, "encode", env).chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * normal(batch.noise["latent"][: len(x)])
        priors = part(theta, z, "prior", env).chunk(2, 1)
        divergence = log_normal(z, mean, log_variance) - log_mixture(z, answered, *priors)
        pixels = part(theta, z, "decode", env, gates=batch.noise["gates"])
        return (bernoulli_error(pixels, x) + divergence) / x[0].numel()

    def generated(
        self, theta: Tensor, y: Tensor, task: Tensor, uniform: Tensor, s: TrainState, env: Env
    ) -> Tensor:
        """Pixels [R, C, H, W] of classes and tasks [R], by uniforms [R, Z] and network theta."""
        mean, log_variance = part(theta, uniform, "prior", env)[y].chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * normal(uniform)
        gates = self.gates_of(one_hot(y, env.num_classes), task, s, env)
        return part(theta, z, "decode", env, gates=gates).sigmoid()

    def pictures(self, s: TrainState, env: Env) -> dict[str, Tensor]:
        return {"samples": self.samples(s, scholar.SAMPLES, env)}

    def samples(self, s: TrainState, number: int, env: Env) -> Tensor:
        """Generated pixels [number, C, H, W] of all classes so far, in order."""
        generator = generator_for(torch.device("cpu"), env.seed, "pictures")
        uniform = torch.rand(number, self.latent_size, generator=generator).to(env.device)
        y, task = scholar.so_far(number, s, env)
        return self.generated(s.theta.detach(), y, task, uniform, s, env)
