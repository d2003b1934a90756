"""The generators and the network that holds one beside a classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cl_runner.nn.generators import GAN, GENERATORS, VAE, Scholar
from cl_runner.nn.networks import MLP

SHAPE = (3, 4, 5)


def images(number: int) -> torch.Tensor:
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(0))


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_sizes_of_the_published_autoencoder_for_mnist() -> None:
    """784-400-400-(100 means, 100 log variances), 100-400-400-784, with biases."""
    encoder = 785 * 400 + 401 * 400 + 401 * 200
    decoder = 101 * 400 + 401 * 400 + 401 * 784
    assert size(VAE((1, 28, 28), [400, 400], 100)) == encoder + decoder
    critic = 785 * 400 + 401 * 400 + 401
    assert size(GAN((1, 28, 28), [400, 400], 100)) == decoder + critic


@pytest.mark.parametrize("name", GENERATORS)
def test_the_decoder_mirrors_the_hidden_layers_and_gives_images(name) -> None:
    net = GENERATORS[name](SHAPE, [7, 9], 2)
    widths = [m.out_features for m in net.decoder if isinstance(m, nn.Linear)]
    assert widths == [9, 7, 60]
    z = torch.randn(6, 2)
    _, first, _, second, _, third, _ = net.decoder
    logits = third(F.relu(second(F.relu(first(z))))).view(6, *SHAPE)
    torch.testing.assert_close(net(z, "decode"), logits)
    assert (logits.abs() > 0).all()  # nothing is cut off: logits, not activations


def test_the_parts_that_read_images() -> None:
    vae, gan = VAE(SHAPE, [7, 9], 2), GAN(SHAPE, [7, 9], 2)
    assert vae(images(6), "encode").shape == (6, 4)
    assert gan(images(6), "criticise").shape == (6, 1)
    assert not any("encoder" in name for name, _ in gan.named_parameters())


def test_a_scholar_is_its_classifier_first_and_passes_its_options_on() -> None:
    classifier, generator = MLP(60, [8], 3, "default", 0.0), VAE(SHAPE, [7], 2)
    scholar = Scholar(classifier, generator)
    x, z = images(6), torch.randn(6, 2)
    assert torch.equal(scholar(x, 0), classifier(x))
    assert torch.equal(scholar(x, 0, last=-1), classifier(x, last=-1))
    assert torch.equal(scholar(z, 0, part="decode"), generator(z, "decode"))
    owners = [name.split(".")[0] for name, _ in scholar.named_parameters()]
    assert owners == sorted(owners, key=["classifier", "generator"].index)
