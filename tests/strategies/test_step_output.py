"""What a strategy's step says of itself."""

from __future__ import annotations

import math

import pytest
import torch

from cl_runner.running.tasks import initial_state
from cl_runner.strategies import available, find
from cl_runner.training.batches import Source

SMALL = ("benchmark=split_digits", "model.hidden_sizes=[8]", "training.batch_size=8")


@pytest.mark.parametrize("name", available())
def test_a_step_says_its_loss_and_the_logits_of_its_batch(prepared, name: str) -> None:
    """[B, K], the incoming samples first, and what they are a batch with after them."""
    scenario = next(s for s in ("class", "domain", "task") if s in find(name).scenarios)
    _, strategy, env = prepared(f"strategy={name}", f"scenario={scenario}", *SMALL)
    s = strategy.begin_task(initial_state(strategy, env), env.stream[0], env)
    batch = next(iter(Source(env, s, 0, env.stream[0].train, 0, strategy).epoch(0, 1)))
    with torch.no_grad():
        _, aux = strategy.step(s, batch, env)
    assert math.isfinite(aux["loss"]) and aux["loss"].shape == ()
    # mer and la_maml take several steps, one after another; scr has no logits while it learns.
    if name not in ("mer", "la_maml", "scr"):
        assert len(aux["logits"]) >= 8 and aux["logits"].shape[1:] == (env.num_classes,)
