"""What happens to the state of a run when it is trained on a task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from cl_runner.core import Task, TrainState
from cl_runner.strategies.base import Strategy
from cl_runner.training import optim
from cl_runner.training.batches import Samples
from cl_runner.training.env import Env
from cl_runner.training.fit import Begun, Between, fit

Watch = Callable[[Samples], AbstractContextManager[Between]]  # what looks on between the steps


def initial_state(strategy: Strategy, env: Env) -> TrainState:
    """The state before the first task."""
    theta = env.flat.theta
    return TrainState(
        theta=theta,
        buffers=env.flat.buffers,
        opt=optim.init(env.optimizer, theta.detach()),
        memory=strategy.init(theta, env),
        t=torch.zeros((), dtype=torch.int64, device=env.device),
    )


def restored(s: TrainState, env: Env) -> TrainState:
    """A state that was saved, put into the run's live storage."""
    device, buffers = env.device, env.flat.buffers
    for name, value in buffers.items():
        value.copy_(s.buffers[name])
    return TrainState(
        theta=env.flat.commit(s.theta.to(device)),
        buffers=buffers,
        opt={k: v.to(device) for k, v in s.opt.items()},
        memory={k: v.to(device) for k, v in s.memory.items()},
        t=s.t.to(device),
    )


def train_task(
    strategy: Strategy,
    s: TrainState,
    task: Task,
    env: Env,
    begun: Begun | None = None,
    watch: Watch | None = None,
) -> TrainState:
    """The state after training on one task. Raises Diverged where numbers are no longer finite.

    begun: s has taken these steps of the task. watch: given the samples, what is called between
    the steps.
    """
    if begun is None:
        left = env.num_tasks - task.index
        env.meter.begin_task(task.index, 1 if strategy.whole_sequence else left)
        s, samples = begin_task(strategy, s, task, env)
        begun = Begun(samples)
    samples, step, losses = begun
    with watch(samples) if watch else nullcontext() as between:
        s = fit(
            *(s, env, strategy, samples),
            times=times(strategy, env),
            t=task.index,
            step=step,
            losses=losses,
            between=between,
        )
    return end_task(strategy, s, task, env)


def times(strategy: Strategy, env: Env) -> int:
    """For how many tasks the training on one stands, which takes the steps of as many."""
    return env.num_tasks if strategy.whole_sequence else 1


def begin_task(
    strategy: Strategy, s: TrainState, task: Task, env: Env
) -> tuple[TrainState, Samples]:
    """The state before a task's first step, and what the task trains on."""
    s = s._replace(t=torch.full_like(s.t, task.index))
    if env.optimizer.reset:
        s = env.restart(s, s.theta)
    with env.meter.counting():
        s = env.commit(strategy.begin_task(s, task, env))
        return s, strategy.training_set(s, env.stream, task.index, env)


def end_task(strategy: Strategy, s: TrainState, task: Task, env: Env) -> TrainState:
    """The state after what a strategy does at the end of a task."""
    with env.meter.counting(), torch.no_grad():
        return env.commit(strategy.end_task(s, task, env))
