"""Several steps on each batch of the stream (`training.passes`)."""

from __future__ import annotations

import dataclasses
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_runner import strategies
from cl_runner.config.identity import config_hash
from cl_runner.core import generator_for
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows
from cl_runner.running import loop
from cl_runner.running.tasks import initial_state, train_task
from cl_runner.training.batches import NOISE_WINDOW, Source
from cl_runner.training.engines import recorded, stepper
from cl_runner.training.env import Env
from cl_runner.training.fit import fit, plan

TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "benchmark.train_samples=210"),
    *("model.hidden_sizes=[16]", "training.batch_size=4", "training.epochs=1", "verbose=false"),
)
SMALL = ("strategy.buffer_size=20", "strategy.replay_batch_size=6")
CPU = torch.device("cpu")


def trained(prepared, *overrides: str):
    _, strategy, env = prepared(*TOY, *overrides)
    s = initial_state(strategy, env)
    for task in env.stream:
        s = train_task(strategy, s, task, env)
    return env, s


def uniform(env: Env, name: str, t: int, step: int, size: int) -> Tensor:
    """The random numbers of a step of a task's first epoch."""
    window, at = divmod(step, NOISE_WINDOW)
    generator = generator_for(CPU, env.seed, name, t, 0, window)
    return torch.rand(NOISE_WINDOW, size, generator=generator)[at]


def by_hand(env: Env, passes: int, places: int, replayed: int, lr: float):
    """Replay with plain lists and torch's own modules: parameters [P], and what is held."""
    net, stream, held, seen = deepcopy(env.flat.module), env.stream, [], 0
    for task in stream:
        generator = generator_for(CPU, env.seed, "order", task.index, 0)
        rows, step = task.train[torch.randperm(len(task.train), generator=generator)], 0
        for batch in rows.split(env.training.batch_size):
            for _ in range(passes):
                drawn = uniform(env, "draw", task.index, step, places)[: len(held)]
                old = [held[i] for i in drawn.argsort()[:replayed].tolist()]
                index = torch.tensor([*batch.tolist(), *(row for row, _ in old)])
                tasks = torch.tensor([task.index] * len(batch) + [of for _, of in old])
                x = stream.normalise(stream.images(index, tasks))
                loss = F.cross_entropy(net(x, tasks), stream.labels(index, tasks))
                grads = torch.autograd.grad(loss, list(net.parameters()))
                with torch.no_grad():
                    for p, g in zip(net.parameters(), grads, strict=True):
                        p.sub_(lr * g)
                step += 1
            offered = uniform(env, "reservoir", task.index, step - 1, env.training.batch_size)
            for row, u in zip(batch.tolist(), offered.tolist(), strict=False):
                slot = seen if seen < places else int(u * (seen + 1))
                seen += 1
                if slot < places:
                    held[slot : slot + 1] = [(row, task.index)]  # at the end: one more
    return torch.cat([p.detach().flatten() for p in net.parameters()]), held


@pytest.mark.parametrize("passes", [1, 3])
def test_replay_is_what_a_loop_by_hand_makes_of_it(prepared, passes):
    """Each step with a draw of its own, the batch offered after the last; the last one is smaller.

    The tasks take more steps than a block of random numbers has, which ends within a batch.
    """
    own = ("strategy=er", *SMALL, "optimizer=sgd", "optimizer.lr=0.1", f"training.passes={passes}")
    env, s = trained(prepared, *own)
    start = prepared(*TOY, *own)[2]
    theta, held = by_hand(start, passes, 20, 6, 0.1)
    index, task = s.memory["buffer_index"].tolist(), s.memory["buffer_task"].tolist()
    assert list(zip(index, task, strict=True)) == held
    assert int(s.memory["seen"].sum()) == sum(len(t.train) for t in env.stream)
    torch.testing.assert_close(s.theta.detach(), theta, rtol=1e-4, atol=1e-5)
    sizes = [len(t.train) for t in env.stream]
    assert passes == 1 or min(sizes) // 4 * passes > NOISE_WINDOW
    assert NOISE_WINDOW % 3 and any(n % 4 for n in sizes)


