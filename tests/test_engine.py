"""The training loop and the evaluation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cl_runner.errors import Diverged
from cl_runner.running.evaluation import evaluate
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.training import optim
from cl_runner.training.batches import Source
from cl_runner.training.env import active_table

TOY = ("strategy=naive", "benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2")


def test_epochs_show_every_sample_as_often(counted_run):
    _, _, env, counts = counted_run(*TOY, "training.batch_size=100", "training.epochs=3")
    for (steps, samples), task in zip(counts, env.stream, strict=True):
        assert steps == 3 * -(-len(task.train) // 100)
        assert samples == 3 * len(task.train)


def test_iterations_replace_epochs(counted_run):
    _, _, _, counts = counted_run(*TOY, "training.iterations=7", "training.batch_size=100")
    assert [steps for steps, _ in counts] == [7] * 5


def test_an_epoch_shows_each_sample_once_in_an_order_of_its_own(prepared):
    _, strategy, env = prepared(*TOY, "training.batch_size=32")
    s = initial_state(strategy, env)
    source = Source(env, s, 0, env.stream[0].train, 0, strategy)
    n = -(-len(env.stream[0].train) // 32)
    orders = [torch.cat([b.index for b in source.epoch(epoch, n)]) for epoch in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, env.stream[0].train)
    assert not torch.equal(*orders)


def test_test_data_have_no_influence_on_training(prepared):
    _, strategy, env = prepared(*TOY)
    thetas = []
    for stream in (env.stream, dataclasses.replace(env.stream, y_test=env.stream.y_test.flip(0))):
        _, _, fresh = prepared(*TOY)
        fresh.stream = dataclasses.replace(stream, cache={})
        s = initial_state(strategy, fresh)
        for task in fresh.stream:
            s = train_task(strategy, s, task, fresh)
            evaluate(strategy, s, fresh)
        thetas.append(s.theta.detach().clone())
    assert torch.equal(*thetas)


def test_evaluating_changes_nothing(prepared):
    options = ("model=reduced_resnet18", "model.width=2", "benchmark.train_samples=90")
    _, strategy, env = prepared("strategy=naive", "benchmark=split_digits", *options)
    s = initial_state(strategy, env)
    s = train_task(strategy, s, env.stream[0], env)
    before = [s.theta.detach().clone(), *(v.clone() for v in env.flat.buffers.values())]
    evaluate(strategy, s, env)
    after = [s.theta.detach(), *env.flat.buffers.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert env.flat.module.training


def test_both_readings_against_a_loop(counted_run):
    strategy, s, env, _ = counted_run(*TOY, tasks=2)
    rows = evaluate(strategy, s, env)
    assert set(rows) == {("test", "class"), ("test", "task")}
    for task in env.stream:
        images, labels = env.stream.held_out("test", task)
        logits = env.net(s.theta, env.stream.normalise(images), torch.zeros(len(images))).detach()
        own = sorted(task.classes)
        by_class = sum(int(z.argmax()) == int(y) for z, y in zip(logits, labels, strict=True))
        by_task = sum(
            own[int(z[own].argmax())] == int(y) for z, y in zip(logits, labels, strict=True)
        )
        assert rows["test", "class"][task.index] == by_class / len(labels)
        assert rows["test", "task"][task.index] == by_task / len(labels)


def test_validation_samples_are_evaluated_and_never_trained_on(counted_run):
    strategy, s, env, counts = counted_run(*TOY, "benchmark.validation_fraction=0.25")
    rows = evaluate(strategy, s, env)
    assert ("validation", "class") in rows
    for task, (_, samples) in zip(env.stream, counts, strict=True):
        assert samples == 2 * len(task.train)
        assert not set(task.train.tolist()) & set(task.validation.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("benchmark", ["split_digits", "permuted_digits", "rotated_digits"])
def test_every_benchmark_trains_in_every_scenario(counted_run, benchmark, scenario):
    strategy, s, env, _ = counted_run(
        *TOY, f"benchmark={benchmark}", f"scenario={scenario}", "training.epochs=10"
    )
    own = evaluate(strategy, s, env)["test", scenario]
    assert own[-1] > 0.5  # the task just trained; chance is 0.1 or 0.5
    if scenario == "task" and benchmark == "split_digits":
        assert own[-1] > 0.8


def test_active_classes(prepared):
    _, _, env = prepared(*TOY)
    seen = active_table(env.stream, "seen")
    current = active_table(env.stream, "current")
    assert active_table(env.stream, "all") is None and seen is not None and current is not None
    assert seen[1].tolist() == [True] * 4 + [False] * 6
    assert current[1].tolist() == [c in (2, 3) for c in range(10)]


@pytest.mark.parametrize("active_classes", ["seen", "current"])
def test_active_classes_of_samples_of_several_tasks(prepared, active_classes):
    """Within task 3: of new and of replayed samples."""
    _, _, env = prepared(*TOY, f"training.active_classes={active_classes}")
    found = env.active(torch.tensor([2, 0]), torch.tensor(2))
    new = range(6) if active_classes == "seen" else (4, 5)
    old = range(6) if active_classes == "seen" else (0, 1)
    assert found.tolist() == [[c in of for c in range(10)] for of in (new, old)]


def test_inactive_classes_get_no_gradient(counted_run):
    """Multi-head: the outputs of other tasks do not move."""
    _, s, env, _ = counted_run(*TOY, "scenario=task", tasks=1)
    _, start, _, _ = counted_run(*TOY, "scenario=task", tasks=0)
    change = (s.theta - start.theta).detach()
    output = env.flat.views(change)["layers.1.weight"]
    assert output[:2].abs().sum() > 0 and output[2:].abs().sum() == 0


def test_optimizer_slots_are_carried_over_or_reset(counted_run):
    def steps(*overrides: str) -> float:
        return float(counted_run(*TOY, "optimizer=adam", *overrides)[1].opt["steps"])

    counts = counted_run(*TOY, "optimizer=adam")[3]
    assert steps() == sum(n for n, _ in counts)
    assert steps("optimizer.reset=true") == counts[-1][0]


def test_the_schedule_reaches_the_steps(counted_run, monkeypatch):
    rates = []
    update = optim.update

    def spy(config, theta, grad, slots, **rest):
        rates.append(float(slots["lr"]))
        return update(config, theta, grad, slots, **rest)

    monkeypatch.setattr(optim, "update", spy)
    counted_run(
        *TOY,
        "optimizer.schedule=step",
        "optimizer.milestones=[0.5]",
        "training.iterations=4",
        tasks=2,
    )
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01] * 2)


def test_dropout_is_reproducible_and_off_at_evaluation(counted_run):
    dropout = ("model.dropout=0.5",)
    strategy, s, env, _ = counted_run(*TOY, *dropout)
    torch.rand(3)  # whatever else uses the global generator
    _, again, _, _ = counted_run(*TOY, *dropout)
    assert torch.equal(s.theta, again.theta)
    assert evaluate(strategy, s, env) == evaluate(strategy, s, env)
    _, without, _, _ = counted_run(*TOY)
    assert not torch.equal(s.theta, without.theta)


def test_divergence_names_task_and_step(counted_run):
    with pytest.raises(Diverged, match=r"in task 1 at step \d+"):
        counted_run(*TOY, "optimizer.lr=1e30")


def test_augmentation_is_reproducible_and_changes_training(counted_run):
    _, s, _, _ = counted_run(*TOY, "training.augment=crop_flip")
    _, again, _, _ = counted_run(*TOY, "training.augment=crop_flip")
    _, plain, _, _ = counted_run(*TOY)
    assert torch.equal(s.theta, again.theta) and not torch.equal(s.theta, plain.theta)
