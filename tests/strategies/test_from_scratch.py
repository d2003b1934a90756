"""From scratch: new weights for each task, all data so far, and nothing of what was before."""

from __future__ import annotations

import pytest
import torch

from cl_runner.running.tasks import initial_state, train_task
from cl_runner.testing import assert_same, snapshot

SHORT = ("strategy=from_scratch", "benchmark=split_digits", "training.epochs=1", "optimizer=adam")
SMALL = ("model.hidden_sizes=[24]",)
TOY = (*SHORT, *SMALL)
BATCHNORM = ("model=reduced_resnet18", "model.width=2", "benchmark.train_samples=60")


def test_each_task_trains_on_all_so_far_with_weights_of_its_own(prepared, counted_run):
    _, _, env, counts = counted_run(*TOY)
    sizes = [len(task.train) for task in env.stream]
    assert [samples for _, samples in counts] == [sum(sizes[: t + 1]) for t in range(5)]
    _, strategy, env = prepared(*TOY)
    s = initial_state(strategy, env)
    begun = [strategy.begin_task(s, task, env).theta.detach() for task in env.stream]
    assert torch.equal(begun[0], s.theta)  # the run's initial weights are new
    assert len({round(float(theta.sum()), 6) for theta in begun}) == 5
    again = [strategy.begin_task(s, task, env).theta for task in env.stream]
    assert all(torch.equal(a, b) for a, b in zip(begun, again, strict=True))
    _, _, other = prepared(*TOY, "seed=1")
    assert not torch.equal(begun[1], strategy.begin_task(s, env.stream[1], other).theta)


@pytest.mark.parametrize("more", [SMALL, BATCHNORM], ids=["mlp", "BatchNorm"])
def test_a_task_ends_the_same_whatever_was_trained_before(prepared, more):
    """Weights, the optimizer's slots and BatchNorm's statistics: all are of the task alone."""
    ends = []
    for disturbed in (False, True):
        _, strategy, env = prepared(*SHORT, *more)
        s = initial_state(strategy, env)
        if disturbed:
            s = train_task(strategy, s, env.stream[0], env)
            opt = {k: v + 1 if v.ndim else v for k, v in s.opt.items()}
            s = env.commit(s._replace(theta=s.theta.detach() * 3, opt=opt))
            for value in s.buffers.values():
                value.add_(7)
        ends.append(snapshot(train_task(strategy, s, env.stream[2], env)))
    assert_same(*ends)


def test_it_is_cumulative_that_restarts_from_scratch(after_each_task):
    _, own, rows = after_each_task(*TOY)
    _, other, others = after_each_task(*TOY, "strategy=cumulative", "strategy.restart=scratch")
    assert rows == others
    assert torch.equal(own[-1].theta, other[-1].theta)


def test_new_weights_cost_no_flops(counted_run):
    """Those of the steps alone: as many as cumulative's, which takes the same steps."""
    flops = [
        counted_run(*TOY, f"strategy={name}")[2].meter.flops
        for name in ("from_scratch", "cumulative")
    ]
    assert flops[0] == flops[1] > 0
