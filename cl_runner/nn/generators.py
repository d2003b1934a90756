"""Generators of images, and the network that holds one beside a classifier.

They work on pixels in [0, 1]; `decode` gives the logits of these pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.functional.generative import one_hot

TIMES = 64  # numbers that tell a denoiser the time


class Scholar(nn.Module):
    """A classifier and a generator, in this order: one theta holds both.

    (x, task) is the classifier's; with `part`, x goes to that part of the generator. The options
    are those of whichever it is.
    """

    def __init__(self, classifier: nn.Module, generator: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.generator = generator

    def forward(self, x: Tensor, task: Tensor | int, part: str = "", **options: Any) -> Tensor:
        asked, about = (self.generator, part) if part else (self.classifier, task)
        output: Tensor = asked(x, about, **options)
        return output


class VAE(nn.Module):
    """Variational autoencoder, fully connected (Kingma & Welling 2014, arXiv 1312.6114)."""

    def __init__(self, shape: tuple[int, int, int], hidden_sizes: Sequence[int], Z: int) -> None:
        super().__init__()
        self.encoder = layers(pixels(shape), hidden_sizes, 2 * Z, nn.ReLU)
        self.decoder = decoder(shape, hidden_sizes, Z)

    def forward(self, x: Tensor, part: str) -> Tensor:
        """`encode`: images -> means and log variances [B, 2 Z]; `decode`: [B, Z] -> logits."""
        output: Tensor = {"encode": self.encoder, "decode": self.decoder}[part](x)
        return output


class GAN(nn.Module):
    """Generative adversarial network, fully connected: a decoder and its critic.

    Gulrajani et al. 2017, arXiv 1704.00028: no normalisation in the critic; leaky ReLU in it, as in
    the authors' code for MNIST.
    """

    def __init__(self, shape: tuple[int, int, int], hidden_sizes: Sequence[int], Z: int) -> None:
        super().__init__()
        self.decoder = decoder(shape, hidden_sizes, Z)
        self.critic = layers(pixels(shape), hidden_sizes, 1, lambda: nn.LeakyReLU(0.2))

    def forward(self, x: Tensor, part: str) -> Tensor:
        """`decode`: [B, Z] -> logits; `criticise`: images -> scores [B, 1]."""
        output: Tensor = {"decode": self.decoder, "criticise": self.critic}[part](x)
        return output


class Feedback(nn.Module):
    """What makes a classifier generate: a code read from its features, a prior, and a decoder.

    van de Ven et al. 2020, Nature Communications 11, 4069: the prior is a Gaussian for each class
    with a mean and variances of its own, drawn from N(0, I) at first; the hidden units of the
    decoder are gated.
    """

    def __init__(
        self,
        features: int,
        shape: tuple[int, int, int],
        hidden_sizes: Sequence[int],
        Z: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.mean = nn.Linear(features, Z)
        self.log_variance = nn.Linear(features, Z, bias=False)
        self.prior = nn.Parameter(torch.empty(classes, 2 * Z).normal_())
        sizes = [Z, *hidden_sizes[::-1], pixels(shape)]
        self.decoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.shape = shape

    def forward(self, x: Tensor, part: str, gates: Tensor | None = None) -> Tensor:
        """`encode`: features -> means and log variances of codes [B, 2 Z].

        `prior`: the classes' means and log variances of codes [K, 2 Z], whatever x is.
        `decode`: codes [B, Z], with gates [B, hidden units] -> logits of pixels [B, C, H, W].
        """
        if part == "prior":
            return self.prior
        if part == "encode":
            x = x.flatten(1)
            return torch.cat([self.mean(x), self.log_variance(x)], 1)
        assert gates is not None
        *hidden, last = self.decoder
        for layer, gate in zip(
            hidden, gates.split([m.out_features for m in hidden], 1), strict=True
        ):
            x = layer(x).relu() * gate
        logits: Tensor = last(x)
        return logits.view(-1, *self.shape)


class Denoiser(nn.Module):
    """What a noisy image was before, fully connected (Ho et al. 2020, arXiv 2006.11239).

    Every layer sees the sample's condition besides: how noisy it is, by sines and cosines of its
    time as in that paper, and the class that it shows.
    """

    def __init__(
        self, shape: tuple[int, int, int], hidden_sizes: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        sizes = [pixels(shape), *hidden_sizes, pixels(shape)]
        self.layers = nn.ModuleList(nn.Linear(a + TIMES + classes, b) for a, b in pairwise(sizes))
        self.shape, self.classes = shape, classes

    def forward(self, x: Tensor, part: str, time: Tensor, y: Tensor) -> Tensor:
        """`denoise`: images [B, C, H, W], at times [B] in [0, 1], of classes y [B] -> logits.

        The images' values are of the order of 1; the logits are those of pixels in [0, 1].
        """
        frequency = 1000 ** -torch.linspace(0, 1, TIMES // 2, device=x.device)
        angle = 1000 * time[:, None] * frequency
        condition = torch.cat([angle.sin(), angle.cos(), one_hot(y, self.classes)], 1)
        x = x.flatten(1)
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(torch.cat([x, condition], 1)).relu()
        logits: Tensor = last(torch.cat([x, condition], 1))
        return logits.view(-1, *self.shape)


def pixels(shape: tuple[int, int, int]) -> int:
    """The number of values of an image [C, H, W]."""
    return shape[0] * shape[1] * shape[2]


def layers(
    inputs: int, hidden_sizes: Sequence[int], outputs: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """[B, ...] -> [B, outputs], by Linear layers with activations between them."""
    modules: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise([inputs, *hidden_sizes, outputs]):
        modules += [nn.Linear(a, b), activation()]
    return nn.Sequential(*modules[:-1])


def decoder(shape: tuple[int, int, int], hidden_sizes: Sequence[int], Z: int) -> nn.Sequential:
    """[B, Z] -> logits of pixels [B, C, H, W]; the encoder's hidden layers in reverse order."""
    network = layers(Z, hidden_sizes[::-1], pixels(shape), nn.ReLU)
    return network.append(nn.Unflatten(1, torch.Size(shape)))
