"""OWM: the projector by the paper's recursion, the step, and what it leaves as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_runner.errors import UserError
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.naive import Naive

TOY = (
    "strategy=owm",
    "benchmark=permuted_digits",
    "benchmark.num_tasks=3",
    "benchmark.train_samples=60",
    "model.hidden_sizes=[8]",
    "training.batch_size=20",
    "training.epochs=2",
)


def run(prepared, *overrides: str, tasks: int = 2):
    """The states after some tasks, with copies of theta and memory."""
    _, strategy, env = prepared(*TOY, *overrides)
    s, states = initial_state(strategy, env), []
    for task in env.stream[:tasks]:
        s = train_task(strategy, s, task, env)
        states.append(s._replace(theta=s.theta.detach().clone(), memory=dict(s.memory)))
    return strategy, env, states


def inputs(env, s, t: int) -> dict[str, Tensor]:
    """What each layer of the MLP sees of a task's samples by the weights of s, a 1 appended."""
    batch = env.gather(env.stream[t].train, t, s.t)
    views = env.flat.views(s.theta)
    x = batch.x.flatten(1)
    h = torch.relu(x @ views["layers.0.weight"].T + views["layers.0.bias"])
    ones = torch.ones(len(x), 1)
    return {"layers.0": torch.cat([x, ones], 1), "layers.1": torch.cat([h, ones], 1)}


@pytest.mark.parametrize("alpha", [0.003, 0.5])
def test_the_projector_is_the_papers_recursion_over_the_samples(prepared, alpha: float) -> None:
    _, env, states = run(prepared, f"strategy.alpha={alpha}")
    for name in ("layers.0", "layers.1"):
        P = torch.eye(len(states[0].memory[name])).double()
        for t, s in enumerate(states):
            rows = inputs(env, s, t)[name].double()
            for x in rows:
                k = P @ x
                P = P - torch.outer(k, k) / (alpha * len(rows) + x @ k)
            torch.testing.assert_close(s.memory[name].double(), P, rtol=1e-3, atol=1e-5)


def test_samples_is_how_many_are_looked_at(prepared) -> None:
    """A random subset of 5: five directions are closed, however many more the task has."""
    _, _, (s,) = run(prepared, "strategy.samples=5", "strategy.alpha=1e-6", tasks=1)
    values = torch.linalg.eigvalsh(s.memory["layers.0"])
    assert int((values < 0.5).sum()) == 5


def test_a_step_multiplies_each_layers_gradient_by_its_projector(prepared) -> None:
    strategy, env, (_, s) = run(prepared, "optimizer.lr=0.05")
    batch = env.gather(env.stream[2].train[:8], 2, s.t)
    grad, _ = env.grad_and_value(Naive(name="naive").loss)(s.theta, s, batch, env)
    before, g = env.flat.views(s.theta), env.flat.views(grad)
    after = env.flat.views(strategy.step(s, batch, env)[0].theta)
    for name, P in s.memory.items():
        weight, bias = f"{name}.weight", f"{name}.bias"
        step = torch.cat([g[weight], g[bias][:, None]], 1) @ P
        torch.testing.assert_close(after[weight], before[weight] - 0.05 * step[:, :-1])
        torch.testing.assert_close(after[bias], before[bias] - 0.05 * step[:, -1])
        assert float(step.norm()) > 0


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_where_alpha_is_small_nothing_that_a_layer_does_to_old_inputs_changes(prepared, model):
    cnn = ("model=cnn", "model.channels=[6]", "model.hidden_size=8")
    own = cnn if model == "cnn" else ("model.hidden_sizes=[80]",)
    toy = tuple(o for o in TOY if model == "mlp" or "hidden_sizes" not in o)
    few = ("benchmark.train_samples=10", "strategy.alpha=1e-7")
    _, strategy, env = prepared(*toy, *own, *few)

    def answers(s) -> list[Tensor]:
        seen: list[Tensor] = []
        layers = [m for m in env.flat.module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        handles = [m.register_forward_hook(lambda _m, _x, y: seen.append(y)) for m in layers]
        batch = env.gather(env.stream[0].train, 0, torch.tensor(0))
        with torch.no_grad():
            env.net(s.theta.detach().clone(), batch.x, batch.task)
        for handle in handles:
            handle.remove()
        return seen

    s = train_task(strategy, initial_state(strategy, env), env.stream[0], env)
    old, start = answers(s), s.theta.detach().clone()
    s = train_task(strategy, s, env.stream[1], env)
    assert float((s.theta.detach() - start).norm()) > 1e-3
    for one, other in zip(answers(s), old, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_a_layer_of_another_kind_is_refused(prepared) -> None:
    def begun():
        where = ("benchmark=split_digits", "model=reduced_resnet18", "model.width=2")
        _, strategy, env = prepared("strategy=owm", *where)
        return initial_state(strategy, env)

    with pytest.raises(UserError, match="strategy=owm knows Linear and Conv2d layers only"):
        begun()
