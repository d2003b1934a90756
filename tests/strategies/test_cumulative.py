"""Cumulative training: each task together with all before it."""

from __future__ import annotations

TOY = ("strategy=naive", "benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2")


def test_cumulative_trains_on_everything_so_far(counted_run):
    _, _, env, counts = counted_run(*TOY, "strategy=cumulative")
    sizes = [len(task.train) for task in env.stream]
    assert [samples for _, samples in counts] == [2 * sum(sizes[: t + 1]) for t in range(5)]
