"""Cumulative training: each task together with all before it."""

from __future__ import annotations

TOY = ("strategy=naive", "benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2")


def test_cumulative_trains_on_everything_so_far(counted_run):
    _, _, env, counts = counted_run(*TOY, "strategy=cumulative")
    sizes = [len(task.train) for task in env.stream]
    assert [samples for _, samples in counts] == [2 * sum(sizes[: t + 1]) for t in range(5)]


def test_a_growing_batch_has_as_many_samples_for_each_task(counted_run):
    toy = (*TOY, "strategy=cumulative", "training.batch_size=16", "training.epochs=1")
    _, _, env, plain = counted_run(*toy)
    _, _, _, growing = counted_run(*toy, "strategy.growing_batch=true")
    sizes = [len(task.train) for task in env.stream]
    for t in range(5):
        samples = sum(sizes[: t + 1])
        assert plain[t] == (-(-samples // 16), samples)
        assert growing[t] == (-(-samples // (16 * (t + 1))), samples)
