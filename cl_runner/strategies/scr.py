"""Supervised contrastive replay: SCR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cl_runner.core import Batch, TrainState
from cl_runner.errors import check
from cl_runner.functional.exemplars import class_means, nearest_mean, unit
from cl_runner.functional.losses import supervised_contrastive, weighted_mean
from cl_runner.nn.networks import with_projection
from cl_runner.strategies.base import Aux, tasks_of
from cl_runner.strategies.er import ER
from cl_runner.strategies.parts.features import features_of
from cl_runner.strategies.parts.replay import check_features, load
from cl_runner.training.env import Env

EXCHANGED = 0.3  # of a feature vector's numbers, in its second view
LAST = -5.0  # below minus any squared distance of vectors of length 1


@dataclass(frozen=True, kw_only=True)
class SCR(ER):
    """Learns by comparing samples, classifies by the nearest mean of the buffer (Mai et al. 2021).

    arXiv 2103.13885. In the place of the output layer is a projection: two layers that give
    `projection_size` numbers, divided by their length, z. Each step takes the incoming batch and
    one of the buffer, each sample in two views, and pulls each view i towards all other views of
    its class and away from the rest:
      mean over i of -1/|P| sum_{p in P} log(exp(z_i.z_p / T) / sum_a exp(z_i.z_a / T)),
    with P the other views of the class of i, and a running over all views but i. To predict, the
    features before the projection are taken, with length 1: a sample gets the class whose mean over
    the buffer is nearest, by the network as it is then. So it need not be told of tasks, and
    `weighting` has no meaning.

    - The second view: where the run augments, the image by uniforms of its own; else an image is
      shifted by up to an eighth of its height, at least a pixel, before its task permutes or turns
      it (ours), and of a feature vector 0.3 of the numbers are those of the sample before it in the
      batch (ours, after SCARF, Bahri et al. 2022, 2106.15147). The authors' code crops, mirrors,
      and changes colours; mirrored digits would be other digits.
    - Classes of which the buffer has no sample come last. The means are computed anew whenever the
      network is asked, in evaluation mode, for each chunk of samples: large buffers make evaluation
      slow.
    - There are no logits while it learns: eval.online is refused. In the authors' code
      (RaptorMai/online-continual-learning) a step is taken only once the buffer holds samples.
    """

    whole_batches: ClassVar[bool] = False  # it tells no logits

    temperature: float = 0.07
    projection_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.weighting == "concatenation",
            f"strategy.weighting has no meaning for strategy={self.name}: samples are compared",
        )
        check(
            self.temperature > 0, f"strategy.temperature must be positive, got {self.temperature}"
        )
        check(
            self.projection_size >= 1,
            f"strategy.projection_size must be at least 1, got {self.projection_size}",
        )

    def wrap(self, make_net: Callable[[], nn.Module], env: Env) -> nn.Module:
        return with_projection(make_net(), env.num_classes, self.projection_size)

    def noise(self, batch_size: int, env: Env) -> dict[str, tuple[int, ...]]:
        channels, height, width = env.input_shape
        each = 3 if height > 1 else channels * width
        return super().noise(batch_size, env) | {"view": (batch_size + self.replayed(env), each)}

    def init(self, theta: Tensor, env: Env) -> dict[str, Tensor]:
        check_features(f"strategy={self.name}", env)
        return super().init(theta, env)

    def loss(self, theta: Tensor, s: TrainState, batch: Batch, env: Env) -> tuple[Tensor, Aux]:
        assert batch.weight is not None
        x = torch.cat([batch.x, self.second_view(batch, env)])
        z = unit(env.net(theta, x, batch.task.repeat(2)))
        y, weight = batch.y.repeat(2), batch.weight.repeat(2)
        among = (weight > 0) & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        losses, _ = supervised_contrastive(z, z, y[:, None] == y, among, self.temperature)
        return weighted_mean(losses, weight), {}

    def second_view(self, batch: Batch, env: Env) -> Tensor:
        """Each sample's other view, [B, C, H, W]."""
        uniform = batch.noise["view"][: len(batch.y)]
        if env.input_shape[1] == 1:
            return torch.where(uniform.view_as(batch.x) < EXCHANGED, batch.x.roll(1, 0), batch.x)
        return env.view(batch.index, batch.task, uniform)

    def predict(self, s: TrainState, x: Tensor, task: int, env: Env) -> Tensor:
        means = s.memory["means"] if "means" in s.memory else means_of(s, env)
        scores = nearest_mean(unit(env.net(s.theta, x, tasks_of(x, task), last=-1)), means)
        return torch.where(means.any(1), scores, LAST)

    def settled(self, s: TrainState, env: Env) -> TrainState:
        return s._replace(memory={"means": means_of(s, env)})


def means_of(s: TrainState, env: Env) -> Tensor:
    """The mean feature of each class in the buffer, of length 1, [K, D]; 0 without samples."""
    slots = load(s.memory)
    index, held = slots["index"].clamp_min(0), slots["index"] >= 0
    features = features_of(s, index, slots["task"], env) * held[:, None]
    return class_means(features, env.stream.labels(index, slots["task"]), env.num_classes)
