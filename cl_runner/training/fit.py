"""A phase of training: steps over samples in random order, epoch after epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cl_runner.config.schema import Training
from cl_runner.core import Batch, TrainState, seed_for
from cl_runner.errors import Diverged, UserError
from cl_runner.training import optim
from cl_runner.training.batches import Source, TrainingSet
from cl_runner.training.engines import Learner, stepper
from cl_runner.training.env import Env
from cl_runner.training.online import Counted, Predictions, counted


class Progress(NamedTuple):
    """How far the training on a task has come."""

    samples: TrainingSet
    step: int = 0  # optimizer steps done
    losses: Sequence[Tensor] = ()  # theirs, 0-d each, as far as they belong to the present epoch
    # [n] each, one after another: those of the first epoch, of each batch's first step
    predictions: Sequence[Tensor] = ()


class Plan(NamedTuple):
    """How long a phase of training is."""

    epochs: int
    per_epoch: int  # steps of a whole epoch
    steps: int  # in all; the last epoch may be shorter


Snapshot = tuple[TrainState, Progress]
AfterStep = Callable[[int], None]  # called with the number of steps that are done


class Steps(Protocol):
    """What takes the steps of a phase: those of one run, or of several as one stacked state.

    `Alone` below is the one, `run.together.Together` the other.
    """

    env: Env  # of the run; of several, that of the first: what is asked of it they share

    def batches(self, epoch: int, steps: int, done: int) -> Iterator[Any]:
        """The batches of an epoch's first `steps` steps, without those that are `done`."""

    def affordable(self, batch: Any, first: int) -> Any | None:
        """The batch for the runs that may take one more step; None if no budget allows one.

        first: the step at which the present epoch began.
        """

    def anneal(self, share: float) -> None:
        """Set the learning rate, `share` of the steps being done."""

    def take(self, batch: Any, epoch: int, i: int) -> None:
        """Take step i of an epoch."""

    def check(self, first: int) -> None:
        """Check, when an epoch ends, that its losses since step `first` and theta are finite."""

    def snapshots(self, step: int) -> dict[int, Snapshot]:
        """Where the runs stand after `step` steps, by their places in the list of all.

        Without those that have left the others: their budget is used up, or they diverged. Not so
        those that were released, which stay where they were left.
        """

    def online(self) -> dict[int, list[Counted]]:
        """What the steps of the first epoch predicted right, by the runs' places.

        Without those that diverged.
        """

    def release(self, ends: Mapping[int, TrainState | None]) -> None:
        """End the phase for some runs, by place: with the given state, or, if None, as they are."""

    def ends(self) -> Sequence[TrainState | Diverged]:
        """The final state of each run, in order; Diverged for one that became infinite."""


