"""Where the channels of an image lie in memory, and how many images are evaluated at once."""

import numpy as np
import pytest
import torch

from cl_runner import strategies
from cl_runner.nn.networks import CNN, MLP, ResNet, activations, layout
from cl_runner.running import evaluation
from cl_runner.running.evaluation import evaluate
from cl_runner.running.prepare import prepare
from cl_runner.running.stacked import StackedStep, obstacle
from cl_runner.running.tasks import Member, initial_state, train_task
from cl_runner.running.together import train_task as train_together

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def resnet(channels=3):
    return ResNet(channels, (1, 1), 2, 3, "projection")


def test_convolutions_on_a_cpu_have_the_channels_of_a_pixel_together():
    assert layout(resnet(), (3, 8, 8), CPU) == torch.channels_last
    assert layout(CNN((3, 8, 8), [3], 5, 3), (3, 8, 8), CPU) == torch.channels_last
    assert layout(MLP(192, [5], 3, "default", 0.0), (3, 8, 8), CPU) == torch.contiguous_format
    assert layout(torch.nn.Conv2d(3, 3, 3), (3, 8, 8), CPU) == torch.contiguous_format


def test_on_a_gpu_they_have_where_tensor_cores_compute():
    for precision in ("tf32", "bfloat16"):
        assert layout(resnet(), (3, 8, 8), GPU, precision) == torch.channels_last
    assert layout(resnet(), (3, 8, 8), GPU, "float32") == torch.contiguous_format


def test_one_channel_has_no_other_layout():
    """On strides that pass for both, torch's backward pass has corrupted memory."""
    assert layout(resnet(1), (1, 8, 8), CPU) == torch.contiguous_format


@pytest.fixture
def coloured(configure, tmp_path):
    """coloured("strategy=er"): a run on small random images of three channels."""
    draw = np.random.default_rng(0).integers
    arrays = {
        name: draw(256, size=(n, 8, 8, 3), dtype=np.uint8)
        for name, n in (("x_train", 96), ("x_test", 24))
    }
    arrays |= {"y_train": np.arange(96) % 4, "y_test": np.arange(24) % 4}
    np.savez(tmp_path / "own.npz", **arrays)

    def function(*overrides):
        config = configure(
            *(f"data.path={tmp_path / 'own.npz'}", "benchmark=split_npz", "benchmark.num_tasks=2"),
            *("training.batch_size=12", "training.augment=crop_flip", "model=cnn", *overrides),
        )
        strategy = strategies.build(config.strategy)
        return strategy, prepare(config, strategy)

    return function


@pytest.mark.parametrize(
    "name", ["der", "ewc", "gpm", "icarl", "latent_replay", "lwf", "mas", "packnet", "si"]
)
def test_the_layout_changes_nothing_but_last_digits(coloured, name):
    """What strategies do with images and activations, some of which see them by their strides."""
    states, scenario = [], "class" if name == "icarl" else "task"
    for layout_of_images in (None, torch.contiguous_format):
        strategy, env = coloured(f"strategy={name}", f"scenario={scenario}")
        assert env.layout == torch.channels_last
        env.layout = layout_of_images or env.layout
        s = initial_state(strategy, env)
        for task in env.stream:
            s = train_task(strategy, s, task, env)
        states.append(s.theta.detach().clone())
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)


def test_a_stacked_member_equals_the_run_alone(coloured):
    """The very network of Split CIFAR, in colour and augmented; and its statistics.

    In a stack channels lie apart, so they do alone here: where they lie together, ReLUs that a
    rounding turns over make up to 4 % of what is learnt in these few steps.
    """
    case = ("strategy=er", "strategy.replay_batch_size=12", "model=reduced_resnet18")
    case += ("scenario=task", "optimizer.lr=0.0001", "training.epochs=1", "precision=float32")
    members = [Member(*coloured(*case, "benchmark.seed=0", f"seed={seed}")) for seed in (0, 1)]
    assert obstacle(members) is None
    step, states = StackedStep(members), [initial_state(*m) for m in members]
    for t in range(2):
        states = train_together(members, states, t, step)
    for m, s in zip(members, states, strict=True):
        strategy, env = coloured(*case, "benchmark.seed=0", f"seed={m.env.seed}")
        env.layout = torch.contiguous_format
        alone = initial_state(strategy, env)
        start = alone.theta.detach().clone()
        for task in env.stream:
            alone = train_task(strategy, alone, task, env)
        moved = (alone.theta - start).norm()
        assert (s.theta - alone.theta).norm() < 0.001 * moved
        torch.testing.assert_close(s.buffers, alone.buffers, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("network", [resnet(), CNN((3, 8, 8), [4, 3], 5, 3)])
def test_both_layouts_compute_the_same(network):
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    together = x.contiguous(memory_format=torch.channels_last)
    assert together.stride() != x.stride()
    results = []
    for images in (x, together):
        network.zero_grad()
        logits = network(images)
        logits.square().sum().backward()
        results.append((logits.detach(), [p.grad.clone() for p in network.parameters()]))
    (a, grads), (b, others) = results
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for grad, other in zip(grads, others, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-4)


def test_activations_are_those_of_all_modules():
    mlp = MLP(16, [40, 5], 3, "default", 0.0)  # the input, layers, dropout after two, the output
    assert activations(mlp, (1, 4, 4)) == [16, 40, 40, 5, 5, 3, 3]
    network = ResNet(3, (1, 1), 20, 10, "projection")
    network.train()
    assert max(activations(network, (3, 32, 32))) == 20 * 32 * 32
    assert network.training and not network._forward_hooks
    assert int(network.bn.num_batches_tracked) == 0


def test_the_rule_for_chunks_changes_no_accuracy(prepared, monkeypatch):
    """In chunks of one image, of a few with a rest, and of all."""
    strategy, env = prepared("strategy=naive", "benchmark=split_digits")[1:]
    s, rows = initial_state(strategy, env), []
    monkeypatch.setattr(evaluation, "LARGEST_CHUNK", 2000)
    for size in (1, 7, 2000):
        monkeypatch.setattr(evaluation, "CHUNK_BYTES", size * 4 * max(env.activations))
        assert evaluation.evaluation_chunk(env) == size
        rows.append(evaluate(strategy, s, env))
    assert rows[0] == rows[1] == rows[2]
