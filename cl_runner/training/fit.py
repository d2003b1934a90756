"""A phase of training: steps over samples in random order, epoch after epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from cl_runner.config.schema import Training
from cl_runner.core import TrainState, seed_for
from cl_runner.errors import Diverged, UserError
from cl_runner.training import optim
from cl_runner.training.batches import Samples, Source
from cl_runner.training.engines import Learner, stepper
from cl_runner.training.env import Env


class Begun(NamedTuple):
    """Where the training on a task stands."""

    samples: Samples
    step: int = 0  # optimizer steps done
    losses: Sequence[Tensor] = ()  # theirs, as far as they belong to the epoch under way


Between = Callable[[TrainState, int, list[Tensor]], None]  # a state, and Begun's last two


def fit(
    s: TrainState,
    env: Env,
    learner: Learner,
    samples: Samples,
    *,
    times: int = 1,
    epochs: int | None = None,
    steps: int | None = None,
    t: int | None = None,
    phase: str = "",
    step: int = 0,
    losses: Sequence[Tensor] = (),
    between: Between | None = None,
) -> TrainState:
    """The state after `learner` has taken its steps over the samples of task t, the current one.

    Their number is that of `training.epochs` or `training.iterations`, `times` over, or `steps`, or
    that of `epochs`, unless the budget ends before. An extra phase of a strategy (retraining after
    pruning, say) has a name, which gives it random orders of its own. Raises Diverged if the loss
    or theta is no longer finite.

    step, losses: go on after so many steps, as in `Begun`. between: called before the first step
    and after each.
    """
    t, (index, label) = int(s.t) if t is None else t, samples
    epochs, per_epoch, total = plan(len(index), env.training, times, epochs, steps)
    source = Source(env, s, t, index, label, learner, phase)
    env.meter.begin(t, epochs, total - step, resumed=step > 0)
    env.flat.module.train()
    plain = stepper(learner, env, "eager")
    take = plain if phase else stepper(learner, env, env.engine)
    pending = list(losses)
    if between:
        between(s, step, pending)
    with env.meter.suspended(), torch.no_grad(), batchnorm_in_words(t, env):
        for epoch in range(step // per_epoch if per_epoch else 0, epochs):
            first = epoch * per_epoch
            count = min(per_epoch, total - first)
            done = max(0, step - first)
            for i, batch in enumerate(source.epoch(epoch, count, done), done):
                if env.meter.exhausted(len(batch.y)):
                    if pending:
                        check_finite(s.theta, torch.stack(pending), t, first)
                    return s
                if env.stochastic:
                    torch.manual_seed(seed_for(env.seed, f"dropout{phase}", t, epoch, i))
                if env.optimizer.schedule != "constant":
                    progress = max((first + i) / total, env.meter.progress())
                    rate = env.optimizer.lr * optim.rate_factor(env.optimizer, progress)
                    s = s._replace(opt=s.opt | {"lr": torch.full_like(s.opt["lr"], rate)})
                execute = take if len(batch.y) in env.meter.known else plain  # to be counted
                s, loss = env.meter.counted(len(batch.y), execute, s, batch)
                pending.append(loss)
                env.meter.step(epoch, len(batch.y), loss)
                if i + 1 == count:
                    check_finite(s.theta, torch.stack(pending), t, first)
                    pending = []
                if between:
                    between(s, first + i + 1, pending)
    return s


def plan(
    samples: int,
    training: Training,
    times: int = 1,
    epochs: int | None = None,
    steps: int | None = None,
) -> tuple[int, int, int]:
    """Epochs, steps of a whole epoch, and steps in all, for so many samples (see `fit`)."""
    per_epoch = -(-samples // training.batch_size)
    if not per_epoch:
        return 0, 0, 0
    total = (epochs or training.epochs) * per_epoch
    if epochs is None and training.iterations is not None:
        total = training.iterations * times
    total = total if steps is None else steps
    return -(-total // per_epoch), per_epoch, total


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
            "or larger inputs by benchmark.pad_to"
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
