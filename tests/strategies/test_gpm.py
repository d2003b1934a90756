"""GPM: the subspaces, what stays as it is in them, and which layers it is for."""

from __future__ import annotations

import pytest
import torch
from layer_outputs import layer_outputs

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.naive import Naive
from cl_runner.training.batches import Source

TOY = (
    "strategy=gpm",
    "benchmark=permuted_digits",
    "benchmark.num_tasks=3",
    "benchmark.train_samples=300",
    "training.batch_size=16",
    "training.epochs=3",
)
MLP = ("model.hidden_sizes=[24,16]",)
CNN = ("model=cnn", "model.channels=[6,8]", "model.hidden_size=12")


def run(prepared, *overrides: str, tasks: int = 1, model: tuple[str, ...] = MLP):
    """The state after some tasks, and the batches of the next."""
    config, strategy, env = prepared(*TOY, *model, *overrides)
    s = initial_state(strategy, env)
    for task in env.stream[:tasks]:
        s = train_task(strategy, s, task, env)
    s = s._replace(t=torch.full_like(s.t, tasks))
    source = Source(env, s, tasks, env.stream[tasks].train, tasks, strategy)
    return config, strategy, env, s, list(source.epoch(0, 2))


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_with_the_whole_subspace_no_old_representation_moves(prepared, scenario):
    """threshold 1 and all samples: exact in every layer that is projected."""
    few = "benchmark.train_samples=40"  # so that the first task leaves directions to learn in
    whole = ("strategy.threshold=[1.0]", "strategy.samples=1000")
    _, strategy, env, s, _ = run(prepared, f"scenario={scenario}", few, *whole)
    old, start = layer_outputs(env, s.theta, 0), s.theta.detach().clone()
    s = train_task(strategy, s, env.stream[1], env)
    assert float((s.theta.detach() - start).norm()) > 0.05
    new = layer_outputs(env, s.theta, 0)
    assert set(s.memory) == set(old) - ({"layers.2"} if scenario == "task" else set())
    for name in s.memory:
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-4, msg=name)
    if scenario == "task":  # nor does the old task's own part of the output layer
        torch.testing.assert_close(
            new["layers.2"][:, :10], old["layers.2"][:, :10], rtol=0, atol=1e-4
        )
        assert float((new["layers.2"] - old["layers.2"]).abs().max()) > 0.1


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
def test_steps_keep_what_each_layer_does_in_its_subspace(prepared, model):
    _, strategy, env, s, batches = run(prepared, "strategy.threshold=[0.9]", model=model)
    start = s.theta.detach().clone()
    with torch.no_grad():
        for batch in batches:
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    moved = env.flat.views(s.theta.detach() - start)
    assert set(s.memory) == {name.removesuffix(".weight") for name in moved if "weight" in name}
    for name, projector in s.memory.items():
        rank = float(projector.trace())
        assert 1 <= round(rank) < len(projector)
        assert rank == pytest.approx(round(rank), abs=1e-3)
        torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-5)
        change = moved[f"{name}.weight"].flatten(1)
        assert float(change.norm()) > 1e-3
        assert float((change @ projector).norm()) < 1e-4 * float(change.norm())
        assert not moved[f"{name}.bias"].any()


def test_the_subspace_explains_what_the_threshold_of_its_layer_says(prepared):
    for thresholds in ("[0.9]", "[0.6,0.95]"):
        _, strategy, env, s, _ = run(prepared, f"strategy.threshold={thresholds}", tasks=2)
        batch = env.gather(env.stream[1].train, 1, s.t)  # 300 samples: all that are looked at
        x = batch.x.flatten(1)
        for i, (name, projector) in enumerate(s.memory.items()):
            explained = float((x @ projector).square().sum() / x.square().sum())
            assert explained >= strategy.threshold[min(i, len(strategy.threshold) - 1)] - 1e-4
            layer = dict(env.flat.module.named_modules())[name]
            x = torch.relu(layer(x)).detach()


@pytest.mark.parametrize("samples", [7, 1000])
def test_samples_is_how_many_are_looked_at(prepared, samples):
    """Of the first layer's inputs: all that they span, and no more."""
    whole = ("strategy.threshold=[1.0]", f"strategy.samples={samples}")
    _, _, env, s, _ = run(prepared, *whole)
    rank = round(float(s.memory["layers.0"].trace()))
    x = env.gather(env.stream[0].train, 0, s.t).x.flatten(1).double()
    assert rank == (7 if samples == 7 else int(torch.linalg.matrix_rank(x)))


def test_in_the_first_task_it_is_naive(prepared):
    _, strategy, env, s, (batch, *_) = run(prepared, tasks=0)
    s = s._replace(theta=s.theta.detach().clone())
    expected, _ = Naive(name="naive").step(s, batch, env)
    actual, _ = strategy.step(s, batch, env)
    assert torch.equal(actual.theta, expected.theta)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("scenario=class",), "does not support scenario=class"),
        (("strategy.threshold=[]",), "one or more numbers"),
        (("strategy.threshold=[0.9,1.1]",), r"numbers in \(0, 1\]"),
        (("strategy.samples=0",), "at least 1"),
        (("strategy.threshold=[0.9,0.9,0.9,0.9]",), "has 4 numbers, and 3 layers are projected"),
        (("scenario=task", "strategy.threshold=[0.9,0.9,0.9]"), "3 numbers, and 2 layers are"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *overrides)


def test_other_layers_are_refused_by_name(prepared):
    with pytest.raises(UserError, match="the model's bn is a BatchNorm2d; use model=mlp"):
        prepared("strategy=gpm", "benchmark=permuted_digits", "model=reduced_resnet18")


def test_each_layer_may_have_a_threshold_of_its_own(prepared):
    _, strategy, env = prepared(*TOY, "strategy.threshold=[0.9,0.8,0.7]")
    assert len(strategy.init(env.flat.theta.detach(), env)) == 3
