"""Replayed samples are augmented as the incoming ones are, each time anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cl_runner import strategies
from cl_runner.strategies.er import ER

# Latent replay stores what became of the augmented input and has nothing left to augment; scr has a
# second view, which is made in another way where a run does not augment.
REPLAYING = [
    name
    for name in strategies.available()
    if issubclass(strategies.find(name), ER)
    and strategies.find(name).buffers_inputs
    and name != "scr"
]
AS_IT_IS = torch.tensor([0.5, 0.5, 0.9])  # the uniforms of no shift and no mirroring
TOY = (
    "benchmark=split_digits",
    "benchmark.train_samples=200",
    "strategy.buffer_size=20",
    "model.hidden_sizes=[12]",
    "training.batch_size=8",
    "training.iterations=4",
    "training.augment=crop_flip",
)


def test_all_that_replay_inputs_are_here() -> None:
    assert set(REPLAYING) >= {"agem", "cls_er", "der", "derpp", "er", "er_ace", "mer", "mir"}


@pytest.mark.parametrize("name", REPLAYING)
def test_a_step_sees_the_replayed_samples_as_their_uniforms_say(mid_run, name) -> None:
    small = () if name == "mer" else ("strategy.replay_batch_size=8",)
    strategy, env, s, (batch, *_) = mid_run(*TOY, f"strategy={name}", *small, tasks=2)
    augment = {k: v for k, v in batch.noise.items() if k.startswith("replay_augment")}
    before = s.theta.detach().clone()

    def step(**noise):
        with torch.no_grad():
            return strategy.step(s, batch._replace(noise=batch.noise | noise), env)[0].theta.clone()

    drawn = step()
    again = step(**{k: 1 - v - 1e-3 for k, v in augment.items()})
    as_they_are = step(**{k: AS_IT_IS.expand_as(v) for k, v in augment.items()})
    env.training = replace(env.training, augment="none")  # the incoming batch stays augmented
    plain = step()
    assert torch.equal(before, s.theta.detach())
    assert not torch.equal(drawn, again) and not torch.equal(drawn, plain)
    torch.testing.assert_close(as_they_are, plain)


def test_mer_shows_each_replayed_sample_by_its_own_uniforms(mid_run) -> None:
    strategy, env, s, (batch, *_) = mid_run(*TOY, "strategy=mer", tasks=2)
    one = batch._replace(noise={k: v[:1] for k, v in batch.noise.items()}, index=batch.index[:1])
    one = one._replace(task=batch.task[:1], y=batch.y[:1])
    replay = strategy.draw(s, one, env)
    uniforms = one.noise["replay_augment"][0]
    assert len(uniforms) == len(replay.y) > 1
    for i, own in enumerate(uniforms):
        alone = env.gather(replay.index[i, None], replay.task[i, None], s.t, augment=own[None])
        torch.testing.assert_close(replay.x[i, None], alone.x)
