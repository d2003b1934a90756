"""The generators and the network that holds one beside a classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cl_runner.nn.generators import GAN, VAE, Denoiser, Feedback, Scholar
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


@pytest.mark.parametrize("kind", [VAE, GAN])
def test_the_decoder_mirrors_the_hidden_layers_and_gives_images(kind) -> None:
    net = kind(SHAPE, [7, 9], 2)
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


def test_the_sizes_of_brain_inspired_replay_for_mnist() -> None:
    """400 features -> 100 means, and log variances without biases; 10 priors; 100-400-400-784."""
    decoder = 101 * 400 + 401 * 400 + 401 * 784
    net = Feedback(400, (1, 28, 28), [400, 400], 100, 10)
    assert size(net) == 401 * 100 + 400 * 100 + 10 * 200 + decoder


def test_the_gates_of_a_decoder_silence_units_of_every_hidden_layer() -> None:
    net, z = Feedback(6, SHAPE, [7, 9], 2, 3), torch.randn(5, 2)
    gates = torch.rand(5, 9 + 7).round()
    first, second, last = net.decoder
    hidden = F.relu(first(z) * gates[:, :9])  # as the authors have it: before the activation
    logits = last(F.relu(second(hidden) * gates[:, 9:])).view(5, *SHAPE)
    torch.testing.assert_close(net(z, "decode", gates=gates), logits)
    off = net(z, "decode", gates=torch.zeros(5, 16))
    torch.testing.assert_close(off, last.bias.view(SHAPE).expand_as(off))


def test_a_denoiser_knows_time_and_class_in_every_layer() -> None:
    net, x = Denoiser(SHAPE, [7, 9], 3), images(3)
    assert [m.in_features for m in net.layers] == [60 + 64 + 3, 7 + 64 + 3, 9 + 64 + 3]
    at, y = torch.tensor([0.01, 1.0, 0.5]), torch.tensor([0, 2, 1])
    logits = net(x, "denoise", time=at, y=y)
    assert logits.shape == x.shape
    logits.sum().backward()
    assert all(layer.weight.grad[:, -67:].any(0).all() for layer in net.layers)
    for swapped in ({"time": at.roll(1), "y": y}, {"time": at, "y": y.roll(1)}):
        assert (net(x, "denoise", **swapped) != logits).flatten(1).any(1).all()
