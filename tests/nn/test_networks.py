"""Networks: their shapes, sizes, initialisation, and forward passes written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.config import schema
from cl_runner.errors import UserError
from cl_runner.nn.flat import Flat
from cl_runner.nn.networks import (
    CNN,
    MLP,
    MODELS,
    ResNet,
    Subsample,
    activation_shapes,
    build,
    check_network,
    factory,
)

RESNETS = {"resnet18": 64, "reduced_resnet18": 20, "resnet32": 16}


def model(name: str, **keys) -> schema.Model:
    if name in RESNETS:
        keys = {"width": RESNETS[name], "init": "default", **keys}
    return MODELS[name][0](name=name, **keys)


def network(name: str, shape: tuple[int, int, int], outputs: int = 10, **keys) -> nn.Module:
    return build(factory(model(name, **keys), shape, outputs), seed=0)


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def images(number: int, *shape: int) -> Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("outputs", [2, 100])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (1, 8, 8)),
        ("mlp", (3, 32, 32)),
        ("mlp", (1, 1, 5)),  # a feature vector
        ("cnn", (1, 8, 8)),
        ("cnn", (1, 28, 28)),
        ("cnn", (3, 32, 20)),
        ("resnet18", (3, 32, 32)),
        ("reduced_resnet18", (3, 32, 32)),
        ("reduced_resnet18", (1, 28, 28)),
        ("resnet32", (1, 8, 8)),
        ("strided_cnn", (3, 32, 32)),
        ("strided_cnn", (1, 5, 7)),
    ],
)
def test_logits_depend_on_each_sample_and_on_no_other(
    name: str, shape: tuple[int, int, int], outputs: int
) -> None:
    net = network(name, shape, outputs).eval()
    x = images(3, *shape)
    logits = net(x, torch.zeros(3, dtype=torch.int64))
    assert logits.shape == (3, outputs)
    assert torch.equal(logits, net(x))  # these networks ignore the task
    torch.testing.assert_close(net(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    net = network(name, (3, 16, 16), 5, **({"hidden_sizes": [16, 12]} if name == "mlp" else {}))
    F.cross_entropy(net(images(8, 3, 16, 16)), torch.arange(8) % 5).backward()
    for key, p in net.named_parameters():
        assert p.grad is not None, key
        assert p.grad.abs().max() > 0, key


def resnet18_size(width: int, channels: int, outputs: int) -> int:
    """Two blocks in each of four stages, with 1x1 projections where the width doubles."""

    def convolution(a: int, b: int, kernel: int) -> int:
        return kernel * kernel * a * b + 2 * b  # with its BatchNorm

    total = convolution(channels, width, 3)
    for stage in range(4):
        w = width * 2**stage
        before = w if stage == 0 else w // 2
        total += convolution(before, w, 3) + 3 * convolution(w, w, 3)
        total += convolution(before, w, 1) if stage else 0
    return total + (8 * width + 1) * outputs


@pytest.mark.parametrize(
    ("name", "outputs", "expected"),
    [
        ("resnet18", 10, 11_173_962),  # as published for CIFAR-10 with a 3x3 stem
        ("resnet18", 100, 11_220_132),
        ("reduced_resnet18", 10, resnet18_size(20, 3, 10)),
        ("resnet32", 10, 464_154),  # 0.46 M in He et al. 2016, table 6: no parameters in shortcuts
    ],
)
def test_sizes_of_residual_networks(name: str, outputs: int, expected: int) -> None:
    assert resnet18_size(64, 3, 10) == 11_173_962
    assert size(network(name, (3, 32, 32), outputs)) == expected


def test_sizes_of_the_other_networks() -> None:
    assert size(network("mlp", (1, 28, 28))) == 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert size(network("mlp", (1, 8, 8), 3, hidden_sizes=[])) == 64 * 3 + 3
    convolutions = 9 * 1 * 32 + 32 + 9 * 32 * 64 + 64
    assert size(network("cnn", (1, 28, 28))) == convolutions + (7 * 7 * 64 + 1) * 128 + 129 * 10


@pytest.mark.parametrize(
    ("name", "sides"), [("resnet18", [32, 16, 8, 4]), ("resnet32", [32, 16, 8])]
)
def test_width_doubles_and_resolution_halves_from_stage_to_stage(
    name: str, sides: list[int]
) -> None:
    net = network(name, (3, 32, 32), width=4)
    shapes: list[tuple[int, int]] = []
    for block in net.blocks:
        block.register_forward_hook(lambda _m, _i, out: shapes.append((out.shape[1], out.shape[2])))
    net(images(2, 3, 32, 32))
    blocks_per_stage = 2 if name == "resnet18" else 5
    assert shapes == [
        (4 << stage, side) for stage, side in enumerate(sides) for _ in range(blocks_per_stage)
    ]


def test_the_shortcut_without_parameters_takes_every_other_pixel_and_adds_zeros() -> None:
    x = images(2, 3, 6, 6)
    out = Subsample(2, 4)(x)
    assert out.shape == (2, 7, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(out[:, :3, row, column], x[:, :, 2 * row, 2 * column])
    assert bool((out[:, 3:] == 0).all())


@pytest.mark.parametrize("shortcut", ["projection", "identity"])
def test_blocks_add_their_shortcut(shortcut: str) -> None:
    # With the last BatchNorm of each block at 0 nothing is left but ReLU of the shortcuts.
    net = ResNet(2, (1, 1), 3, 4, shortcut).eval()
    for block in net.blocks:
        nn.init.zeros_(block.bn2.weight)
    x = images(2, 2, 8, 8)
    h = F.relu(net.bn(net.stem(x)))
    for block in net.blocks:
        h = F.relu(block.shortcut(h))
    torch.testing.assert_close(net(x), net.output(h.mean((2, 3))))


def test_mlp_written_out() -> None:
    net = network("mlp", (1, 3, 4), 5, hidden_sizes=[7, 6])
    x = images(4, 1, 3, 4)
    h = x.numpy().reshape(4, 12)
    for i, layer in enumerate(net.layers):
        h = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        h = np.maximum(h, 0) if i < 2 else h
    np.testing.assert_allclose(net(x).detach().numpy(), h, rtol=1e-5, atol=1e-6)


def test_cnn_written_out() -> None:
    net = network("cnn", (2, 9, 6), 5, channels=[3, 4], hidden_size=8)
    x = images(3, 2, 9, 6)
    h = x
    for layer in net.convolutions:
        h = F.relu(F.conv2d(F.pad(h, (1, 1, 1, 1)), layer.weight, layer.bias))
        rows, columns = h.shape[2] // 2, h.shape[3] // 2
        h = h[:, :, : 2 * rows, : 2 * columns].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        h = h.amax((3, 5))
    assert h.shape == (3, 4, 2, 1)
    expected = net.output(F.relu(net.hidden(h.flatten(1))))
    torch.testing.assert_close(net(x), expected)


def test_xavier_initialisation() -> None:
    net = network("mlp", (1, 28, 28), hidden_sizes=[200, 100], init="xavier")
    for layer in net.layers:
        fan_out, fan_in = layer.weight.shape
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert bool((layer.bias == 0).all())


def test_default_initialisation_is_that_of_torch() -> None:
    net = network("mlp", (1, 28, 28), hidden_sizes=[200, 100])
    for layer in net.layers:
        bound = 1 / math.sqrt(layer.weight.shape[1])
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert 0.9 * bound < layer.bias.abs().max() <= bound


TORCH, HE_FAN_IN, HE_FAN_OUT = (  # the variance, from fan-in and fan-out
    lambda fan_in, _: 1 / (3 * fan_in),  # uniform within 1 / sqrt(fan_in)
    lambda fan_in, _: 2 / fan_in,
    lambda _, fan_out: 2 / fan_out,
)


@pytest.mark.parametrize(
    ("name", "convolutions", "output"),
    [
        ("reduced_resnet18", TORCH, TORCH),  # Lopez-Paz & Ranzato's common.py
        ("resnet18", HE_FAN_OUT, TORCH),  # torchvision's resnet.py
        ("resnet32", HE_FAN_IN, HE_FAN_IN),  # akamaster's resnet.py
    ],
)
def test_residual_networks_start_as_their_references(
    configure, name: str, convolutions, output
) -> None:
    of_yaml = configure(f"model={name}").model
    net = build(factory(of_yaml, (3, 32, 32), 100), seed=0)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            pixels = m.kernel_size[0] * m.kernel_size[1]
            variance = convolutions(m.in_channels * pixels, m.out_channels * pixels)
            assert m.weight.std().item() == pytest.approx(math.sqrt(variance), rel=0.08)
            assert m.bias is None
        if isinstance(m, nn.Linear):
            variance = output(m.in_features, m.out_features)
            assert m.weight.std().item() == pytest.approx(math.sqrt(variance), rel=0.05)
            assert 0 < m.bias.abs().max() <= 1 / math.sqrt(m.in_features)
        if isinstance(m, nn.BatchNorm2d):
            assert bool((m.weight == 1).all()) and bool((m.bias == 0).all())


def test_a_small_cnn_may_start_with_more_variance_and_the_same_biases() -> None:
    plain = network("cnn", (1, 28, 28), channels=[32, 64])
    net = network("cnn", (1, 28, 28), channels=[32, 64], init="kaiming_fan_in")
    for own, other in zip(net.modules(), plain.modules(), strict=True):
        if isinstance(own, nn.Conv2d | nn.Linear):
            fan_in = own.weight[0].numel()
            assert own.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
            assert torch.equal(own.bias, other.bias)


def test_convolutions_may_start_by_the_side_of_their_kernels() -> None:
    """Uniform within 1 / sqrt(side x inputs), and so sqrt(side) wider than by all inputs."""
    net = network("reduced_resnet18", (3, 32, 32), init="uniform_side")
    for own in net.modules():
        if isinstance(own, nn.Conv2d):
            bound = 1 / math.sqrt(own.kernel_size[0] * own.in_channels)
            assert bound * 0.95 < own.weight.abs().max() <= bound
            assert own.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08)
        if isinstance(own, nn.Linear):
            bound = 1 / math.sqrt(own.in_features)
            assert all(v.abs().max() <= bound for v in own.parameters())
            assert own.weight.abs().max() > bound * 0.95


def test_strides_in_the_place_of_pooling() -> None:
    net = network("strided_cnn", (3, 32, 32), channels=[4, 6, 8], hidden_sizes=[12, 7])
    first, second, last = net.convolutions
    expected = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3, 2, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, 2, padding=1), nn.Flatten()),
        *(nn.Linear(8 * 8 * 8, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 10)),
    )
    layers = (first, net.norms[0], second, net.norms[1], last, *net.layers)
    theirs = [m for m in expected if [*m.parameters()]]
    for own, other in zip(layers, theirs, strict=True):
        other.load_state_dict(own.state_dict())
    x = images(5, 3, 32, 32)
    torch.testing.assert_close(net(x), expected(x))
    shapes = [(4, 32, 32), (6, 16, 16), (8, 8, 8), (12,), (7,), (10,)]
    assert [*activation_shapes(net, (3, 32, 32))] == shapes
    assert network("strided_cnn", (1, 9, 5), channels=[2, 3])(images(2, 1, 9, 5)).shape == (2, 10)


def test_the_strided_network_of_van_de_ven() -> None:
    """Five convolutions that make 1024 features of an image of CIFAR, then 2000-2000-100."""
    net = network("strided_cnn", (3, 32, 32), 100)
    assert [layer.in_features for layer in net.layers] == [1024, 2000, 2000]
    assert [c.out_channels for c in net.convolutions] == [16, 32, 64, 128, 256]
    assert len(net.norms) == 4 and all(c.bias is not None for c in net.convolutions)
    with pytest.raises(UserError, match="model=strided_cnn needs images; the data are feature"):
        network("strided_cnn", (1, 1, 5))


def test_an_unknown_initialisation_is_refused(configure) -> None:
    with pytest.raises(
        UserError, match=r"model\.init must be one of default, kaiming_fan_in, kaim"
    ):
        configure("model=resnet18", "model.init=xavier")


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_decides_the_initialisation_and_nothing_else_is_touched(name: str) -> None:
    make_net = factory(model(name), (3, 16, 16), 4)
    state = torch.get_rng_state()
    first, again, other = (
        torch.cat([p.flatten() for p in build(make_net, seed).parameters()]) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("training", [True, False])
def test_batchnorm_before_each_relu_but_not_at_the_outputs(training: bool) -> None:
    net = network("mlp", (1, 8, 8), hidden_sizes=[12, 7], norm="batch").train(training)
    first, second, last = net.layers
    expected = nn.Sequential(
        *(nn.Flatten(), first, nn.BatchNorm1d(12), nn.ReLU()),
        *(second, nn.BatchNorm1d(7), nn.ReLU(), last),
    ).train(training)
    x = images(5, 1, 8, 8)
    torch.testing.assert_close(net(x), expected(x))
    moved = {n.removeprefix("norms."): b for n, b in net.named_buffers()}
    theirs = {
        n.replace("2.", "0.", 1).replace("5.", "1.", 1): b for n, b in expected.named_buffers()
    }
    assert moved.keys() == theirs.keys()
    assert all(torch.equal(moved[name], theirs[name]) for name in moved)


def test_truncated_normal_weights_and_biases_above_zero() -> None:
    net = network("mlp", (1, 28, 28), hidden_sizes=[256], init="truncated_normal")
    for layer in net.layers:
        assert layer.weight.abs().max() <= 0.2
        # The standard deviation of a normal one of 0.1 that is cut at twice that.
        assert layer.weight.std().item() == pytest.approx(0.088, rel=0.05)
        assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.1))


def test_dropout_after_each_hidden_layer_in_training_only() -> None:
    net = network("mlp", (1, 8, 8), hidden_sizes=[300, 200], dropout=0.3)
    seen: list[Tensor] = []  # the inputs of each layer
    for layer in net.layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = images(50, 1, 8, 8).abs() + 0.1
    for layer in net.layers:
        nn.init.constant_(layer.weight, 0.1)  # no ReLU is at 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net.train()(x)
    zeros = [(h == 0).float().mean().item() for h in seen]
    assert zeros == pytest.approx([0, 0.3, 0.3], abs=0.02)
    seen.clear()
    plain = network("mlp", (1, 8, 8), hidden_sizes=[300, 200])
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x), plain(x))
    assert not any(bool((h == 0).any()) for h in seen)


@pytest.mark.parametrize(
    ("name", "keys", "shape", "key"),
    [
        ("cnn", {"channels": [4, 4, 4, 4]}, (1, 8, 8), "model.channels"),
        ("cnn", {"channels": [4, 4, 4]}, (1, 28, 7), "model.channels"),
        ("cnn", {}, (1, 1, 30), "model.channels"),  # feature vectors
        *((name, {}, (1, 1, 30), f"model={name}") for name in RESNETS),
    ],
)
def test_a_network_that_does_not_fit_the_inputs_is_refused(
    name: str, keys: dict, shape: tuple[int, int, int], key: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(factory(model(name, **keys), shape, 10), seed=0)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_deepest_cnn_that_fits_works() -> None:
    assert isinstance(network("mlp", (1, 8, 8)), MLP)
    net = network("cnn", (1, 8, 9), channels=[4, 4, 4])
    assert isinstance(net, CNN)
    assert net(images(2, 1, 8, 9)).shape == (2, 10)


class Shifted(nn.Module):
    """A layer with K + more outputs."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3 + more)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        assert not self.training
        return self.layer(x.flatten(1))


