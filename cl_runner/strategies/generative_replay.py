"""Deep generative replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState, generator_for
from cl_runner.errors import check, one_of
from cl_runner.functional.generative import answer_error, answers
from cl_runner.functional.losses import cross_entropy
from cl_runner.nn.generators import Scholar
from cl_runner.strategies.base import Aux, Strategy, without_meaning
from cl_runner.strategies.parts import scholar
from cl_runner.strategies.parts.costs import costs
from cl_runner.strategies.parts.generators import GAN, VAE, Diffusion, Generator
from cl_runner.strategies.parts.pixels import has_pixels
from cl_runner.training.env import Env, kept

OWN = {  # the fields that only some generators have
    "vae": ("latent_size",),
    "gan": ("latent_size", "gradient_penalty", "critic_steps"),
    "diffusion": ("diffusion_steps", "sampling_steps"),
}
POSITIVE = (
    *("temperature", "latent_size", "generator_lr", "replay_batch_size", "critic_steps"),
    *("diffusion_steps", "sampling_steps"),
)


@dataclass(frozen=True, kw_only=True)
class GenerativeReplay(Strategy):
    """Replays samples of the past that a generator makes (Shin et al. 2017, arXiv 1705.08690).

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
      `diffusion`: a denoiser that is asked for a class (Ho et al. 2020, 2006.11239; Nichol &
      Dhariwal 2021, 2102.09672), fully connected: G is -log p(x | noisy x, time, y) of Bernoulli
      pixels, a prediction of x itself, at one of `diffusion_steps` times of the cosine schedule.
      A sample is made in `sampling_steps` steps without noise (Song et al. 2020, 2010.02502), of a
      class drawn from those seen before, which is y then; in domain-incremental learning it is a
      class as one of the old tasks shows it.
    - labels `hard`: the old classifier's likeliest class; `distillation`: its softmax at the
      `temperature`, against the new one's at the same; without the factor T^2, as in the nmi code.
    - An answer is over the classes seen before; in domain-incremental learning over all. In task-
      incremental learning x' has no task: each past task's outputs answer it, and the losses are
      averaged (as in the nmi code); likewise with training.active_classes=current. What a class was
      drawn for belongs to the task of the class, and that task's outputs alone answer it.
    - hidden_sizes: of the encoder (or critic), reversed in the decoder; of the denoiser;
      latent_size: of z.
    - replay_batch_size: number of x' per step; null: as many as the batch holds.
    The schedule of the learning rate is the classifier's alone. The old classifier answers in
    evaluation mode: without dropout, BatchNorm with the statistics it had when it was kept.
    """

    tells_cost: ClassVar[bool] = True
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
    diffusion_steps: int = 100
    sampling_steps: int = 10

    def __post_init__(self) -> None:
        one_of("strategy.generator", self.generator, tuple(OWN))
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
        others = {name for names in OWN.values() for name in names} - {*OWN[self.generator]}
        without_meaning(self, f"strategy.generator={self.generator}", *others)
        check(
            self.sampling_steps <= self.diffusion_steps,
            f"strategy.sampling_steps must be at most strategy.diffusion_steps="
            f"{self.diffusion_steps}, got {self.sampling_steps}",
        )

    @property
    def model(self) -> Generator:
        """The generator, with those of our fields that are its own."""
        kinds: dict[str, type[Generator]] = {"vae": VAE, "gan": GAN, "diffusion": Diffusion}
        own: dict[str, Any] = {name: getattr(self, name) for name in OWN[self.generator]}
        kind = kinds[self.generator]
        return kind(hidden_sizes=self.hidden_sizes, lr=self.generator_lr, **own)

    @property
    def softness(self) -> float | None:
        """The temperature of the old classifier's answers; None: its likeliest class."""
        return self.temperature if self.labels == "distillation" else None

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        classifier = make_net()  # first: the initial weights that it has without a generator
        return Scholar(classifier, self.model.network(env))

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        R = self.replay_batch_size or batch_size
        return self.model.noise(batch_size + R, R, env)

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check(
            has_pixels(env.stream),
            f"strategy={self.name} needs images: uint8, or floats in [0, 1] for its pixels",
        )
        slots = scholar.fresh_slots(self.model.adam, self.model.parts, theta, env)
        return kept("scholar", theta, env.flat.buffers) | slots

    def notes(self, env: Env) -> Iterator[str]:
        lower = "smaller strategy.hidden_sizes and strategy.replay_batch_size"
        yield from costs(self, env, lower, always=self.generator == "diffusion")

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        return scholar.begin_task(s, self.model.adam, self.model.parts, env)

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        both = self.replay(s, batch, env)
        grad, (loss, aux) = env.grad_and_value(self.loss)(s.theta, s, both, env)
        s = scholar.classifier_step(s, grad, env)
        return self.model.step(s, grad, both, env), {**aux, "loss": loss}

    def replay(self, s: TrainState, batch: Batch, env: Env) -> Batch:
        """The batch [B] with R generated inputs behind its own.

        noise["answers"] [H, R, K] are the old classifier's, which stand for labels, and
        noise["bins"] [B + R] what each input is an example of (see `Env.bins`).
        """
        R, model = self.replay_batch_size or len(batch.y), self.model
        uniform = batch.noise["replay"][:R]
        y = task = torch.zeros(R, dtype=torch.int64, device=uniform.device)
        if model.conditional:
            y, task = scholar.drawn(batch.noise["class"][:R], scholar.before(s.t, env), env)
        pixels = model.sample(s.memory["scholar"], uniform, env.bins(y, task), env)
        both = scholar.followed(batch, pixels, task, s, env)
        heads, _ = self.heads(s, task, env)
        answered = answers(scholar.old_logits(s, both, env), heads, self.softness)
        present = s.t.expand(len(batch.y))  # as far as it knows, where borders are detected
        bins = torch.cat([env.bins(batch.y, present), env.bins(y, task)])
        return both._replace(noise=both.noise | {"answers": answered, "bins": bins})

    def heads(self, s: TrainState, task: Tensor, env: Env) -> tuple[Tensor, Tensor]:
        """The sets of classes [H, 1 or R, K] over which old inputs are answered, and weights [H].

        task: those of the old inputs [R], if the generator knows them.
        """
        past = scholar.before(s.t, env)  # [T]
        if scholar.per_task(env) and not self.model.conditional:
            return env.own_classes[:, None], past / s.t.clamp_min(1)
        own = env.own_classes[task] if scholar.per_task(env) else scholar.classes_of(past, env)
        return own.view(1, -1, env.num_classes), torch.ones_like(past[:1]).float()

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        """Of a batch as `replay` makes it."""
        B, share = len(batch.y), 1 / (s.t + 1)
        task = batch.task[B:]
        heads, counts = self.heads(s, task, env)
        logits = env.net(theta, batch.x, batch.task)
        new = cross_entropy(logits[:B], batch.y, batch.active, batch.weight)
        shown = heads if scholar.per_task(env) else scored(env.active(task[:1], s.t))
        old = answer_error(logits[B:], batch.noise["answers"], shown, self.softness).mean(-1)  # [H]
        loss = share * new + (1 - share) * (counts * old).sum() + self.model.loss(theta, batch, env)
        return loss, {"logits": logits[:B]}

    def pictures(self, s: TrainState, env: Env) -> dict[str, Tensor]:
        return {"samples": self.samples(s, scholar.SAMPLES, env)}

    def samples(self, s: TrainState, number: int, env: Env) -> Tensor:
        """Generated pixels [number, C, H, W]; where classes are asked for, all so far in order."""
        generator = generator_for(torch.device("cpu"), env.seed, "pictures")
        shape = self.model.noise(number, number, env)["replay"]
        uniform = torch.rand(shape, generator=generator).to(env.device)
        bins = env.bins(*scholar.so_far(number, s, env))
        return self.model.sample(s.theta.detach(), uniform, bins, env)


def scored(active: Tensor | None) -> Tensor | None:
    """The classes on which all generated inputs are scored, [1, 1, K]; None: all."""
    return None if active is None else active[None]
