"""Which strategies can be trained without being told where a task begins: those, and no other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cl_runner import strategies
from cl_runner.errors import Diverged, UserError
from cl_runner.running import loop, together
from cl_runner.running.stacked import StackedStep
from cl_runner.running.tasks import Member, initial_state, train_task
from cl_runner.strategies.base import Strategy
from cl_runner.testing import leaves, snapshot

SMALL = (
    *("benchmark=split_digits", "benchmark.num_tasks=3", "benchmark.train_samples=120"),
    *("model.hidden_sizes=[20]", "training.batch_size=8", "training.epochs=1", "verbose=false"),
)
UNTOLD = "training.boundaries=none"
FREE = {"naive", "er", "er_ace", "er_aml", "scr", "der", "derpp", "mir", "mer", "la_maml", "cls_er"}
QUICK = {
    "gdumb": ("strategy.epochs=1",),
    "mer": ("training.iterations=3",),
    "la_maml": ("strategy.inner_steps=2",),
    "generative_replay": ("strategy.hidden_sizes=[10]", "strategy.latent_size=3"),
    "bir": ("strategy.hidden_sizes=[10]", "strategy.latent_size=3"),
    "den": ("strategy.phase_epochs=1",),
}
CASES = [
    *((name, "", name not in FREE) for name in strategies.available()),
    ("er", "strategy.policy=class_balanced strategy.buffer_size=30", True),
    ("der", "strategy.policy=herding strategy.buffer_size=30", True),
    ("er", "strategy.policy=ring strategy.buffer_size=30", False),
    ("er", "strategy.policy=dual strategy.buffer_size=30", False),
    ("er", "strategy.weighting=task_share", True),
]


def case(name: str, more: str) -> tuple[str, ...]:
    scenarios = strategies.find(name).scenarios
    scenario = "class" if "class" in scenarios else scenarios[0]
    tasks = ("benchmark.num_tasks=2",) if scenario == "domain" else ()  # divides ten classes
    own = (f"strategy={name}", f"scenario={scenario}", *tasks, *QUICK.get(name, ()))
    return (*SMALL, *own, *more.split())


def trained(prepared, overrides, *, told: bool):
    """The state after the run; untold, it is prepared as if it were told."""
    _, strategy, env = prepared(*overrides)
    s = initial_state(strategy, env)
    if not told:
        env.training = dataclasses.replace(env.training, boundaries="none")
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    return leaves(snapshot(s)._replace(t=torch.zeros(())))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more", "needs"), CASES, ids=lambda v: str(v) or "plain")
def test_it_needs_borders_if_and_only_if_they_change_something(prepared, name, more, needs) -> None:
    overrides = case(name, more)
    config, strategy, _ = prepared(*overrides)
    reason = strategy.needs_borders(config.scenario)
    assert bool(reason) == needs
    if type(strategy).training_set is not Strategy.training_set:
        return  # it is trained on what the task's number says
    told = trained(prepared, overrides, told=True)
    try:
        untold = trained(prepared, overrides, told=False)
    except (RuntimeError, IndexError, KeyError, AssertionError, Diverged):  # it cannot be tried
        assert needs
        return
    same = all(torch.equal(value, untold[key]) for key, value in told.items())
    assert same != needs


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("strategy=ewc", "strategy=ewc: it acts where a task begins or ends"),
        ("strategy=joint", "strategy=joint: it acts"),
        ("strategy=agem", "strategy=agem: it replays samples of earlier tasks alone"),
        ("strategy=er strategy.policy=herding", "strategy.policy=herding fills the buffer"),
        ("strategy=er strategy.policy=ring scenario=domain benchmark.num_tasks=2", "has places"),
        ("strategy=naive scenario=task", "no meaning for scenario=task"),
        ("strategy=naive training.active_classes=seen", "needs training.active_classes=all"),
        ("strategy=naive optimizer.reset=true", "needs optimizer.reset=false"),
        ("strategy=naive optimizer.schedule=cosine", "needs optimizer.schedule=constant"),
        ("strategy=naive training.boundaries=guessed", "training.boundaries must be one of"),
    ],
)
def test_what_would_tell_is_refused_in_one_line(prepared, more, named) -> None:
    with pytest.raises(UserError) as refused:
        prepared(*SMALL, UNTOLD, *more.split())
    assert named in str(refused.value) and "\n" not in str(refused.value)
    assert "training.boundaries" in str(refused.value)


def test_the_state_never_tells_the_task(prepared) -> None:
    _, strategy, env = prepared(*SMALL, UNTOLD, "strategy=er", "strategy.buffer_size=20")
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        assert int(s.t) == 0


@pytest.mark.slow
def test_runs_in_a_stack_are_not_told_either(prepared) -> None:
    overrides = (*SMALL, UNTOLD, "strategy=er", "strategy.buffer_size=20", "benchmark.seed=0")

    def members():
        return [Member(*prepared(*overrides, f"seed={seed}")[1:]) for seed in (0, 1)]

    stacked = members()
    step = StackedStep(stacked)
    states = [initial_state(*m) for m in stacked]
    for t in range(3):
        states = together.train_task(stacked, states, t, step)
    for alone, s in zip(members(), states, strict=True):
        own = initial_state(*alone)
        for task in alone.env.stream:
            own = train_task(alone.strategy, own, task, alone.env)
        assert int(s.t) == 0
        torch.testing.assert_close(s.theta, own.theta, rtol=1e-4, atol=1e-6)
        assert torch.equal(s.memory["buffer_index"], own.memory["buffer_index"])


def test_a_run_without_borders_has_all_its_files(configure, tmp_path) -> None:
    config = configure(*SMALL, UNTOLD, "strategy=derpp", "benchmark.boundaries=fuzzy")
    acc = loop.run(config, tmp_path)
    assert 0 <= acc <= 1
    assert (tmp_path / "accuracy_matrix.csv").read_text().count("\n") == 1 + 4
