"""Replay and EWC at once: each half is what it is alone, and is there once."""

from __future__ import annotations

import pytest
import torch

from cl_runner.running.tasks import initial_state, train_task
from cl_runner.strategies.er import ER
from cl_runner.strategies.ewc import EWC
from cl_runner.strategies.parts.importance import fisher_diagonal

TOY = (
    "benchmark=split_digits",
    "strategy.buffer_size=60",
    "strategy.replay_batch_size=10",
    "model.hidden_sizes=[24]",
    "training.batch_size=16",
    "training.epochs=1",
)
BOTH = ("strategy=er_ewc", *TOY)


def states(prepared, *overrides: str):
    """Copies of the state after each of three tasks, and the environment."""
    _, strategy, env = prepared(*TOY, *overrides)
    s, found = initial_state(strategy, env), []
    for task in env.stream[:3]:
        s = train_task(strategy, s, task, env)
        memory = {k: v.clone() for k, v in s.memory.items()}
        found.append(s._replace(theta=s.theta.detach().clone(), memory=memory))
    return env, found


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
def test_lambda_0_is_er_bit_for_bit(prepared, policy):
    _, (*_, er) = states(prepared, "strategy=er", f"strategy.policy={policy}")
    _, (*_, both) = states(
        prepared, "strategy=er_ewc", f"strategy.policy={policy}", "strategy.lambda=0"
    )
    assert torch.equal(er.theta, both.theta)
    assert all(torch.equal(v, both.memory[k]) for k, v in er.memory.items())
    assert both.memory.keys() - er.memory.keys() == {"fisher", "anchor"}


def test_the_penalties_of_the_tasks_are_merged_as_they_are_in_ewc(prepared):
    env, found = states(prepared, "strategy=er_ewc", "strategy.fisher_samples=null")
    theta = found[-1].theta + 0.1
    expected = torch.zeros_like(theta)
    for s, task in zip(found, env.stream, strict=False):
        F = fisher_diagonal(env.commit(s), task, env, labels="exact", samples=None)
        expected += F * (theta - s.theta)
    memory = found[-1].memory
    actual = memory["fisher"] * (theta - memory["anchor"])
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


def test_so_many_samples_as_asked_for_weigh_the_parameters(prepared):
    env, found = states(prepared, "strategy=er_ewc", "strategy.fisher_samples=20")
    few = fisher_diagonal(env.commit(found[0]), env.stream[0], env, labels="exact", samples=20)
    torch.testing.assert_close(found[0].memory["fisher"], few)


@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_a_step_has_er_s_gradient_and_the_penalty_s_once(mid_run, penalty):
    strategy, env, s, (batch, *_) = mid_run(
        *BOTH, "strategy.lambda=30", f"strategy.penalty={penalty}", tasks=2
    )
    s = s._replace(theta=s.theta.detach() + 0.01)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    er = ER(name="er", buffer_size=60, replay_batch_size=10)
    replay, _ = env.grad_and_value(er.loss)(s.theta, s, both, env)
    lr, fisher, anchor = env.optimizer.lr, s.memory["fisher"], s.memory["anchor"]
    pull = 30 * fisher * (s.theta - anchor)
    assert float(pull.norm()) > 0.1 * float(replay.norm())
    after, _ = strategy.step(s, batch, env)
    expected = s.theta - lr * (replay + pull)
    if penalty == "proximal":  # argmin_z |z - theta'|^2 / (2 lr) + 30 / 2 sum F (z - theta*)^2
        moved, pulled = s.theta - lr * replay, lr * 30 * fisher
        expected = (moved + pulled * anchor) / (1 + pulled)
    torch.testing.assert_close(after.theta, expected)


def test_where_the_replay_weighs_nothing_the_gradient_is_ewc_s(mid_run):
    loss = ("strategy.lambda=30", "strategy.penalty=loss")
    strategy, env, s, (batch, *_) = mid_run(*BOTH, *loss, tasks=2)
    s = s._replace(theta=s.theta.detach() + 0.01)
    replay = strategy.draw(s, batch, env)
    both = strategy.join(s, batch, replay._replace(weight=torch.zeros_like(replay.weight)))
    ewc = EWC(name="ewc", lambda_=30, penalty="loss")
    expected, _ = ewc.step(s, batch, env)  # plain gradient descent
    gradient, _ = env.grad_and_value(strategy.loss)(s.theta, s, both, env)
    torch.testing.assert_close(s.theta - env.optimizer.lr * gradient, expected.theta)
