"""The GPU path: the same numbers as the CPU's within rounding, twice the same bits."""

from __future__ import annotations

import warnings

import pytest
import torch

from cl_runner import strategies
from cl_runner.data.augment import crop_flip
from cl_runner.data.streams import resize
from cl_runner.nn.dropout import uniform_bits
from cl_runner.running.evaluation import evaluate
from cl_runner.running.stacked import StackedStep, obstacle
from cl_runner.running.tasks import Member, begin_task, initial_state, train_task
from cl_runner.running.together import train_task as train_together
from cl_runner.training.batches import Source
from cl_runner.training.engines import stepper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
TOY = (
    "benchmark.num_tasks=2",
    "benchmark.train_samples=200",
    "model.hidden_sizes=[24]",
    "training.batch_size=20",
    "training.epochs=1",
)


def train(prepared, device: str, *overrides: str):
    _, strategy, env = prepared(*TOY, *overrides, f"device={device}")
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    return s.theta.detach().clone().cpu(), evaluate(strategy, s, env)


@pytest.mark.parametrize("name", strategies.available())
def test_a_gpu_trains_as_a_cpu_does(prepared, name):
    supported = strategies.find(name).scenarios
    scenario = "domain" if "domain" in supported else supported[0]
    case = (f"strategy={name}", f"scenario={scenario}", "precision=float32")
    theta, rows = train(prepared, "cuda", *case)
    again, _ = train(prepared, "cuda", *case)
    expected, _ = train(prepared, "cpu", *case)
    assert torch.equal(theta, again)
    torch.testing.assert_close(theta, expected, rtol=1e-2, atol=1e-3)
    assert all(0 <= value <= 1 for row in rows.values() for value in row)


def test_convolutions_and_augmentation_are_reproducible(prepared):
    options = ("benchmark=split_digits", "training.augment=crop_flip", "model=cnn", "device=cuda")
    thetas = []
    for _ in range(2):
        _, strategy, env = prepared("strategy=er", "benchmark.num_tasks=2", *options)
        assert env.device.type == "cuda"
        s = initial_state(strategy, env)
        s = train_task(strategy, s, env.stream[0], env)
        thetas.append(s.theta.detach().clone())
    assert torch.equal(*thetas)


@pytest.mark.parametrize(
    "name", [n for n in strategies.available() if strategies.find(n).one_graph]
)
def test_a_captured_step_takes_the_same_course(prepared, name):
    supported = strategies.find(name).scenarios
    scenario = "domain" if "domain" in supported else supported[0]
    case = (f"strategy={name}", f"scenario={scenario}", "precision=float32")
    plain, _ = train(prepared, "cuda", *case, "engine=eager")
    captured, _ = train(prepared, "cuda", *case, "engine=graph")
    torch.testing.assert_close(captured, plain, rtol=1e-3, atol=1e-5)


SMALL = ("benchmark.num_tasks=2", "training.batch_size=20", "training.epochs=1")
DIGITS = (
    *(*SMALL, "benchmark=split_digits", "benchmark.seed=0", "scenario=domain"),
    "benchmark.train_samples=240",
)
# The rate is low: a ReLU that a rounding turns over is amplified by BatchNorm in each step.
RESIDUAL = (*DIGITS, "model=reduced_resnet18", "model.width=4", "optimizer.lr=0.0001")
# What moves besides theta, what is drawn in a step, and how convolutions are computed.
NETWORKS = {
    "mlp": (*SMALL, "benchmark.train_samples=200", "model.norm=batch", "model.dropout=0.3"),
    "cnn": (*DIGITS, "model=cnn", "model.channels=[4,8]", "training.augment=crop"),
    "resnet": (*RESIDUAL, "training.augment=crop_flip"),
}


