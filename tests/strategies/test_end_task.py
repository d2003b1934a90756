"""What any strategy does at a task's end is done by the network in evaluation mode.

So BatchNorm's running statistics, which only training steps move, stay as they are, and dropout
draws nothing from torch's global generator, which is seeded for each step but not here: a run
resumed after a task's last step would not be the unbroken one.
"""

from __future__ import annotations

import pytest
import torch

from cl_runner import strategies
from cl_runner.errors import UserError
from cl_runner.running.tasks import end_task, initial_state
from cl_runner.training.batches import Source

pytestmark = pytest.mark.slow

TRAINING = {  # strategies that train in end_task, and what they are told to finish soon
    "gdumb": ("strategy.epochs=1",),  # from scratch, on the buffer
    "packnet": (),  # again, after pruning
    "den": ("strategy.phase_epochs=1",),  # selected units, after expansion
}
POLICIES = {
    name: tuple(f"strategy.policy={policy}" for policy in ("class_balanced", "herding"))
    for name in ("agem", "cls_er", "der", "derpp", "er", "er_ace", "er_ewc", "latent_replay", "mir")
}
USED = dict.fromkeys(("ncm", "ridge", "slda"), "strategy.input=features")  # the network
CASES = [
    pytest.param(name, variant, id=f"{name} {variant}".strip())
    for name in strategies.available()
    for variant in (USED.get(name, ""), *POLICIES.get(name, ()))
]
everywhere = pytest.mark.parametrize(("name", "variant"), CASES)


def at_the_end_of_a_task(prepared, name: str, variant: str, *model: str):
    """Strategy, environment and the state after two steps of the first task."""
    supported = strategies.find(name).scenarios
    _, strategy, env = prepared(
        f"strategy={name}",
        *variant.split(),
        *TRAINING.get(name, ()),
        "benchmark=split_digits",
        f"scenario={'class' if 'class' in supported else supported[0]}",
        "benchmark.train_samples=120",
        "training.batch_size=8",
        "training.iterations=2",
        *model,
    )
    s, task = initial_state(strategy, env), env.stream[0]
    with torch.no_grad():
        s = env.commit(strategy.begin_task(s, task, env))
        index, tasks = strategy.training_set(s, env.stream, 0, env)
        source = Source(env, s, 0, index, tasks, strategy)
        for batch in source.epoch(0, 2 if len(index) else 0):
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    return strategy, env, s


@everywhere
def test_dropout_draws_nothing_from_the_global_generator(prepared, name, variant):
    ends = []
    for seed in (1, 2):
        torch.manual_seed(0)
        strategy, env, s = at_the_end_of_a_task(prepared, name, variant, "model.dropout=0.5")
        torch.manual_seed(seed)
        s = end_task(strategy, s, env.stream[0], env)
        ends.append({"theta": s.theta.detach().clone(), **s.memory})
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


@everywhere
def test_batchnorm_statistics_stay_where_the_last_step_left_them(prepared, name, variant):
    if name in TRAINING:
        pytest.skip(f"{name} trains in end_task")
    try:
        strategy, env, s = at_the_end_of_a_task(
            prepared, name, variant, "model=resnet18", "model.width=2"
        )
    except UserError as refused:
        pytest.skip(f"refused: {refused}")
    before = {key: value.clone() for key, value in env.flat.buffers.items()}
    assert before
    end_task(strategy, s, env.stream[0], env)
    for key, value in env.flat.buffers.items():
        assert torch.equal(value, before[key]), key
