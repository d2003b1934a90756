"""The generators of generative replay: network, noise, loss and steps of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from cl_runner.config.schema import Adam
from cl_runner.core import Batch, TrainState
from cl_runner.functional import diffusion
from cl_runner.functional.generative import bernoulli_error, critic_error, elbo_error, normal
from cl_runner.nn import generators as networks
from cl_runner.strategies.parts import scholar
from cl_runner.strategies.parts.pixels import to_pixels
from cl_runner.training.env import Env

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Generator:
    """The interface of a generator in generative replay.

    Its step, unless it says otherwise, is one of Adam along the gradient of the loss that it has in
    common with the classifier.
    """

    parts: ClassVar[tuple[str, ...]] = ("generator",)  # those with an optimizer of their own
    betas: ClassVar[list[float]] = [0.9, 0.999]  # of Adam
    conditional: ClassVar[bool] = False  # whether it is asked for a class

    hidden_sizes: list[int]
    lr: float

    @property
    def adam(self) -> Adam:
        """The optimizer of each part."""
        return Adam(name="adam", lr=self.lr, betas=self.betas)

    def network(self, env: Env) -> nn.Module:
        """The network, with the weights that it begins with."""
        raise NotImplementedError

    def noise(self, N: int, R: int, env: Env) -> Shapes:
        """The uniforms of a step that learns N inputs, the R of them that are made of `replay`."""
        raise NotImplementedError

    def sample(self, theta: Tensor, uniform: Tensor, bins: Tensor, env: Env) -> Tensor:
        """Generated pixels [R, C, H, W] in [0, 1] by uniforms [R, ...].

        Those of a conditional generator are examples of `bins` [R] (see `Env.bins`).
        """
        raise NotImplementedError

    def loss(self, theta: Tensor, both: Batch, env: Env) -> Tensor | float:
        """The term added to the classifier's loss; the batch ends with the generated inputs."""
        raise NotImplementedError

    def step(self, s: TrainState, grad: Tensor, both: Batch, env: Env) -> TrainState:
        """The state after the generator's step; grad [P]: of the loss."""
        return scholar.adam_step(s, self.adam, "generator", grad, env)


@dataclass(frozen=True, kw_only=True)
class VAE(Generator):
    """Variational autoencoder: the loss is the negative evidence lower bound, in nats per pixel."""

    latent_size: int

    def network(self, env: Env) -> nn.Module:
        return networks.VAE(env.input_shape, self.hidden_sizes, self.latent_size)

    def noise(self, N: int, R: int, env: Env) -> Shapes:
        return {"replay": (R, self.latent_size), "latent": (N, self.latent_size)}

    def sample(self, theta: Tensor, uniform: Tensor, bins: Tensor, env: Env) -> Tensor:
        return part(theta, normal(uniform), "decode", env).sigmoid()

    def loss(self, theta: Tensor, both: Batch, env: Env) -> Tensor:
        x, uniform = to_pixels(both.x, env.stream), both.noise["latent"][: len(both.x)]
        encode, decode = (partial(part, theta, name=n, env=env) for n in ("encode", "decode"))
        return (both.noise["weight"] * elbo_error(encode, decode, x, uniform)).sum() / x[0].numel()