def test_a_batch_comes_several_times_each_with_noise_of_its_own(prepared):
    _, strategy, env = prepared(*TOY, "strategy=er", *SMALL, "training.passes=3")
    _, once, other = prepared(*TOY, "strategy=er", *SMALL)
    task = env.stream[0]
    source = Source(env, initial_state(strategy, env), 0, task.train, 0, strategy)
    length = plan(len(task.train), env.training)
    batches = list(source.epoch(0, length.steps))
    s = initial_state(once, other)
    plain = list(Source(other, s, 0, task.train, 0, once).epoch(0, length.steps // 3))
    assert length.per_epoch == len(batches) == 3 * len(plain) == 3 * -(-len(task.train) // 4)
    for i, batch in enumerate(batches):
        assert torch.equal(batch.index, plain[i // 3].index)
        assert torch.equal(batch.x, plain[i // 3].x)
    draws = torch.stack([batch.noise["draw"] for batch in batches])
    assert len(draws.unique(dim=0)) == len(batches)
    phase = Source(env, s, 0, task.train, 0, strategy, "more")  # which is no part of the stream
    assert len(torch.cat([b.index for b in phase.epoch(0, len(plain))]).unique()) == len(task.train)


@pytest.mark.parametrize("policy", ["reservoir", "ring", "dual", "class_balanced"])
@pytest.mark.parametrize("passes", [2, 70])
def test_how_many_steps_are_planned_at_once_changes_nothing(prepared, policy, passes):
    """One, some, or all of a block; also where a run goes on between the passes of a batch."""
    _, strategy, env = prepared(
        *TOY, "strategy=er", *SMALL, f"strategy.policy={policy}", f"training.passes={passes}"
    )
    s, found = initial_state(strategy, env), []
    for length in (1, 5, NOISE_WINDOW):
        source = Source(env, s, 0, env.stream[0].train, 0, strategy)
        plans = [own for _, own in source.windows(0, 3 * passes + 1, length, 0)]
        found.append({k: torch.cat([own[k] for own in plans]) for k in plans[0]})
    for name, values in found[0].items():
        assert len(values) == 3 * passes + 1
        assert all(torch.equal(values, other[name]) for other in found[1:]), name
    if policy != "class_balanced":
        counts = found[0]["seen"].sum(1).tolist()
        assert counts == [i // passes * 4 for i in range(1, 3 * passes + 2)]


def test_a_ring_holds_what_it_holds_with_one_pass(prepared):
    own = ("strategy=er", *SMALL, "strategy.policy=ring")
    one, several = (trained(prepared, *own, f"training.passes={n}")[1] for n in (1, 4))
    assert torch.equal(one.memory["buffer_index"], several.memory["buffer_index"])
    assert not torch.equal(one.theta, several.theta)


def test_what_is_kept_of_samples_is_that_of_the_last_pass(prepared):
    _, strategy, env = prepared(*TOY, "strategy=der", *SMALL, "training.passes=2")
    s = initial_state(strategy, env)
    first, second = Source(env, s, 0, env.stream[0].train, 0, strategy).epoch(0, 2)
    with torch.no_grad():
        s = env.commit(strategy.step(s, first, env)[0])
        assert (s.memory["buffer_index"] < 0).all() and not s.memory["buffer_logits"].any()
        logits = env.net(s.theta, second.x, second.task)
        s = env.commit(strategy.step(s, second, env)[0])
    assert s.memory["buffer_index"][:4].tolist() == second.index.tolist()
    torch.testing.assert_close(s.memory["buffer_logits"][:4], logits)


def test_recorded_steps_take_the_same_course(prepared):
    """What a CUDA graph replays; here replayed by hand."""
    ends = []
    for record in (False, True):
        _, strategy, env = prepared(*TOY, "strategy=er", *SMALL, "training.passes=2")
        s = initial_state(strategy, env)
        take = stepper(strategy, env, "eager", raw=True)
        take = recorded(take, env, record=lambda body: body) if record else take
        source = Source(env, s, 0, env.stream[0].train, 0, strategy)
        with torch.no_grad():
            for batch in source.epoch(0, 5, raw=True):
                s, _ = take(s, batch)
        ends.append((s.theta.detach().clone(), s.memory["buffer_index"].clone()))
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("iterations", [4, 9])
def test_iterations_count_steps_and_may_end_between_passes(counted_run, iterations):
    own = ("strategy=er", *SMALL, "training.passes=3", f"training.iterations={iterations}")
    _, s, _, counts = counted_run(*TOY, *own, tasks=2)
    assert counts == [(iterations, 4 * iterations)] * 2
    assert int(s.memory["seen"].sum()) == 2 * 4 * (iterations // 3)


def test_phases_of_a_strategy_are_no_passes_over_the_stream(counted_run):
    own = ("strategy=packnet", "scenario=task", "strategy.retrain_epochs=1", "training.passes=3")
    strategy, s, env, counts = counted_run(*TOY, *own, tasks=2)
    batches = [-(-len(task.train) // 4) for task in env.stream]
    assert [steps for steps, _ in counts] == [3 * batches[0] + batches[0], 3 * batches[1]]
    steps = env.meter.steps
    fit(s, env, strategy, (env.stream[0].train, 0), epochs=2, phase="more")
    assert env.meter.steps - steps == 2 * batches[0]


def test_a_sample_is_predicted_once_before_the_first_step_on_it(configure, tmp_path):
    case = (*TOY, "strategy=naive", "optimizer.lr=0.01", "eval.online=true", "eval.online_window=1")
    for passes in (1, 3):
        config = configure(*case, f"training.passes={passes}", "training.iterations=8")
        loop.run(config, tmp_path / f"{passes}")
    one, several = (read_rows(tmp_path / f"{passes}" / "online.csv") for passes in (1, 3))
    own = [row for row in several if row["task"] == "1"]
    assert [int(row["step"]) for row in own] == [1, 4, 7]
    assert [int(row["samples"]) for row in own] == [4, 4, 4]
    assert own[0]["hits"] == one[0]["hits"]
    loop.run(configure(*case, "training.passes=2", "training.epochs=2"), tmp_path / "whole")
    env = loop.prepare(config, loop.strategy_of(config))
    rows = read_rows(tmp_path / "whole" / "online.csv")
    for task in env.stream:
        own = [int(row["samples"]) for row in rows if int(row["task"]) == task.index + 1]
        assert sum(own) == len(task.train) and len(own) == -(-len(task.train) // 4)


@pytest.mark.parametrize("boundaries", ["fuzzy", "random"])
def test_a_stream_without_sharp_boundaries_is_as_long_in_steps(counted_run, boundaries):
    own = ("strategy=naive", f"benchmark.boundaries={boundaries}", "training.passes=2")
    *_, env, counts = counted_run(*TOY, *own, "training.iterations=20", tasks=2)
    sizes = [len(task.train) for task in env.stream]
    assert sum(sizes) == 2 * 10 * 4
    assert counts == [(2 * -(-n // 4), 2 * n) for n in sizes]


def test_one_pass_is_no_part_of_a_run(configure):
    one, two = (configure(*TOY, f"training.passes={n}").resolved for n in (1, 2))
    assert "passes" not in one["training"] and two["training"]["passes"] == 2
    assert config_hash(one) == config_hash(configure(*TOY).resolved) != config_hash(two)


REFUSED = {"mer", "gem", "gdumb", "ncm", "slda", "ridge"}


def test_those_that_take_the_samples_by_themselves_are_refused() -> None:
    found = {name for name in strategies.available() if strategies.find(name).shown_once}
    assert found == REFUSED


@pytest.mark.parametrize("strategy", sorted(REFUSED))
def test_a_strategy_that_it_does_not_go_with_says_so_before_training(prepared, strategy):
    scenario = strategies.find(strategy).scenarios[0]
    with pytest.raises(UserError, match=r"^training\.passes=2 does not go with strategy=.*, wh"):
        prepared(*TOY, f"strategy={strategy}", f"scenario={scenario}", "training.passes=2")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("training.boundaries=detected",), "does not go with training.boundaries=detected"),
        (
            ("benchmark.boundaries=fuzzy", "training.iterations=7"),
            "does not go with training.iterations=7 on a stream whose length it gives",
        ),
    ],
)
def test_settings_that_it_does_not_go_with_are_told(prepared, more, message):
    with pytest.raises(UserError, match=message) as caught:
        prepared(*TOY, "strategy=naive", "training.passes=2", *more)
    assert "\n" not in str(caught.value)


BUFFERED = [
    name
    for name in strategies.available()
    if name not in REFUSED
    and "buffer_size" in {field.name for field in dataclasses.fields(strategies.find(name))}
]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUFFERED)
def test_no_buffer_holds_a_sample_twice(prepared, name):
    """With room for all. Those that hold none at all would not be looked at."""
    cls = strategies.find(name)
    own = (f"strategy={name}", f"scenario={cls.scenarios[-1]}", "strategy.buffer_size=400")
    own = (*own, "training.passes=2", "benchmark.train_samples=100")
    env, s = trained(prepared, *own)
    rows = [i for i in s.memory["buffer_index"].tolist() if i >= 0]
    assert len(set(rows)) == len(rows) >= len(env.stream[0].train)
