"""Adam-NSCL: the null space, the step within it, and what it leaves as it is."""

from __future__ import annotations

import pytest
import torch
from layer_outputs import layer_outputs

from cl_runner.errors import UserError
from cl_runner.functional.projection import outside_null_space
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    *("strategy=adam_nscl", "benchmark=permuted_digits", "benchmark.num_tasks=3"),
    *("benchmark.train_samples=40", "model.hidden_sizes=[12]", "training.batch_size=10"),
    *("training.epochs=2", "optimizer=adam", "optimizer.lr=0.01"),
)


@pytest.mark.parametrize(
    ("share", "multiple", "null"),
    [
        (0.0, None, 1),
        (0.0299, None, 2),
        (0.0301, None, 3),
        (0.99, None, 4),
        (None, 1.0, 1),
        (None, 1e9, 1),
    ],
)
def test_the_null_space_is_of_the_smallest_values(share, multiple, null: int) -> None:
    Q = torch.linalg.qr(torch.randn(5, 5, generator=torch.manual_seed(1)).double()).Q
    gram = Q * torch.tensor([0.0, 1.0, 2.0, 7.0, 90.0]) @ Q.T
    kept = Q[:, null:] @ Q[:, null:].T
    torch.testing.assert_close(outside_null_space(gram, share, multiple), kept)


def test_multiple_is_of_the_smallest_value() -> None:
    gram = torch.diag(torch.tensor([9.0, 1.0, 2.0, 30.0]).double())
    for multiple, kept in ((1, [1, 0, 1, 1]), (8.9, [1, 0, 0, 1]), (9.1, [0, 0, 0, 1])):
        expected = torch.diag(torch.tensor(kept).double())
        torch.testing.assert_close(outside_null_space(gram, None, multiple), expected)


CNN = ("model=cnn", "model.channels=[3,4]", "model.hidden_size=12", "benchmark.train_samples=15")
MOVING = ("optimizer.weight_decay=0.01",)
SGD = ("optimizer=sgd", "optimizer.lr=0.2", "optimizer.momentum=0.9")


@pytest.mark.parametrize("scenario", ["task", "domain"])
@pytest.mark.parametrize("own", [MOVING, SGD, CNN], ids=["adam", "sgd", "cnn"])
def test_no_layer_answers_the_old_samples_otherwise(prepared, scenario, own) -> None:
    """share=0, of fewer samples than a layer has inputs: exact, whatever the optimizer."""
    fixed = tuple(o for o in TOY if "hidden_sizes" not in o) if own == CNN else TOY
    whole = ("strategy.share=0", f"scenario={scenario}")
    _, strategy, env = prepared(*fixed, *own, *whole)
    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    old, start = layer_outputs(env, s.theta, 0), s.theta.detach().clone()
    s = train_task(strategy, s, env.stream[1], env)
    new, moved = layer_outputs(env, s.theta, 0), env.flat.views(s.theta.detach() - start)
    layers = [name.removeprefix("kept.") for name in s.memory if name.startswith("kept.")]
    assert (len(old) - len(layers)) == (scenario == "task")
    assert max(float(moved[f"{name}.weight"].norm()) for name in layers) > 0.01
    for name in layers:
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=2e-4, msg=name)


def test_a_step_is_adam_s_projected_by_the_singular_vectors(prepared) -> None:
    """Of two tasks' inputs, a 1 appended for the bias, and none of the output layer in task-IL."""
    _, strategy, env = prepared(*TOY, "scenario=task", "strategy.share=0.1", "optimizer.reset=true")
    s, seen = initial_state(strategy, env), []
    for task in env.stream[:2]:
        s = train_task(strategy, s, task, env)
        x = env.gather(task.train, task.index, s.t).x.flatten(1).double()
        seen.append(torch.cat([x, torch.ones(len(x), 1)], 1))
    _, values, V = torch.linalg.svd(torch.cat(seen), full_matrices=True)
    squares = torch.zeros(65).double()
    squares[: len(values)] = values.square()
    smallest = squares.flip(0).cumsum(0) <= 0.1 * squares.sum()
    U = V.flip(0)[smallest].T
    assert 5 < U.shape[1] < 65

    s = env.restart(s, s.theta.detach().clone())
    batch = env.gather(env.stream[2].train[:10], 2, torch.full_like(s.t, 2))
    leaf = s.theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.01)
    leaf.grad, _ = env.grad_and_value(strategy.loss)(s.theta, s, batch, env)
    optimizer.step()
    moved = env.flat.views((leaf.detach() - s.theta).double())
    W = torch.cat([moved["layers.0.weight"], moved["layers.0.bias"][:, None]], 1) @ U @ U.T
    moved |= {"layers.0.weight": W[:, :-1], "layers.0.bias": W[:, -1]}
    ours, _ = strategy.step(s, batch, env)
    found = env.flat.views((ours.theta - s.theta).double())
    for name, expected in moved.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("scenario=class",), "does not support scenario=class"),
        (("strategy.share=1",), r"strategy.share must lie in \[0, 1\)"),
        (("strategy.share=null", "strategy.multiple=0.5"), "strategy.multiple must be at least 1"),
        (("strategy.multiple=10",), "exactly one of strategy.share and strategy.multiple"),
        (("strategy.share=null",), "exactly one of strategy.share and strategy.multiple"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *overrides)