def test_a_module_of_the_users_that_gives_logits_is_accepted_and_left_as_it_is() -> None:
    net = Shifted(0)
    before = net.layer.weight.clone()
    check_network("mine", net, (1, 4, 4), 3)
    assert net.training and torch.equal(net.layer.weight, before)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (None, "got NoneType"),
        (nn.ReLU(), "with parameters to train"),
        (nn.Linear(4, 3), r"called with (x, task), x [2, 1, 4, 4] and task [2]: "),
        (Shifted(1), "gives logits [2, 3] for x [2, 1, 4, 4], got [2, 4]"),
    ],
)
def test_what_is_no_network_is_refused(net: nn.Module, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_network("mine", net, (1, 4, 4), 3)
    assert str(caught.value).startswith("model=mine: build() must return an nn.Module")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_and_says_what_there_is() -> None:
    with pytest.raises(UserError, match=r"model\.name must be one of mlp, cnn, .*, got 'vit'; is"):
        factory(schema.Model(name="vit"), (1, 4, 4), 3)


@pytest.mark.parametrize("layers", [[nn.Conv2d(1, 3, 4)], [nn.Linear(16, 4)]])
def test_without_an_output_layer_its_weights_are_not_told(layers: list[nn.Module]) -> None:
    with pytest.raises(UserError, match=r"a unit for each of 3 classes, as the last nn\.Linear"):
        Flat(nn.Sequential(*layers)).output_mask(torch.ones(3, dtype=torch.bool))


def test_a_module_without_stages_shows_no_activations() -> None:
    with pytest.raises(UserError, match=r"no cl_runner\.nn\.networks\.Network with stages\(\)"):
        activation_shapes(Shifted(0), (1, 4, 4))
