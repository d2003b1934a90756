"""Context-dependent gating: which units a task sees, and that it touches no others."""

from __future__ import annotations

import pytest
import torch

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    "benchmark=split_digits",
    "scenario=task",
    "model.hidden_sizes=[20,30]",
    "training.batch_size=64",
    "training.epochs=1",
)


def gates_of(env) -> torch.Tensor:
    return env.flat.module.table.detach()


@pytest.mark.parametrize("gated", [0.0, 0.5, 0.8])
def test_each_task_loses_exactly_the_share_of_each_hidden_stage(prepared, gated):
    _, _, env = prepared("strategy=xdg", *TOY, f"strategy.gated={gated}")
    for stage in gates_of(env).split([20, 30], 1):
        assert {*stage.unique().tolist()} <= {0.0, 1.0}
        assert stage.sum(1).tolist() == [round((1 - gated) * stage.shape[1])] * 5


def test_the_gates_differ_by_task_and_by_the_runs_seed_alone(prepared):
    first, again, other = (
        gates_of(prepared("strategy=xdg", *TOY, f"seed={seed}", *more)[2])
        for seed, more in ((0, ()), (0, ("strategy.lambda=0", "optimizer=adam")), (1, ()))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 5


def test_channels_are_gated_in_a_convolutional_network(prepared):
    own = ("model=cnn", "model.channels=[10,20]", "strategy.gated=0.8")
    _, _, env = prepared("strategy=xdg", *TOY[:2], *own)
    parts = gates_of(env).split([10, 20, 128], 1)
    assert [part.sum(1).tolist() for part in parts] == [[2.0] * 5, [4.0] * 5, [26.0] * 5]


@pytest.mark.parametrize("gated", [0.0, 0.8])
def test_what_leads_out_of_gated_units_begins_as_in_a_network_of_those_that_are_seen(
    prepared, gated
):
    plain, own = (
        prepared("strategy=xdg", *TOY, f"strategy.gated={gated}", f"strategy.initial={initial}")[2]
        for initial in ("network", "subnetwork")
    )
    weights = own.flat.views(own.flat.theta.detach())
    for name, value in plain.flat.views(plain.flat.theta.detach()).items():
        layer = int(name.split(".")[2])
        ratio = (1, 20 / round(20 * (1 - gated)), 30 / round(30 * (1 - gated)))[layer]
        torch.testing.assert_close(weights[name], value * ratio**0.5)


def gated_weights(env, task: int) -> torch.Tensor:
    """Which parameters [P] lead into or out of a unit that is gated in `task`."""
    off = gates_of(env)[task] == 0
    one, two = off.split([20, 30])
    parts = env.flat.views(torch.zeros_like(env.flat.theta, dtype=torch.bool))
    for layer, (before, after) in enumerate(((None, one), (one, two), (two, None))):
        weight, bias = (parts[f"network.layers.{layer}.{kind}"] for kind in ("weight", "bias"))
        if after is not None:
            weight |= after[:, None]
            bias |= after
        if before is not None:
            weight |= before
    return torch.cat([part.flatten() for part in parts.values()])


def test_gated_units_contribute_nothing_and_get_no_gradient(mid_run):
    strategy, env, s, batches = mid_run(
        "strategy=xdg", *TOY, "strategy.lambda=0", "strategy.gated=0.8", tasks=1
    )
    hidden = gated_weights(env, 1)
    assert int((~hidden).sum()) == 4 * 65 + 6 * (4 + 1) + 10 * (6 + 1)
    grad, _ = env.grad_and_value(strategy.loss)(s.theta, s, batches[0], env)
    assert not grad[hidden].any()
    seen = env.flat.views(torch.where(hidden, 0.0, grad))
    assert all(part.any() for part in seen.values())  # every layer learns with what is left
    changed = torch.where(hidden, torch.randn_like(s.theta), s.theta.detach())
    x = batches[0].x
    assert torch.equal(
        strategy.predict(s._replace(theta=changed), x, 1, env), strategy.predict(s, x, 1, env)
    )
    assert not torch.equal(
        strategy.predict(s._replace(theta=changed), x, 0, env), strategy.predict(s, x, 0, env)
    )


def test_a_task_leaves_the_weights_of_its_gated_units_as_they_were(mid_run):
    """Bit for bit, with plain SGD; with Adam only if it is reset, as the authors do."""
    for optimizer, same in (
        (("optimizer=sgd",), True),
        (("optimizer=adam", "optimizer.reset=true"), True),
        (("optimizer=adam",), False),
    ):
        strategy, env, s, _ = mid_run(
            "strategy=xdg", *TOY, "strategy.lambda=0", *optimizer, tasks=2
        )
        before, hidden = s.theta.detach().clone(), gated_weights(env, 2)
        s = train_task(strategy, s, env.stream[2], env)
        assert torch.equal(s.theta[hidden], before[hidden]) == same
        assert not torch.equal(s.theta[~hidden], before[~hidden])


def test_without_gating_it_is_si(prepared):
    thetas = []
    pinned = ("precision=float32", "threads=1")  # a plain MLP's step chooses its kernels by size
    for name in ("si", "xdg"):
        more = ("strategy.gated=0",) if name == "xdg" else ()
        _, strategy, env = prepared(
            f"strategy={name}", *TOY, "strategy.lambda=2", "strategy.damping=0.01", *pinned, *more
        )
        s = initial_state(strategy, env)
        for task in env.stream[:3]:
            s = train_task(strategy, s, task, env)
        thetas.append(s.theta.detach().clone())
    assert torch.equal(*thetas)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.gated=1",), r"strategy.gated must lie in \[0, 1\), got 1"),
        (("strategy.gated=0.99",), "leaves no unit of a stage that has 20"),
        (("scenario=domain",), "strategy=xdg does not support scenario=domain"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared("strategy=xdg", *TOY, *overrides)


def test_residual_networks_are_refused(prepared):
    with pytest.raises(UserError, match=r"strategy=xdg .* use model=mlp or model=cnn"):
        prepared("strategy=xdg", *TOY[:2], "model=reduced_resnet18")
