"""Generators of images, and the network that holds one beside a classifier.

They work on pixels in [0, 1]; `decode` gives the logits of these pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Scholar(nn.Module):
    """A classifier and a generator, in this order: one theta holds both.

    (x, task) is the classifier's; with `part`, x goes to that part of the generator.
    """

    def __init__(self, classifier: nn.Module, generator: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.generator = generator

    def forward(self, x: Tensor, task: Tensor | int, part: str = "", **options: Any) -> Tensor:
        output: Tensor
        output = self.generator(x, part) if part else self.classifier(x, task, **options)
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


GENERATORS = {"vae": VAE, "gan": GAN}


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
