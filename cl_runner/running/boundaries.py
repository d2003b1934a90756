"""What happens at a border between tasks, and which strategy can do without being told of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cl_runner.config.schema import Config
from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.strategies.base import Strategy
from cl_runner.training.batches import Source
from cl_runner.training.env import Env
from cl_runner.training.fit import Alone, Progress
from cl_runner.training.watch import Watch


def check_boundaries(config: Config, strategy: Strategy) -> None:
    """Raise UserError for a strategy that the boundaries, or not to know them, are not for."""
    boundaries = config.benchmark.boundaries
    check(
        not (config.benchmark.chosen and strategy.whole_sequence),
        f"strategy={strategy.name} trains on all tasks at once, and those of "
        f"benchmark={config.benchmark.name} are not known before the first is trained; "
        "strategy=cumulative trains on all so far",
    )
    check(
        boundaries == "sharp" or type(strategy).training_set is Strategy.training_set,
        f"benchmark.boundaries={boundaries} does not go with strategy={strategy.name}, which "
        "chooses the samples that it trains on: use benchmark.boundaries=sharp",
    )
    reason = {
        "none": strategy.needs_borders,
        "detected": strategy.needs_tasks,
    }.get(config.training.boundaries, lambda _: "")(config.scenario)
    check(
        not reason,
        f"training.boundaries={config.training.boundaries} does not go with "
        f"strategy={strategy.name}: {reason}",
    )


def begun(strategy: Strategy, s: TrainState, task: Task, env: Env) -> TrainState:
    """The state after a strategy was told that a task begins."""
    s = s._replace(t=torch.full_like(s.t, task.index))
    if env.optimizer.reset:
        s = env.restart(s, s.theta)
    with env.meter.counting():
        s = env.commit(strategy.begin_task(s, task, env))
    return s if env.stream.pool is None else at_rate(s, task, env)


def at_rate(s: TrainState, task: Task, env: Env) -> TrainState:
    """The state at the learning rate of a task."""
    lr = torch.full_like(s.opt["lr"], env.rate(task.index))
    return s._replace(opt=s.opt | {"lr": lr})


def ended(strategy: Strategy, s: TrainState, task: Task, env: Env) -> TrainState:
    """The state after a strategy was told that a task has ended."""
    with env.meter.counting(), torch.no_grad():
        return env.commit(strategy.end_task(s, task, env))


class Detecting(Alone):
    """The steps of a run that is told of borders by its detector, not by the stream.

    Between two steps, when the detector calls, the samples since the last border are a task that
    has ended, and the next begins; `s.t` counts the borders. There are no more of them than the
    stream has: what is called beyond that is noted, and changes nothing.
    """

    def __init__(
        self, s: TrainState, env: Env, strategy: Strategy, watch: Watch, progress: Progress, t: int
    ) -> None:
        super().__init__(s, env, strategy, progress, t)
        self.strategy, self.watch = strategy, watch

    def batches(self, epoch: int, steps: int, done: int) -> Iterator[Batch]:
        """See Steps. After a border what was planned for the coming steps is planned anew."""
        self.look()  # a run may go on from between a step and the look at its loss
        while done < steps:
            for batch in self.source.epoch(epoch, steps, done, raw=self.raw):
                yield batch
                done += 1
                if self.look():
                    break

    def take(self, batch: Batch, epoch: int, i: int) -> None:
        """See Steps."""
        super().take(batch, epoch, i)
        at, size = i * self.source.size, len(batch.y)
        self.watch.take(self.source.order, at, size, self.pending[-1])

    def look(self) -> bool:
        """Look at the losses if it is time to; whether a border was acted upon."""
        if not self.watch.due or not self.watch.alarm():
            return False
        t = int(self.s.t)
        if t == self.env.num_tasks - 1:
            return False
        self.s = ended(self.strategy, self.s, self.watch.task(t, self.env.stream), self.env)
        self.watch.forget()
        self.s = begun(self.strategy, self.s, self.watch.task(t + 1, self.env.stream), self.env)
        self.source = Source(self.env, self.s, self.t, *self.samples, self.strategy)
        return True
