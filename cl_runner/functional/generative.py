"""Losses of generative models, and of training on a scholar's answers to what it generates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Part = Callable[[Tensor], Tensor]  # of a generator, with its parameters
SMALLEST = 2.0**-25  # half the distance between two float32 uniforms


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from uniforms in [0, 1), by the inverse of the distribution."""
    z: Tensor = torch.special.ndtri(uniform.clamp_min(SMALLEST))  # 0 would be minus infinity
    return z


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Shares of classes [B, K] of labels y [B]: 1 and 0. torch's asks the host for the labels."""
    return (y[:, None] == torch.arange(classes, device=y.device)).float()


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp log_variance) | N(0, I)) [B], in nats; mean, log_variance [B, Z].

    Kingma & Welling 2014, arXiv 1312.6114, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The log density [...] of N(mean, diag exp log_variance) at z; [..., Z] each."""
    scaled = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (scaled + log_variance + math.log(2 * math.pi)).sum(-1)


def log_mixture(z: Tensor, share: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """The log density log sum_k share_k N(z; means_k, diag exp log_variances_k) of a mixture [B].

    Shapes: z [B, Z], share [B, K], means and log_variances [K, Z].
    """
    return (share.log() + log_normal(z[:, None], means, log_variances)).logsumexp(1)


def bernoulli_error(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x) [B], in nats, of pixels x [B, ...] in [0, 1] with probabilities sigmoid(logits)."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def elbo_error(encode: Part, decode: Part, x: Tensor, uniform: Tensor) -> Tensor:
    """-E log p(x|z) + KL(q(z|x) | p(z)) [B], in nats, the expectation by one z from uniform [B, Z].

    The negative evidence lower bound of a variational autoencoder. encode: x [B, ...] -> means and
    log variances of z [B, 2 Z]; decode: z [B, Z] -> logits of x.
    """
    mean, log_variance = encode(x).chunk(2, 1)
    z = mean + (0.5 * log_variance).exp() * normal(uniform)
    return bernoulli_error(decode(z), x) + gaussian_kl(mean, log_variance)


def slope_error(critic: Part, x: Tensor) -> Tensor:
    """(|d critic(x_b) / d x_b| - 1)^2 [B] for critic: [B, ...] -> [B].

    The gradient penalty of Gulrajani et al. 2017, arXiv 1704.00028, without its weight. It is a
    function of the critic's parameters like any other: it can be differentiated in turn.
    """
    slope: Tensor = torch.func.grad(lambda x: critic(x).sum())(x)
    norm: Tensor = slope.flatten(1).norm(dim=1)
    return (norm - 1).square()


def critic_error(critic: Part, x: Tensor, fake: Tensor, u: Tensor, penalty: float) -> Tensor:
    """critic(fake) - critic(x) + penalty * slope_error between the two [B]; u [B] says where.

    Algorithm 1 of Gulrajani et al. 2017, for one of its m samples; x and fake [B, C, H, W].
    """
    between = torch.lerp(fake, x, u[:, None, None, None])
    return critic(fake) - critic(x) + penalty * slope_error(critic, between)


def answers(logits: Tensor, heads: Tensor, temperature: float | None) -> Tensor:
    """What logits [B, K] say over the classes of heads [H, B or 1, K] bool: shares [H, B, K].

    temperature None: all of it on the likeliest class. A head without any class answers over every
    one, for the caller to weigh with 0.
    """
    heads = heads | ~heads.any(-1, keepdim=True)
    logits = logits.masked_fill(~heads, float("-inf"))
    if temperature is not None:
        return (logits / temperature).softmax(-1)
    best = logits.argmax(-1, keepdim=True)
    return (best == torch.arange(logits.shape[-1], device=logits.device)).to(logits.dtype)


def answer_error(
    logits: Tensor, target: Tensor, shown: Tensor | None, temperature: float | None
) -> Tensor:
    """-sum_c target_c log q_c [H, B], in nats; q: the softmax of logits [B, K] over shown classes.

    target: [H, B, K], as `answers` gives it with the same temperature, which divides the logits
    here too. shown: [H or 1, B or 1, K] bool, None: all. Heads that show nothing show everything.
    """
    if shown is None:
        shown = torch.ones_like(target[:1, :1], dtype=torch.bool)
    shown = shown | ~shown.any(-1, keepdim=True)
    log_q = (logits / (temperature or 1.0)).masked_fill(~shown, float("-inf")).log_softmax(-1)
    return -(target * log_q.masked_fill(~shown, 0.0)).sum(-1)
