"""One vector behind all parameters: shared memory, one gradient, any other vector in its place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from cl_runner.functional.losses import quadratic
from cl_runner.nn.flat import Flat
from cl_runner.nn.networks import CNN, MLP, ResNet


def mlp() -> nn.Module:
    return MLP(16, [6, 5], 3, "default", 0.0)


def cnn() -> nn.Module:
    return CNN((1, 4, 4), [3], 5, 3)


def resnet() -> nn.Module:
    return ResNet(1, (1, 1), 2, 3, "projection")


NETWORKS = [mlp, cnn, resnet]


def flat_of(make_net, seed: int = 0) -> Flat:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Flat(make_net())


def inputs() -> Tensor:
    return torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def other_theta(flat: Flat) -> Tensor:
    noise = torch.randn(len(flat.theta), generator=torch.Generator().manual_seed(2))
    return flat.theta.detach() + 0.1 * noise


@pytest.mark.parametrize("make_net", NETWORKS)
def test_theta_is_the_parameters_in_their_order(make_net) -> None:
    flat = flat_of(make_net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = parameters_to_vector(make_net().parameters())
    assert torch.equal(flat.theta, expected)
    assert flat.theta.is_leaf
    assert flat.theta.requires_grad
    named = dict(flat.module.named_parameters())
    views = flat.views(flat.theta)
    assert list(views) == list(named)
    assert all(torch.equal(views[name], named[name]) for name in named)


@pytest.mark.parametrize("make_net", NETWORKS)
def test_theta_and_parameters_are_the_same_memory(make_net) -> None:
    flat = flat_of(make_net)
    with torch.no_grad():
        flat.theta.copy_(torch.arange(len(flat.theta)))
        assert torch.equal(
            parameters_to_vector(flat.module.parameters()), torch.arange(len(flat.theta)).float()
        )
        for p in flat.module.parameters():
            p.neg_()
    assert torch.equal(flat.theta, -torch.arange(len(flat.theta)).float())


@pytest.mark.parametrize("make_net", NETWORKS)
def test_a_call_with_any_vector_is_the_module_with_those_parameters(make_net) -> None:
    flat, separate = flat_of(make_net), make_net()
    flat.module.eval()
    separate.eval()
    theta = other_theta(flat)
    before = flat.theta.detach().clone()
    for vector in (flat.theta, flat.theta.detach().clone(), theta):
        vector_to_parameters(vector.detach().clone(), separate.parameters())
        assert torch.equal(flat.call(vector, inputs(), 0), separate(inputs()))
    assert torch.equal(flat.theta, before)  # the live parameters stay what they are
    assert not torch.equal(flat.call(theta, inputs(), 0), flat.call(flat.theta, inputs(), 0))


class Twice(nn.Module):
    """Two layers with the same weights, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor, task: object = None) -> Tensor:
        return self.second(self.norm(self.first(x.flatten(1)).relu()))


def test_what_layers_share_is_another_in_all_its_places() -> None:
    flat, separate = flat_of(Twice), Twice()
    theta = other_theta(flat)
    vector_to_parameters(theta, separate.parameters())
    statistics = {name: value + 1 for name, value in flat.buffers.items()}
    separate.load_state_dict(statistics, strict=False)
    separate.eval()
    assert torch.equal(flat.answers(theta, inputs(), 0, statistics), separate(inputs()))
    flat.module.eval()
    separate.load_state_dict(flat.buffers, strict=False)
    assert torch.equal(flat.call(theta, inputs(), 0), separate(inputs()))


@pytest.mark.parametrize("make_net", [*NETWORKS, Twice])
def test_a_call_leaves_the_module_as_it_was_even_if_it_fails(make_net) -> None:
    flat = flat_of(make_net)
    own = {n: id(v) for n, v in (*flat.module.named_parameters(), *flat.module.named_buffers())}
    values = {n: v.clone() for n, v in flat.module.state_dict().items()}
    flat.call(other_theta(flat), inputs(), 0)
    with pytest.raises(RuntimeError):
        flat.call(other_theta(flat), inputs().repeat(1, 2, 1, 1), 0)
    now = {n: id(v) for n, v in (*flat.module.named_parameters(), *flat.module.named_buffers())}
    assert now == own
    assert all(torch.equal(v, values[n]) for n, v in flat.module.state_dict().items())


@pytest.mark.parametrize("make_net", NETWORKS)
def test_penalty_and_network_accumulate_into_one_gradient_once(make_net) -> None:
    flat = flat_of(make_net)
    flat.module.eval()
    y = torch.arange(8) % 3
    anchor, importance = other_theta(flat), torch.rand(len(flat.theta)) + 0.5

    def loss(theta: Tensor) -> Tensor:
        network = F.cross_entropy(flat.call(theta, inputs(), 0), y)
        return network + quadratic(theta, anchor, importance)

    expected = torch.func.grad(loss)(flat.theta.detach().clone())
    for _ in range(2):  # the second time after what the first has left
        with flat.descent():
            loss(flat.theta).backward()
        gradient = flat.gradient()
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    network_alone = expected - importance * (flat.theta.detach() - anchor)
    assert network_alone.abs().max() > 1e-3  # both parts matter to the comparison above


