"""What happens to the state of a run when it is trained on a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch

from cl_runner.core import Task, TrainState
from cl_runner.running.boundaries import Detecting, begun, ended
from cl_runner.strategies.base import Strategy
from cl_runner.training import optim
from cl_runner.training.env import Env
from cl_runner.training.fit import AfterStep, Alone, Plan, Progress, Steps, plan, train
from cl_runner.training.watch import Watch

# Opened around the steps of a task: gives the function to call before the first and after each.
Observer = Callable[[Steps], AbstractContextManager[AfterStep | None]]


class Member(NamedTuple):
    """One of the runs that are trained together: its strategy and its environment."""

    strategy: Strategy
    env: Env


@contextmanager
def unobserved(_: Steps) -> Iterator[None]:
    """An Observer that calls nothing."""
    yield None


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
    device = env.device
    return TrainState(
        theta=env.flat.commit(s.theta.to(device)),
        buffers=env.flat.settle(s.buffers),
        opt={k: v.to(device) for k, v in s.opt.items()},
        memory={k: v.to(device) for k, v in s.memory.items()},
        t=s.t.to(device),
    )


def train_task(
    strategy: Strategy,
    s: TrainState,
    task: Task,
    env: Env,
    progress: Progress | None = None,
    observe: Observer = unobserved,
) -> TrainState:
    """The state of a run after training on one task. Raises Diverged if it is no longer finite.

    progress: how far s has come in the task; None: it is before its beginning.
    """
    if progress is None:
        s, progress = begin_task(strategy, s, task, env)
    if env.watch is not None:
        return train_detecting(strategy, s, task, env, env.watch, progress, observe)
    alone = Alone(s, env, strategy, progress, task.index)
    with observe(alone) as after:
        train(alone, length(strategy, env, progress, task.index), progress.step, after)
    return end_task(strategy, alone.s, task, env)


def train_detecting(
    strategy: Strategy,
    s: TrainState,
    task: Task,
    env: Env,
    watch: Watch,
    progress: Progress,
    observe: Observer,
) -> TrainState:
    """`train_task` for a run whose borders are detected. That the stream ends, it is told."""
    steps = Detecting(s, env, strategy, watch, progress, task.index)
    with observe(steps) as after:
        train(steps, length(strategy, env, progress, task.index), progress.step, after)
    with torch.no_grad():
        steps.look()
    watch.ends.append(watch.step)
    if task.index < env.num_tasks - 1:
        return steps.s
    last = watch.task(int(steps.s.t), env.stream)
    nothing = not len(last.train)  # since a border that was called after the last step
    return steps.s if nothing else ended(strategy, steps.s, last, env)


def length(strategy: Strategy, env: Env, progress: Progress, t: int) -> Plan:
    """How long the training on task t is."""
    batch_size = strategy.batch_size(t, env)
    samples, epochs = len(progress.samples[0]), env.stream[t].epochs
    return plan(samples, env.training, times(strategy, env), epochs, batch_size=batch_size)


def times(strategy: Strategy, env: Env) -> int:
    """How many tasks' steps the training on one task takes: T for `joint`, else 1."""
    return env.num_tasks if strategy.whole_sequence else 1


def begin_task(
    strategy: Strategy, s: TrainState, task: Task, env: Env
) -> tuple[TrainState, Progress]:
    """The state before a task's first step, and what the task trains on."""
    left = env.num_tasks - task.index
    env.meter.begin_task(task.index, 1 if strategy.whole_sequence else left)
    boundaries = env.training.boundaries
    if boundaries == "known" or (boundaries == "detected" and task.index == 0):
        s = begun(strategy, s, task, env)
    with env.meter.counting():
        return s, Progress(strategy.training_set(s, env.stream, task.index, env))


def end_task(strategy: Strategy, s: TrainState, task: Task, env: Env) -> TrainState:
    """The state after what a strategy does at the end of a task, if it is told of it."""
    return ended(strategy, s, task, env) if env.training.boundaries == "known" else s
