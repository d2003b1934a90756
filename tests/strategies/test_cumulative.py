"""Cumulative training: each task together with all before it."""

from __future__ import annotations

from cl_runner.engine import initial_state, train_task

TOY = ("strategy=naive", "benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2")


def train(prepared, *overrides: str, tasks: int = 5):
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    counts = []
    for task in env.stream[:tasks]:
        steps, samples = env.meter.steps, env.meter.samples
        s = train_task(strategy, s, task, env)
        counts.append((env.meter.steps - steps, env.meter.samples - samples))
    return strategy, s, env, counts


def test_cumulative_trains_on_everything_so_far(prepared):
    _, _, env, counts = train(prepared, "strategy=cumulative")
    sizes = [len(task.train) for task in env.stream]
    assert [samples for _, samples in counts] == [2 * sum(sizes[: t + 1]) for t in range(5)]