@pytest.mark.parametrize("make_net", NETWORKS)
def test_a_second_gradient_keeps_the_first(make_net) -> None:
    # A-GEM needs two gradients within one step.
    flat = flat_of(make_net)
    flat.module.eval()
    gradients = []
    for factor in (1.0, 3.0):
        with flat.descent():
            (factor * flat.call(flat.theta, inputs(), 0).square().sum()).backward()
        gradients.append(flat.gradient())
    first, second = gradients
    torch.testing.assert_close(second, 3 * first, rtol=1e-4, atol=1e-4)
    assert first.abs().max() > 0


@pytest.mark.parametrize("make_net", NETWORKS)
def test_commit_makes_another_theta_the_live_one(make_net) -> None:
    """And writes nothing: whoever has the memory of the old one keeps what is in it."""
    flat = flat_of(make_net)
    flat.module.eval()
    theta, leaf = other_theta(flat), flat.theta
    old = flat.theta.detach()
    before = old.clone()
    expected = flat.call(theta, inputs(), 0)
    assert flat.commit(theta) is leaf is flat.theta
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert torch.equal(leaf, theta)
    assert torch.equal(flat.module(inputs()), expected)
    assert torch.equal(old, before)
    assert flat.commit(leaf) is leaf
    assert torch.equal(flat.module(inputs()), expected)


@pytest.mark.parametrize("make_net", NETWORKS)
def test_where_the_storage_must_stay_commit_copies_into_it(make_net) -> None:
    flat = flat_of(make_net)
    flat.module.eval()
    flat.stay()
    theta = other_theta(flat)
    leaf, address = flat.theta, flat.theta.data_ptr()
    expected = flat.call(theta, inputs(), 0)
    assert flat.commit(theta) is leaf is flat.theta
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert leaf.data_ptr() == address
    assert torch.equal(flat.module(inputs()), expected)
    with torch.no_grad():
        theta.zero_()  # what was committed was copied
    assert torch.equal(flat.module(inputs()), expected)
    assert flat.commit(leaf) is leaf
    assert torch.equal(flat.module(inputs()), expected)


def test_frozen_parameters_are_left_out() -> None:
    net = mlp()
    net.layers[0].requires_grad_(False)
    frozen = net.layers[0].weight.detach().clone()
    flat = Flat(net)
    assert flat.names == [f"layers.{i}.{p}" for i in (1, 2) for p in ("weight", "bias")]
    assert len(flat.theta) == 6 * 5 + 5 + 5 * 3 + 3
    flat.commit(torch.zeros(len(flat.theta)))
    assert torch.equal(net.layers[0].weight, frozen)


def test_buffers_are_the_live_statistics_of_batchnorm() -> None:
    flat = flat_of(resnet)
    buffers = flat.buffers
    assert {name.rpartition(".")[2] for name in buffers} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    before = {name: value.clone() for name, value in buffers.items()}
    flat.module.eval()
    flat.call(flat.theta, inputs(), 0)
    assert all(torch.equal(buffers[name], before[name]) for name in buffers)
    flat.module.train()
    flat.call(flat.theta, inputs(), 0)
    assert all(not torch.equal(buffers[name], before[name]) for name in buffers)
    assert flat_of(mlp).buffers == {}


class Noisy(nn.Module):
    """Dropout and BatchNorm: what differs between training and evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor, task: Tensor | int | None = None) -> Tensor:
        h = F.dropout(self.norm(self.hidden(x.flatten(1))), 0.5, self.training)
        return self.out(h)


def test_answers_are_those_of_evaluation_mode_whatever_the_mode_is() -> None:
    flat = flat_of(Noisy)
    for _ in range(3):  # so that the running statistics are some
        flat.call(flat.theta, inputs(), 0)
    before = {k: v.clone() for k, v in flat.buffers.items()}
    other = {"norm.running_mean": torch.full((6,), 0.3), "norm.running_var": torch.full((6,), 2.0)}
    for theta in (flat.theta, other_theta(flat)):
        for buffers in (None, other):
            flat.module.train()
            given = flat.answers(theta, inputs(), 0, buffers)
            assert not given.requires_grad
            assert torch.equal(given, flat.answers(theta, inputs(), 0, buffers))
            assert flat.module.training
            separate = Noisy().eval()
            separate.load_state_dict(before | (other if buffers else {}), strict=False)
            vector_to_parameters(theta.detach().clone(), separate.parameters())
            assert torch.equal(given, separate(inputs()))
    assert all(torch.equal(v, before[k]) for k, v in flat.buffers.items())


def test_answers_are_constants_under_torch_func() -> None:
    flat = flat_of(Noisy)
    x, y = inputs(), torch.arange(8) % 3

    def loss(theta: Tensor) -> Tensor:
        return F.cross_entropy(flat.answers(theta, x, 0), y) + theta.square().sum()

    theta = torch.stack([flat.theta.detach(), other_theta(flat)])
    gradient = torch.func.vmap(torch.func.grad(loss))(theta)
    torch.testing.assert_close(gradient, 2 * theta)


def test_the_module_that_answers_takes_no_memory_of_its_own() -> None:
    flat = flat_of(Noisy)
    assert all(p.is_meta for p in flat.answering.parameters())
    live = dict(flat.module.named_buffers())
    assert all(v is live[name] for name, v in flat.answering.named_buffers())