@dataclass(frozen=True, kw_only=True)
class GAN(Generator):
    """Wasserstein GAN with gradient penalty.

    A step is `critic_steps` steps of the critic, with new latents but the same batch, and then one
    of the decoder. The classifier's loss is its own.
    """

    parts: ClassVar[tuple[str, ...]] = ("generator.decoder", "generator.critic")
    betas: ClassVar[list[float]] = [0.5, 0.9]  # in the code of Gulrajani et al. for MNIST

    latent_size: int
    gradient_penalty: float
    critic_steps: int

    def network(self, env: Env) -> nn.Module:
        return networks.GAN(env.input_shape, self.hidden_sizes, self.latent_size)

    def noise(self, N: int, R: int, env: Env) -> Shapes:
        k, Z = self.critic_steps, self.latent_size
        return {"replay": (R, Z), "fake": (k + 1, N, Z), "between": (k, N)}

    def sample(self, theta: Tensor, uniform: Tensor, bins: Tensor, env: Env) -> Tensor:
        return part(theta, normal(uniform), "decode", env).sigmoid()

    def loss(self, theta: Tensor, both: Batch, env: Env) -> float:
        return 0.0

    def step(self, s: TrainState, grad: Tensor, both: Batch, env: Env) -> TrainState:
        for i in range(self.critic_steps):
            grad, _ = env.grad_and_value(partial(self.critic_loss, i))(s.theta, s, both, env)
            s = scholar.adam_step(s, self.adam, "generator.critic", grad, env)
        grad, _ = env.grad_and_value(self.decoder_loss)(s.theta, s, both, env)
        return scholar.adam_step(s, self.adam, "generator.decoder", grad, env)

    def critic_loss(
        self, i: int, theta: Tensor, s: TrainState, both: Batch, env: Env
    ) -> tuple[Tensor, dict[str, Any]]:
        """The critic's i-th loss of a step, against the decoder of s.theta."""
        x, fake = to_pixels(both.x, env.stream), self.fake(s.theta, i, both, env)
        u = both.noise["between"][i, : len(x)]
        error = critic_error(self.critic(theta, env), x, fake, u, self.gradient_penalty)
        return (both.noise["weight"] * error).sum(), {}

    def decoder_loss(
        self, theta: Tensor, s: TrainState, both: Batch, env: Env
    ) -> tuple[Tensor, dict[str, Any]]:
        """The decoder's loss, against the critic of s.theta."""
        return -self.critic(s.theta, env)(self.fake(theta, -1, both, env)).mean(), {}

    def fake(self, theta: Tensor, i: int, both: Batch, env: Env) -> Tensor:
        """The decoder's pixels for the i-th loss of a step, as many as inputs."""
        uniform = both.noise["fake"][i, : len(both.x)]
        return self.sample(theta, uniform, both.y, env)

    def critic(self, theta: Tensor, env: Env) -> Callable[[Tensor], Tensor]:
        """The critic with the parameters in theta: pixels [B, C, H, W] -> scores [B]."""
        return lambda x: part(theta, x, "criticise", env)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Diffusion(Generator):
    """Denoiser that is asked for a class, or in domain-incremental learning for one of a task.

    The loss is -log p(x | noisy x, time, class) of Bernoulli pixels, in nats per pixel, at a time
    that is drawn.
    """

    conditional: ClassVar[bool] = True

    diffusion_steps: int
    sampling_steps: int

    def network(self, env: Env) -> nn.Module:
        return networks.Denoiser(env.input_shape, self.hidden_sizes, env.num_bins)

    def noise(self, N: int, R: int, env: Env) -> Shapes:
        D = networks.pixels(env.input_shape)
        return {"replay": (R, D), "class": (R,), "time": (N,), "noise": (N, D)}

    def sample(self, theta: Tensor, uniform: Tensor, bins: Tensor, env: Env) -> Tensor:
        denoise = partial(self.denoise, theta, y=bins, env=env)
        z = normal(uniform).view(-1, *env.input_shape)
        x = diffusion.sample(denoise, z, self.diffusion_steps, self.sampling_steps)
        return (x + 1) / 2

    def loss(self, theta: Tensor, both: Batch, env: Env) -> Tensor:
        x, u = to_pixels(both.x, env.stream), both.noise
        time = diffusion.times(u["time"][: len(x)], self.diffusion_steps)
        noise = normal(u["noise"][: len(x)]).view_as(x)
        noisy = diffusion.noised(2 * x - 1, noise, time)
        logits = part(theta, noisy, "denoise", env, time=time, y=u["bins"])
        return (u["weight"] * bernoulli_error(logits, x)).sum() / x[0].numel()

    def denoise(self, theta: Tensor, z: Tensor, time: Tensor, *, y: Tensor, env: Env) -> Tensor:
        """The expected image in [-1, 1] behind noisy images z at a time [B] in (0, 1]."""
        return 2 * part(theta, z, "denoise", env, time=time, y=y).sigmoid() - 1


def part(theta: Tensor, x: Tensor, name: str, env: Env, **options: Tensor) -> Tensor:
    """What a part of the generator makes of x, with its parameters in theta."""
    return env.flat.call(theta, x, 0, part=name, **options)
