"""ER-AML: the loss by loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

TOY = (
    "strategy=er_aml",
    "benchmark=split_digits",
    "strategy.buffer_size=40",
    "strategy.replay_batch_size=10",
    "strategy.gamma=0.7",
    "strategy.temperature=0.3",
    "model.hidden_sizes=[24]",
    "training.batch_size=6",
    "training.iterations=20",
)


@pytest.mark.parametrize("held", [40, 3])
@pytest.mark.parametrize("scenario", ["class", "task"])
def test_incoming_samples_are_compared_with_their_own_classes_only(
    mid_run, holding, replanned, scenario, held
):
    """-mean_p log(exp(z.z_p / T) / sum_a exp(z.z_a / T)): a of the classes of the batch."""
    strategy, env, s, (batch, *_) = mid_run(*TOY, f"scenario={scenario}", tasks=2)
    s = holding(s, held)
    s.memory["buffer_index"][1] = batch.index[0]  # one of the present classes is held
    s.memory["buffer_task"][1] = 2
    batch = replanned(strategy, s, batch, env)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    loss, aux = strategy.loss(s.theta, s, both, env)
    there = [i for i in range(len(both.y)) if i < 6 or float(both.weight[i]) > 0]
    present = set(batch.y.tolist())
    z = F.normalize(env.net(s.theta, both.x, both.task, last=-1)).detach()
    losses = []
    for i in range(6):
        others = [a for a in there if a != i and int(both.y[a]) in present]
        total = sum(math.exp(float(z[i] @ z[a]) / 0.3) for a in others)
        terms = [
            math.log(math.exp(float(z[i] @ z[p]) / 0.3) / total)
            for p in others
            if both.y[p] == both.y[i]
        ]
        losses += [-sum(terms) / len(terms)] if terms else []
    logits = env.net(s.theta, both.x, both.task).detach()
    torch.testing.assert_close(aux["logits"], logits)
    if scenario == "task":
        logits = logits.masked_fill(~env.own_classes[both.task], -torch.inf)
    old = torch.tensor([i for i in there if i >= 6])
    expected = F.cross_entropy(logits[old], both.y[old]) + 0.7 * sum(losses) / len(losses)
    torch.testing.assert_close(loss, expected)


def test_without_a_buffer_and_another_of_its_class_nothing_is_learnt(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=0)
    both = strategy.join(s, batch, strategy.draw(s, batch, env))
    alone = both._replace(y=both.y.clone())
    alone.y[:6] = torch.arange(6)
    grad, (loss, _) = env.grad_and_value(strategy.loss)(s.theta, s, alone, env)
    assert float(loss) == 0 and not grad.any()