def end(prepared, *overrides: str) -> dict[str, torch.Tensor]:
    """Theta and the buffers after a run on the GPU."""
    _, strategy, env = prepared(*overrides, "device=cuda")
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    return {"theta": s.theta.detach().clone()} | {k: v.clone() for k, v in s.buffers.items()}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("name", ["naive", "ewc", "er", "derpp", "lwf"])
def test_statistics_masks_and_crops_within_the_graph(prepared, name, network):
    case = (*network, f"strategy={name}", "precision=float32")
    plain, captured, again = (
        end(prepared, *case, f"engine={e}") for e in ("eager", *2 * ["graph"])
    )
    torch.testing.assert_close(captured, again, rtol=0, atol=0)
    torch.testing.assert_close(captured, plain, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("network", ["cnn", "resnet"])
def test_convolutions_with_tensor_cores_round_more_and_reach_the_same(prepared, network, precision):
    case = (*NETWORKS[network], "strategy=er")
    exact = end(prepared, *case, "precision=float32")["theta"]
    plain, captured = (
        end(prepared, *case, f"precision={precision}", f"engine={e}")["theta"]
        for e in ("eager", "graph")
    )
    start = initial_state(*prepared(*case, "device=cuda")[1:]).theta
    rounded = (plain - exact).norm()
    assert 0 < rounded < 0.3 * (exact - start).norm()
    assert (captured - plain).norm() <= 2 * rounded


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("name", ["ewc", "er", "derpp"])
def test_a_member_of_a_stack_equals_the_run_alone(prepared, name, network):
    case = (*network, f"strategy={name}", "precision=float32", "device=cuda")
    members = [Member(*prepared(*case, f"seed={seed}")[1:]) for seed in (0, 1)]
    assert obstacle(members) is None
    states = [initial_state(*m) for m in members]
    step = StackedStep(members)
    for t in range(members[0].env.num_tasks):
        states = train_together(members, states, t, step)
    assert len(step.recordings) == len(step.graphs) > 0
    for seed, s in enumerate(states):
        found = {"theta": s.theta.detach(), **s.buffers}
        alone = end(prepared, *case, f"seed={seed}")
        torch.testing.assert_close(found, alone, rtol=1e-2, atol=1e-3)


def test_masks_and_crops_are_the_cpus_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    key, uniform = torch.rand(2, generator=generator), torch.rand(50, 3, generator=generator)
    x = torch.randint(256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    assert torch.equal(uniform_bits(key.cuda(), 5, (70, 9)).cpu(), uniform_bits(key, 5, (70, 9)))
    assert torch.equal(crop_flip(x.cuda(), uniform.cuda()).cpu(), crop_flip(x, uniform))


def test_the_host_waits_for_nothing_within_an_epoch(prepared):
    _, strategy, env = prepared("strategy=er", *TOY, "device=cuda")
    s, progress = begin_task(strategy, initial_state(strategy, env), env.stream[0], env)
    source = Source(env, s, 0, *progress.samples, strategy)
    take = stepper(strategy, env, "graph")
    with torch.no_grad():
        batches = source.epoch(0, 8)
        s, _ = take(s, next(batches))  # records
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, that it may not see every wait
            torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches:
                s, _ = take(s, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_images_are_resized_there_as_on_a_cpu():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (300, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for size in (7, 16, 48):
        found, expected = (resize(x, size, torch.device(name)) for name in ("cuda", "cpu"))
        assert found.device == expected.device
        assert (found.int() - expected.int()).abs().max() <= 1  # where a half is rounded


def test_random_units_and_their_sums_are_the_cpus_to_the_bit(prepared):
    """A closed form's moments, though a GPU multiplies float32 and a CPU whole numbers."""
    memories = []
    for device in ("cpu", "cuda"):
        case = ("strategy=ridge", "benchmark=split_digits", "scenario=class")
        _, strategy, env = prepared(*case, "benchmark.num_tasks=2", f"device={device}")
        s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
        memories.append(s.memory | {"gram": s.memory["gram"].tril()})
    for name, value in memories[0].items():
        assert torch.equal(value, memories[1][name].cpu())
