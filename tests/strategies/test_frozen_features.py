"""Frozen features: the trunk is what the first task made of it."""

from __future__ import annotations

import torch

TOY = ("benchmark=split_digits", "model.hidden_sizes=[24]", "training.epochs=2", "scenario=task")


def test_frozen_features_are_frozen_bit_for_bit_after_the_first_task(after_each_task):
    _, states, rows = after_each_task(*TOY, "strategy=frozen_features")
    output = states[0].memory["output"]
    assert int(output.sum()) == 10 * (24 + 1)
    for s in states[1:]:
        assert torch.equal(s.theta[~output], states[0].theta[~output])
    assert not torch.equal(states[1].theta[output], states[0].theta[output])
    assert all(later[0] == rows[0][0] for later in rows)  # multi-head: nothing is forgotten
