"""Learning a unified classifier incrementally via rebalancing: LUCIR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_runner.core import Batch, Task, TrainState
from cl_runner.errors import check
from cl_runner.functional.exemplars import unit
from cl_runner.functional.losses import cross_entropy, weighted_mean
from cl_runner.nn.cosine import with_cosines
from cl_runner.strategies.base import Aux
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.distilled import old_answers
from cl_runner.strategies.parts.features import mean_directions
from cl_runner.strategies.parts.frozen import only
from cl_runner.strategies.parts.outputs import check_growing, classes_before, unseen_last
from cl_runner.strategies.parts.replay import check_features
from cl_runner.training.env import Env, kept


@dataclass(frozen=True, kw_only=True)
class LUCIR(ER):
    """Cosines as outputs, features that stay where they pointed, a margin to the new classes.

    Hou et al. 2019, "Learning a unified classifier incrementally via rebalancing" (CVPR). For
    class-incremental learning. With f a sample's features and w_c a class's weights, both divided
    by their length, the logit of class c is eta <w_c, f> with one learnt scale eta. Each
    step trains on the incoming batch and on one of the buffer, with n classes of earlier tasks and
    m of this one, and takes the mean of
    - the cross-entropy over the n + m classes;
    - less-forget: lambda sqrt(n / m) (1 - <f_old, f>), f_old of the network at the end of the last
      task;
    - margin ranking, of samples of the old classes: the mean of max(margin - <w_y, f> + <w_k, f>,
      0) over the k that are the `negatives` nearest of the new classes.
    When a task begins, its classes' w_c become the mean direction of their features, as long as the
    old weights in the mean; the weights of old classes are fixed.

    As in the authors' code (hshustc/CVPR19_Incremental_Learning) are the factor sqrt(n / m), the
    mean over negatives and over old samples, and a class's initial weights. Four things differ:
    - that code passes over new samples and exemplars together; here each step replays
      `replay_batch_size` exemplars;
    - it leaves out the last ReLU before the features, which stays here, since it is the model's;
    - its eta begins at 1, with which a few passes learn little;
    - its last phase, on balanced samples, is not here.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    detectable: ClassVar[tuple[str, ...]] = ()
    uncounted: ClassVar[tuple[str, ...]] = ("free",)  # follows from the task

    policy: str = "herding"
    lambda_: float = 1.0
    margin: float = 0.5
    negatives: int = 2
    scale: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.lambda_ >= 0, f"strategy.lambda must be at least 0, got {self.lambda_}")
        check(self.margin >= 0, f"strategy.margin must be at least 0, got {self.margin}")
        check(self.negatives >= 1, f"strategy.negatives must be at least 1, got {self.negatives}")
        check(self.scale > 0, f"strategy.scale must be positive, got {self.scale}")

    def needs_borders(self, scenario: str) -> str:
        return "it keeps the network, and begins new outputs, when a task begins"

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        return with_cosines(make_net(), env.num_classes, self.scale)

    def takes_features(self) -> bool:
        return True  # it makes another output layer

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check_growing(f"strategy={self.name}", env)
        check_features(f"strategy={self.name}", env)
        free = torch.ones_like(theta, dtype=torch.bool)
        return super().init(theta, env) | {"free": free} | kept("old", theta, env.flat.buffers)

    def begin_task(self, s: TrainState, task: Task, env: Env) -> TrainState:
        free = ~env.flat.output_mask(classes_before(task.index, env))
        s = s._replace(memory=s.memory | {"free": free} | kept("old", s.theta, s.buffers))
        if not task.index:
            return s
        rows = env.flat.output_mask(torch.ones_like(env.own_classes[0]))
        theta = s.theta.detach()
        weights = theta[rows].view(env.num_classes, -1)
        length = weights[classes_before(task.index, env)].norm(dim=1).mean()
        new = (env.own_classes[task.index] & ~classes_before(task.index, env))[:, None]
        weights = torch.where(new, length * mean_directions(s, task, env), weights)
        return s._replace(theta=theta.masked_scatter(rows, weights))

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        old, seen = classes_before(s.t, env), classes_before(s.t + 1, env)
        new = seen & ~old
        m = new.sum().clamp_min(1)  # a stream may bring the same classes again
        features = env.net(theta, batch.x, batch.task, last=-1)
        logits = env.net(theta, features, batch.task, first=-1)
        loss = cross_entropy(logits, batch.y, seen.expand(len(batch.y), -1), batch.weight)

        before = unit(old_answers(s, batch, env, last=-1))
        turned = 1 - (before * unit(features)).sum(1)
        forgot = self.lambda_ * (old.sum() / m).sqrt() * weighted_mean(turned, batch.weight)

        cosines = logits / env.flat.views(theta)[scale_of(env)]
        own = cosines.gather(1, batch.y[:, None])
        nearest = cosines.masked_fill(~new, -torch.inf)
        nearest = nearest.topk(min(self.negatives, env.num_classes)).values
        missing = F.relu(self.margin - own + nearest).sum(1) / m.clamp_max(self.negatives)
        assert batch.weight is not None
        of_old = old[batch.y] * batch.weight
        return loss + forgot + weighted_mean(missing, of_old), {"logits": logits}

    def step(self, s: TrainState, batch: Batch, env: Env) -> tuple[TrainState, Aux]:
        new, aux = super().step(s, batch, env)
        return only(new, s, s.memory["free"]), aux

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        return unseen_last(super().predict(s, x, task, env), classes_before(s.t + 1, env))


def scale_of(env: Env) -> str:
    """The parameter that is the cosines' learnt scale."""
    return next(name for name in env.flat.names if name.endswith(".scale"))
