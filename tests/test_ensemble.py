"""Members trained as one stacked state equal the same runs alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_runner import strategies
from cl_runner.core import TrainState
from cl_runner.errors import Diverged, UserError
from cl_runner.running.evaluation import evaluate
from cl_runner.running.stacked import StackedStep, obstacle
from cl_runner.running.tasks import Member, initial_state, train_task
from cl_runner.running.together import train_task as train_together
from cl_runner.training.engines import Recorder

pytestmark = pytest.mark.slow

TOY = (
    "benchmark.num_tasks=2",
    "benchmark.train_samples=120",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=2",
    "precision=float32",
)
STACKED = [name for name in strategies.available() if strategies.find(name).one_graph]
SHORT = {
    "bir": ("strategy.hidden_sizes=[20]", "strategy.latent_size=4"),
    "gdumb": ("strategy.epochs=2",),
    "la_maml": ("strategy.inner_steps=2",),
    "ridge": ("strategy.features=50",),
    "mer": (
        *("training.batch_size=2", "training.epochs=1"),
        *("benchmark.train_samples=40", "strategy.buffer_size=50"),
    ),
}


def case_of(name: str) -> tuple[str, ...]:
    supported = strategies.find(name).scenarios
    scenario = "domain" if "domain" in supported else supported[0]
    return (f"strategy={name}", f"scenario={scenario}", *SHORT.get(name, ()))


def alone(prepared, *overrides: str):
    _, strategy, env = prepared(*overrides)
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    return trained(s), evaluate(strategy, s, env), env.meter


def trained(s: TrainState) -> dict[str, Tensor]:
    return {"theta": s.theta.detach().clone()} | {k: v.clone() for k, v in s.buffers.items()}


def together(prepared, *members: tuple[str, ...], record: Recorder | None = None):
    runs = [Member(*prepared(*overrides)[1:]) for overrides in members]
    assert obstacle(runs) is None
    states = [initial_state(m.strategy, m.env) for m in runs]
    step = StackedStep(runs, record)
    for t in range(runs[0].env.num_tasks):
        states = train_together(runs, states, t, step)
    return [
        (trained(s), evaluate(m.strategy, m.env.commit(s), m.env), m.env.meter)
        for m, s in zip(runs, states, strict=True)
    ]


def assert_equal_runs(
    prepared,
    *members: tuple[str, ...],
    toy: tuple[str, ...] = TOY,
    tolerance: float = 1e-4,
    flops: float = 0,
) -> None:
    members = [(*toy, *overrides) for overrides in members]
    for overrides, (end, rows, meter) in zip(members, together(prepared, *members), strict=True):
        expected, expected_rows, counted = alone(prepared, *overrides)
        torch.testing.assert_close(end, expected, rtol=tolerance, atol=tolerance)
        for key, row in rows.items():
            assert row == pytest.approx(expected_rows[key], abs=0.01)
        for name in ("steps", "samples", "evaluation_flops"):
            assert getattr(meter, name) == getattr(counted, name), name
        assert meter.flops == pytest.approx(counted.flops, rel=flops, abs=0)


@pytest.mark.parametrize("name", STACKED)
def test_a_member_equals_the_run_alone(prepared, name):
    """Seeds differ, and with them initial weights, orders, noise and permutations."""
    case = case_of(name)
    if name == "xdg":
        runs = [Member(*prepared(*TOY, *case)[1:])]
        assert obstacle(runs) == "fixed parts of the network are drawn from the seed"
        return
    assert_equal_runs(prepared, (*case, "seed=0"), (*case, "seed=1"))


# What moves besides theta: BatchNorm's statistics; and masks that are drawn in a step. The rate is
# low, for a ReLU that a rounding turns over is amplified by BatchNorm in each step.
CALM = (*(o for o in TOY if "hidden_sizes" not in o), "training.epochs=1", "optimizer.lr=0.001")


@pytest.mark.parametrize("name", STACKED)
def test_batchnorm_and_dropout_are_each_members_own(prepared, name):
    case = (*case_of(name), "model.hidden_sizes=[24]", "model.dropout=0.3")
    runs = [(*case, "model.norm=batch", f"seed={seed}") for seed in (0, 1)]
    try:
        prepared(*CALM, *runs[0])
    except UserError:  # it takes no BatchNorm
        runs = [(*case, f"seed={seed}") for seed in (0, 1)]
        if reason := obstacle([Member(*prepared(*CALM, *runs[0])[1:])]):
            pytest.skip(f"it takes no BatchNorm, and with dropout {reason}")
    newton = 1e-3 if name == "bic" else 0  # whose last steps are halved as rounding has it
    assert_equal_runs(prepared, *runs, toy=CALM, flops=newton)


def test_residual_networks_are_stacked(prepared):
    """With replay, and in colour: test_layout."""
    network = ("benchmark=split_digits", "model=reduced_resnet18", "model.width=2")
    case = ("strategy=ewc", "scenario=domain", *network, "training.augment=crop_flip")
    assert_equal_runs(prepared, (*case, "seed=0"), (*case, "seed=1"), toy=CALM, tolerance=1e-3)


def test_members_in_bfloat16_differ_from_the_run_alone_by_its_roundings(prepared):
    network = ("benchmark=split_digits", "model=cnn", "model.channels=[4,4]", "optimizer.lr=0.1")
    case = (*CALM, "strategy=er", *network, "seed=0")
    mixed = (*case, "precision=bfloat16")
    (found, _, _), _ = together(prepared, mixed, (*mixed[:-2], "seed=1", mixed[-1]))
    same, exact = (alone(prepared, *o)[0]["theta"] for o in (mixed, case))
    start = initial_state(*prepared(*case)[1:]).theta
    rounded = (same - exact).norm()
    assert 0 < (found["theta"] - same).norm() < 2 * rounded < 0.1 * (exact - start).norm()


def test_a_recorded_stack_moves_statistics(prepared):
    network = ("model.hidden_sizes=[24]", "model.norm=batch", "model.dropout=0.3")
    members = [(*CALM, "strategy=er", *network, f"seed={seed}") for seed in (0, 1)]
    plain = together(prepared, *members)
    records: list[object] = []
    recorded = together(prepared, *members, record=lambda body: records.append(body) or body)
    assert len(records) == 2  # of whole batches and the last one, for both tasks
    for (end, rows, _), (other, other_rows, _) in zip(plain, recorded, strict=True):
        torch.testing.assert_close(end, other, rtol=0, atol=0)
        assert rows == other_rows
        assert end["norms.0.running_var"].std() > 0


@pytest.mark.parametrize("name", ["er", "derpp"])
def test_several_steps_on_each_batch_are_stacked(prepared, name):
    case = (f"strategy={name}", "training.passes=2", "training.epochs=1")
    assert_equal_runs(prepared, (*case, "seed=0"), (*case, "seed=1"))


def test_learning_rate_and_lambda_may_differ(prepared):
    case = ("strategy=ewc", "optimizer.schedule=cosine")
    assert_equal_runs(
        prepared,
        (*case, "strategy.lambda=1", "optimizer.lr=0.1"),
        (*case, "strategy.lambda=30", "optimizer.lr=0.05"),
        (*case, "strategy.lambda=0", "optimizer.lr=0.02", "seed=3"),
    )


def test_a_recorded_stack_takes_the_same_course(prepared):
    """What a GPU replays as a CUDA graph, here replayed by hand; the last batch is smaller."""
    case = ("strategy=derpp", "optimizer=adam", "optimizer.schedule=cosine")
    members = [(*TOY, *case, "seed=0"), (*TOY, *case, "seed=1", "optimizer.lr=0.01")]
    plain = together(prepared, *members)
    recorded = together(prepared, *members, record=lambda body: body)
    for (end, rows, _), (other, other_rows, _) in zip(plain, recorded, strict=True):
        torch.testing.assert_close(end, other, rtol=0, atol=0)
        assert rows == other_rows


def test_augmentation_is_each_members_own(prepared):
    case = ("strategy=er", "benchmark=split_digits", "training.augment=crop_flip")
    assert_equal_runs(prepared, (*case, "seed=0"), (*case, "seed=1"))


@pytest.mark.parametrize(
    "stream",
    [
        "benchmark=conditions_digits benchmark.conditions=[noise,blur]",
        "benchmark=random_labels_digits",
        "benchmark=label_permuted_digits",
        "benchmark=sequence benchmark.datasets=[digits,digits] benchmark.samples_per_task=40",
        "benchmark=rotated_digits benchmark.samples_per_task=40 benchmark.fresh=true",
        "benchmark=permuted_digits benchmark.imbalance=5 benchmark.samples_per_task=40",
    ],
)
def test_each_members_stream_is_its_own(prepared, stream):
    """Its noise, its labels and its samples, in the replayed part of a batch as well."""
    case = ("strategy=er", "strategy.buffer_size=60", *stream.split())
    assert_equal_runs(prepared, (*case, "seed=0"), (*case, "seed=1"))


def test_batches_may_grow_from_task_to_task(prepared):
    case = ("strategy=cumulative", "strategy.growing_batch=true")
    assert_equal_runs(prepared, (*case, "seed=0"), (*case, "seed=1"))


def test_a_member_that_diverges_leaves_the_others(prepared):
    good = ("strategy=ewc", "strategy.lambda=1", "strategy.penalty=loss")
    bad = ("strategy=ewc", "strategy.lambda=1e9", "strategy.penalty=loss")
    runs = [Member(*prepared(*TOY, *overrides)[1:]) for overrides in (good, bad)]
    states = [initial_state(m.strategy, m.env) for m in runs]
    step = StackedStep(runs)
    states = train_together(runs, states, 0, step)
    kept, lost = train_together(runs, states, 1, step)
    assert isinstance(lost, Diverged) and "in task 2" in str(lost)
    expected, _, _ = alone(prepared, *TOY, *good)
    torch.testing.assert_close(kept.theta.detach(), expected["theta"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("strategy=gem",), "a step of strategy=gem is not one graph"),
        (("strategy=naive", "training.boundaries=detected"), "training.boundaries=detected finds"),
    ],
)
def test_what_cannot_be_stacked_says_why(prepared, overrides, reason):
    runs = [Member(*prepared(*TOY, *overrides, f"seed={seed}")[1:]) for seed in (0, 1)]
    assert (obstacle(runs) or "").startswith(reason)


def test_tasks_of_different_sizes_cannot_be_stacked(prepared):
    case = ("strategy=naive", "benchmark=split_digits", "benchmark.class_order=shuffled")
    runs = [Member(*prepared(*TOY, *case, f"seed={seed}")[1:]) for seed in (0, 1)]
    assert (obstacle(runs) or "").startswith("task 1 has a different number of samples")