def take_steps(steps: Steps, plan: Plan, step: int, after: AfterStep | None) -> None:
    """Take the steps of a phase, `step` of which are done. after: called before and after each."""
    scheduled = steps.env.optimizer.schedule != "constant"
    if after:
        after(step)
    for epoch in range(step // plan.per_epoch if plan.per_epoch else 0, plan.epochs):
        first = epoch * plan.per_epoch
        count = min(plan.per_epoch, plan.steps - first)
        done = max(0, step - first)
        for i, asked in enumerate(steps.batches(epoch, count, done), done):
            batch = steps.affordable(asked, first)
            if batch is None:
                return
            if scheduled:
                steps.anneal((first + i) / plan.steps)
            steps.take(batch, epoch, i)
            if i + 1 == count:
                steps.check(first)
            if after:
                after(first + i + 1)


class Alone:
    """The steps of one run in one phase of training."""

    def __init__(
        self,
        s: TrainState,
        env: Env,
        learner: Learner,
        progress: Progress,
        t: int,
        phase: str = "",
    ) -> None:
        self.s, self.env, self.t, self.phase = s, env, t, phase
        self.samples, self.pending = progress.samples, list(progress.losses)
        self.released = False
        self.source = Source(env, s, t, *progress.samples, learner, phase)
        self.predictions = Predictions(env.stream, progress.predictions)
        online = env.online and not phase
        engine = "eager" if phase else env.engine
        self.raw = engine != "eager"  # what is compiled or recorded makes its inputs itself
        self.plain = stepper(learner, env, "eager", online=online, raw=self.raw)
        self.engine = stepper(learner, env, engine, online=online, raw=self.raw)

    def batches(self, epoch: int, steps: int, done: int) -> Iterator[Batch]:
        """See Steps."""
        return self.source.epoch(epoch, steps, done, raw=self.raw)

    def affordable(self, batch: Batch, first: int) -> Batch | None:
        """See Steps."""
        if not (self.released or self.env.meter.exhausted(len(batch.y))):
            return batch
        if self.pending:
            self.check(first)
        return None

    def anneal(self, share: float) -> None:
        """See Steps."""
        progress = max(share, self.env.meter.progress())
        rate = self.env.rate(self.t) * optim.rate_factor(self.env.optimizer, progress)
        lr = torch.full_like(self.s.opt["lr"], rate)
        self.s = self.s._replace(opt=self.s.opt | {"lr": lr})

    def take(self, batch: Batch, epoch: int, i: int) -> None:
        """See Steps."""
        meter, size = self.env.meter, len(batch.y)
        if self.env.stochastic:
            key = (f"dropout{self.phase}", self.t, epoch, i)
            torch.manual_seed(seed_for(self.env.seed, *key))
        execute = self.engine if size in meter.known else self.plain  # to be counted
        self.s, (loss, *logits) = meter.counted(size, execute, self.s, batch)
        self.pending.append(loss)
        if logits and epoch == 0 and i % self.env.training.passes == 0:
            self.predictions.add(logits[0], batch.active)
        meter.step(epoch, size, loss)

    def check(self, first: int) -> None:
        """Raise Diverged unless all is finite."""
        check_finite(self.s.theta, torch.stack(self.pending), self.t, first)
        self.pending = []

    def snapshots(self, step: int) -> dict[int, Snapshot]:
        """See Steps."""
        losses, predictions = tuple(self.pending), self.predictions.all()
        return {0: (self.s, Progress(self.samples, step, losses, predictions))}

    def online(self) -> dict[int, list[Counted]]:
        """See Steps."""
        return {0: counted(self.source, self.predictions.all())}

    def release(self, ends: Mapping[int, TrainState | None]) -> None:
        """See Steps."""
        self.s, self.pending, self.released = ends[0] or self.s, [], True

    def ends(self) -> list[TrainState]:
        """See Steps."""
        return [self.s]


def fit(
    s: TrainState,
    env: Env,
    learner: Learner,
    samples: TrainingSet,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    phase: str,
) -> TrainState:
    """The state after an extra phase of training on samples of the current task.

    Of `epochs` epochs, or `steps` steps, unless the budget ends before. Its name (`phase`) gives it
    random orders of its own. Raises Diverged if the loss or theta is no longer finite.
    """
    t, number = int(s.t), len(samples[0])
    size = learner.batch_size(t, env)
    length = plan(number, env.training, epochs=epochs, steps=steps, batch_size=size, passes=1)
    alone = Alone(s, env, learner, Progress(samples), t, phase)
    return train(alone, length, 0, None)


def train(alone: Alone, length: Plan, step: int, after: AfterStep | None) -> TrainState:
    """The state after a phase of one run, `step` of whose steps are done."""
    env = alone.env
    env.meter.begin(alone.t, length.epochs, length.steps - step, resumed=step > 0)
    env.flat.module.train()
    with env.meter.suspended(), torch.no_grad(), batchnorm_in_words(alone.t, env):
        take_steps(alone, length, step, after)
    return alone.s


def plan(
    samples: int,
    training: Training,
    times: int = 1,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    passes: int | None = None,
) -> Plan:
    """How long a phase over so many samples is: `steps` steps, or `epochs` epochs.

    Without either, `training.epochs` or `training.iterations`, the latter `times` over. batch_size,
    passes: in the place of `training.batch_size` and `training.passes`; the latter are of the
    stream's batches alone, not of an extra phase's (`fit`).
    """
    per_epoch = -(-samples // (batch_size or training.batch_size)) * (passes or training.passes)
    if not per_epoch:
        return Plan(0, 0, 0)
    total = (epochs or training.epochs) * per_epoch
    if epochs is None and training.iterations is not None:
        total = training.iterations * times
    total = total if steps is None else steps
    return Plan(-(-total // per_epoch), per_epoch, total)


@contextmanager
def batchnorm_in_words(t: int, env: Env) -> Iterator[None]:
    """Raise UserError for a batch that leaves BatchNorm one value per channel, in task t."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"task {t + 1} has a batch of 1 sample, too small for BatchNorm where the network has "
            f"come down to one pixel: another training.batch_size than {env.training.batch_size}, "
            "or larger inputs by benchmark.resize or benchmark.pad_to"
        ) from None


def check_finite(theta: Tensor, losses: Tensor, t: int, first_step: int) -> None:
    """Raise Diverged, naming task and step, if a loss [steps] or theta [P] is not finite."""
    finite = torch.isfinite(losses)
    if bool(finite.all() & torch.isfinite(theta).all()):
        return
    bad = int((~finite).nonzero()[0]) if not bool(finite.all()) else len(losses) - 1
    what = "the loss became" if not bool(finite.all()) else "the parameters became"
    raise Diverged(
        f"{what} NaN or infinite in task {t + 1} at step {first_step + bad + 1}; a smaller "
        "optimizer.lr or strategy.lambda may help"
    )
