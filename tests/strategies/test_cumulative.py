"""Cumulative training: each task together with all before it, and where its weights begin."""

from __future__ import annotations

import pytest
import torch

from cl_runner.core import seed_for
from cl_runner.errors import UserError
from cl_runner.nn.networks import build, factory
from cl_runner.running.tasks import initial_state, train_task

OWN = ("strategy=cumulative", "benchmark=split_digits")
SMALL = ("model.hidden_sizes=[24]",)
TOY = (*OWN, *SMALL)
MIXED = ("strategy.restart=shrink_perturb", "strategy.shrink=0.3", "strategy.perturb=0.2")
BATCHNORM = ("model=reduced_resnet18", "model.width=2", "benchmark.train_samples=60")


def test_cumulative_trains_on_everything_so_far(counted_run):
    _, _, env, counts = counted_run(*TOY, "training.epochs=2")
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


@pytest.mark.parametrize("more", [SMALL, BATCHNORM], ids=["mlp", "BatchNorm"])
def test_a_later_task_begins_shrunk_and_perturbed(prepared, more):
    """0.3 theta + 0.2 theta', theta' drawn here by torch alone; the rest begins anew."""
    config, strategy, env = prepared(*OWN, *MIXED, *more, "optimizer=adam", "training.epochs=1")
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    old = s.theta.detach().clone()
    assert float(s.opt["m"].abs().sum()) > 0
    s = strategy.begin_task(s, env.stream[1], env)
    make_net = factory(config.model, env.input_shape, env.num_classes)
    fresh = build(make_net, seed_for(config.seed, "init", 1))
    drawn = torch.cat([p.detach().flatten() for p in fresh.parameters()])
    torch.testing.assert_close(s.theta, 0.3 * old + 0.2 * drawn)
    assert all(not v.any() for k, v in s.opt.items() if k != "lr")
    assert all(torch.equal(v, dict(fresh.named_buffers())[k]) for k, v in s.buffers.items())


def test_the_first_task_begins_at_the_initial_weights(prepared):
    _, strategy, env = prepared(*TOY, *MIXED)
    s = initial_state(strategy, env)
    assert strategy.begin_task(s, env.stream[0], env) is s


def test_the_ends_of_shrink_and_perturb_are_a_warm_start_and_none(after_each_task):
    warm, cold = (
        ("strategy.restart=shrink_perturb", f"strategy.shrink={a}", f"strategy.perturb={b}")
        for a, b in ((1, 0), (0, 1))
    )
    short = (*TOY, "training.epochs=1")  # plain SGD has no slots that would begin anew
    ends = [
        after_each_task(*short, *own)[1][-1].theta
        for own in (warm, (), cold, ("strategy.restart=scratch",))
    ]
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[2], ends[3])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("restart=always", "must be one of never, scratch, shrink_perturb, got 'always'"),
        ("shrink=0.5", "strategy.shrink=0.5 has no meaning with strategy.restart=never"),
        ("perturb=0", "strategy.perturb=0.0 has no meaning with strategy.restart=never"),
    ],
)
def test_settings_that_mean_nothing_are_refused(prepared, wrong, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, f"strategy.{wrong}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("shrink=1.5", r"strategy.shrink must lie in \[0, 1\], got 1.5"),
        ("perturb=-1", "strategy.perturb must be at least 0, got -1.0"),
    ],
)
def test_factors_out_of_range_are_refused(prepared, wrong, message):
    with pytest.raises(UserError, match=message):
        prepared(*TOY, "strategy.restart=shrink_perturb", f"strategy.{wrong}")
