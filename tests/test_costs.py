"""What a run is said to have cost: against formulas, torch's counter, and the runs themselves."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cl_runner import strategies
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows
from cl_runner.running.evaluation import evaluate
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.training import flops as flops_of
from cl_runner.training import meter
from cl_runner.training.flops import FlopCounter

pytestmark = pytest.mark.slow

TOY = (
    "benchmark=split_digits",
    "benchmark.num_tasks=3",
    "model.hidden_sizes=[24]",
    "training.iterations=6",
    "training.batch_size=16",
    "verbose=false",
)
COSTLY = {
    "gdumb": ("strategy.epochs=2",),
    "mer": ("training.batch_size=4",),  # a step of it has one of its own for each sample
    "ridge": ("strategy.features=50",),
    **dict.fromkeys(("generative_replay", "bir"), ("strategy.hidden_sizes=[20]",)),
}
D, H, K = 64, 24, 10
FORWARD = 2 * D * H + 2 * H * K  # per sample
# The weights' gradients cost as much as the products themselves; no layer below the first needs a
# gradient of its input.
STEP = 2 * FORWARD + 2 * H * K


def flops(configure, out, *overrides: str) -> list[dict[str, str]]:
    run(configure(*TOY, *overrides), out)
    return read_rows(out / "costs.csv")


def test_naive_and_evaluation_in_closed_form(configure, tmp_path):
    rows = flops(configure, tmp_path, "strategy=naive")
    (total,) = read_rows(tmp_path / "summary.csv")
    test = int(total["evaluation_flops"]) // 4 // FORWARD
    assert [row["after_task"] for row in rows] == ["0", "1", "2", "3"]
    assert [int(row["flops"]) for row in rows] == [0] + 3 * [6 * 16 * STEP]
    assert [int(row["samples"]) for row in rows] == [0] + 3 * [6 * 16]
    assert [int(row["steps"]) for row in rows] == [0] + 3 * [6]
    assert [int(row["evaluation_flops"]) for row in rows] == 4 * [test * FORWARD]
    assert 300 < test < 500  # all test digits, four times in all
    for name in ("steps", "samples", "flops", "evaluation_flops"):
        assert int(total[name]) == sum(int(row[name]) for row in rows)
    for name in ("train_seconds", "evaluation_seconds"):
        assert float(total[name]) == pytest.approx(sum(float(row[name]) for row in rows))
    P = D * H + H + H * K + K
    assert {row["parameters"] for row in rows} == {str(P)}
    peaks = [int(row["peak_memory_bytes"]) for row in rows]
    assert (
        peaks == sorted(peaks)
        and peaks[0] > 2**24
        and total["peak_memory_bytes"] == rows[-1]["peak_memory_bytes"]
    )


def test_replay_costs_its_share(configure, tmp_path):
    """(B + R) / B of fine-tuning, from the first step on: places without a sample are computed."""
    rows = flops(configure, tmp_path, "strategy=er", "strategy.replay_batch_size=8")
    assert [int(row["flops"]) for row in rows] == [0] + 3 * [6 * (16 + 8) * STEP]


def test_ewc_is_fine_tuning_and_a_fisher(configure, tmp_path):
    """For each class back to the hidden layer; a product for each weight; a trial sample."""
    rows = flops(configure, tmp_path, "strategy=ewc", "strategy.fisher_samples=50")
    fisher = {int(row["flops"]) - 6 * 16 * STEP for row in rows[1:]}
    assert fisher == {50 * (2 * FORWARD + K * 2 * H * K) + FORWARD}


@pytest.mark.parametrize("strategy", strategies.available())
def test_counts_are_those_of_torch_and_counting_changes_no_bit(prepared, monkeypatch, strategy):
    """Torch's counter, open all the time, sees as much as ours that looks at few of the steps."""
    monkeypatch.setattr("cl_runner.training.env.FOLD_CHUNK", 8)  # so that passes have many
    scenarios = strategies.find(strategy).scenarios
    # Three tasks share no outputs of ten classes: domain-incremental learning is refused.
    scenario = [s for s in scenarios if s != "domain"][-1]
    own = (f"strategy={strategy}", f"scenario={scenario}", *COSTLY.get(strategy, ()))
    case = (*TOY, "benchmark.train_samples=60", "training.iterations=4", *own)
    formula = {
        torch.ops.aten.mv: lambda shape, *_, **__: 2 * shape[0] * shape[1],
        torch.ops.aten.dot: lambda shape, *_, **__: 2 * shape[0],
        torch.ops.aten._int_mm: lambda a, b, **__: 2 * a[0] * a[1] * b[1],
        torch.ops.cl_runner.products: lambda a, _, b, **__: 2 * (2 * a[0] * a[1] * b[1]),
    }
    thetas, ours, theirs = [], [], []
    for open_ in (False, True):
        _, learner, env = prepared(*case)
        s = initial_state(learner, env)
        for task in env.stream:
            with (
                FlopCounterMode(display=False, custom_mapping=formula)
                if open_
                else nullcontext() as counter
            ):
                s = train_task(learner, s, task, env)
            if counter:
                theirs.append(counter.get_total_flops())
                ours.append(env.meter.flops)
        thetas.append(s.theta.detach().clone())
    assert torch.equal(*thetas)
    error = 0.0 if strategies.find(strategy).one_graph else 0.02  # GEM's quadratic program
    assert ours == pytest.approx(list(accumulate(theirs)), rel=error, abs=0) and ours[0] > 0


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("inputs", [False, True])
def test_convolutions_in_closed_form(groups, transposed, inputs):
    """Of stacked runs, whose convolutions are grouped: each member's own, and nothing between."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(2 * groups, 4 * groups, 3, stride=2, groups=groups)
    x = torch.randn(5, 2 * groups, 9, 9, requires_grad=inputs)
    with FlopCounter() as counter:
        out = layer(x)
        forward = counter.flops
        out.sum().backward()
    places = 81 if transposed else out.shape[2] * out.shape[3]
    assert forward == 2 * groups * 5 * places * 2 * 4 * 9
    assert counter.flops - forward == (1 + inputs) * forward


def test_evaluation_counts_every_sample_of_every_task(prepared):
    _, strategy, env = prepared(*TOY, "strategy=pnn", "scenario=task")
    s = initial_state(strategy, env)
    with FlopCounterMode(display=False) as counter:
        evaluate(strategy, s, env)
    first = env.meter.evaluation_flops
    assert first == counter.get_total_flops()
    evaluate(strategy, s, env)
    assert env.meter.evaluation_flops == 2 * first and env.meter.flops == 0


def test_a_counted_step_is_counted_once(prepared, monkeypatch):
    """What a plain run pays: no counter at the steps after the first of each batch size."""
    opened = []

    class Spy(FlopCounter):
        def __init__(self) -> None:
            opened.append(1)
            super().__init__()

    for module in (flops_of, meter):
        monkeypatch.setattr(module, "FlopCounter", Spy)
    _, strategy, env = prepared(*TOY, "strategy=naive", "training.iterations=200")
    train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    # The task's beginning and what it trains on, its end, a whole batch, the last one of an epoch.
    assert len(opened) == 5


# Budgets. Three tasks; a step of fine-tuning takes 16 samples.


def steps(configure, out, *overrides: str) -> list[int]:
    """How many steps each task got."""
    rows = flops(configure, out, *overrides)
    assert read_rows(out / "summary.csv")[0]["status"] == "complete"
    return [int(row["steps"]) for row in rows[1:]]


@pytest.mark.parametrize(
    ("budget", "expected", "stopped"),
    [
        (6 * 16, [2, 2, 2], [1, 2, 3]),
        (7 * 16, [2, 2, 3], [1, 2, 3]),  # what a task leaves goes to the others: 7/3, 5/2, 3
        (8 * 16 - 1, [2, 2, 3], [1, 2, 3]),
        (17 * 16, [5, 6, 6], [1]),
        (18 * 16, [6, 6, 6], []),
        (15, [0, 0, 0], [1, 2, 3]),
        (17, [0, 0, 1], [1, 2, 3]),
    ],
)
def test_a_budget_of_samples_is_shared_evenly(configure, tmp_path, budget, expected, stopped):
    assert steps(configure, tmp_path, "strategy=naive", f"budget.samples={budget}") == expected
    assert read_rows(tmp_path / "summary.csv")[0]["budget_stopped"] == str(stopped)


def test_a_budget_of_flops_counts_what_is_replayed(configure, tmp_path):
    budget = f"budget.flops={9.5 * 16 * STEP}"
    assert steps(configure, tmp_path / "naive", "strategy=naive", budget) == [3, 3, 3]
    er = ("strategy=er", "strategy.replay_batch_size=16", budget)  # two such steps cost four
    assert steps(configure, tmp_path / "er", *er) == [1, 1, 2]


def test_a_fisher_leaves_less_to_the_tasks_that_follow(configure, tmp_path):
    case = ("strategy=ewc", "strategy.fisher_samples=50")
    fisher = 50 * (2 * FORWARD + K * 2 * H * K) + FORWARD
    step, budget = 16 * STEP, 3 * (16 * STEP * 4 + fisher)
    first = int((budget / 3) // step)
    second = int(((budget - first * step - fisher) / 2) // step)
    third = int((budget - (first + second) * step - 2 * fisher) // step)
    counts = steps(configure, tmp_path, *case, f"budget.flops={budget}", "training.iterations=50")
    assert counts == [first, second, third]


def test_joint_training_has_the_whole_budget(configure, tmp_path):
    counts = steps(configure, tmp_path, "strategy=joint", "budget.samples=160")
    assert counts == [10, 0, 0]


def test_training_at_the_end_of_a_task_has_no_more(configure, tmp_path):
    gdumb = ("strategy=gdumb", "strategy.epochs=9", "budget.samples=96")
    assert steps(configure, tmp_path / "gdumb", *gdumb) == [2, 2, 2]
    packnet = ("strategy=packnet", "scenario=task", "strategy.retrain_epochs=2")
    counts = steps(configure, tmp_path / "packnet", *packnet, "budget.samples=480")
    assert counts == [10, 10, 6]  # six to train, four to prune; the last is not pruned


def test_seconds_that_are_over_and_seconds_that_are_many(configure, tmp_path):
    assert steps(configure, tmp_path / "a", "strategy=naive", "budget.seconds=1e-9") == [0, 0, 0]
    assert steps(configure, tmp_path / "b", "strategy=naive", "budget.seconds=1e9") == [6, 6, 6]
    assert steps(configure, tmp_path / "c", "strategy=naive") == [6, 6, 6]
    assert "budget_stopped" not in read_rows(tmp_path / "c" / "summary.csv")[0]
    one, other = (tmp_path / name / "accuracies.csv" for name in "bc")
    assert one.read_bytes() == other.read_bytes()


def test_a_budget_of_seconds_is_used_up_and_ends_the_run(configure, tmp_path):
    case = ("strategy=naive", "budget.seconds=0.6", "training.iterations=1000000")
    run(configure(*TOY, *case), tmp_path)
    (row,) = read_rows(tmp_path / "summary.csv")
    assert float(row["train_seconds"]) > 0.6 and row["budget_stopped"] == "[1, 2, 3]"


@pytest.mark.parametrize("schedule", [("cosine",), ("step", "optimizer.milestones=[0.5]")])
def test_a_schedule_ends_with_the_budget(configure, tmp_path, schedule):
    """The same bits as a run that was planned to be that short."""
    case = ("strategy=naive", f"optimizer.schedule={schedule[0]}", *schedule[1:])
    for name, more in (("budget", f"budget.samples={12 * 16}"), ("short", "training.iterations=4")):
        assert steps(configure, tmp_path / name, *case, more) == [4, 4, 4]
    budget, short = (tmp_path / name / "accuracies.csv" for name in ("budget", "short"))
    assert budget.read_bytes() == short.read_bytes()


@pytest.mark.parametrize("key", ["samples", "flops", "seconds", "bytes"])
def test_a_budget_must_be_positive(configure, key):
    with pytest.raises(UserError, match=f"budget.{key} must be positive"):
        configure(f"budget.{key}=0")


@pytest.mark.parametrize(("replayed", "times"), [(16, None), (16 * 10, "11.0")])
def test_more_than_ten_times_the_flops_of_naive_is_told(
    configure, tmp_path, caplog, replayed, times
):
    """A replayed sample costs what a new one does; of a run that is as dear as naive, no word."""
    more = ("strategy=er", f"strategy.replay_batch_size={replayed}", "strategy.buffer_size=200")
    with caplog.at_level("INFO"):
        flops(configure, tmp_path, *more)
    told = [r.getMessage() for r in caplog.records if "FLOPs of" in r.getMessage()]
    line = f"task 1: strategy=er took {times} times the FLOPs of strategy=naive for each sample"
    assert told == ([] if times is None else [line])
