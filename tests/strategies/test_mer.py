"""Meta-experience replay against algorithm 1 in plain Python."""

from __future__ import annotations

import re
from copy import deepcopy
from itertools import count

import pytest
import torch
import torch.nn.functional as F

from cl_runner.errors import UserError
from cl_runner.running.messages import notes

TOY = (
    "benchmark=split_digits",
    "strategy=mer",
    "strategy.buffer_size=6",
    "strategy.replay_batch_size=3",
    "strategy.batches=2",
    "model.hidden_sizes=[5]",
    "training.batch_size=4",
)


def parameters(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def move(module, before: torch.Tensor, share: float) -> None:
    """Reptile: back to `before`, but for a share of the way from there."""
    after = before + share * (parameters(module) - before)
    torch.nn.utils.vector_to_parameters(after, module.parameters())


def by_hand(env, batches, *, batch_size=2, drawn=3, beta, gamma, places=6):
    """Parameters and memory after algorithm 1, sample by sample, with the given uniforms."""
    module, own = deepcopy(env.flat.module), env.own_classes
    sgd = torch.optim.SGD(module.parameters(), lr=env.optimizer.lr)
    memory: list[tuple] = []
    age = 0
    for batch in batches:
        for i, current in enumerate(zip(batch.x, batch.y, batch.task, batch.index, strict=True)):
            uniforms = batch.noise["draw"][i].view(batch_size, drawn).tolist()
            before_sample = parameters(module)
            for uniform in uniforms:
                before_batch = parameters(module)
                old = [memory[int(u * len(memory))] for u in uniform[: len(memory)]]
                for x, y, task, _ in (*old, current):
                    logits = module(x[None], task[None])[0]
                    if env.stream.scenario == "task":
                        logits = logits.masked_fill(~own[task], -torch.inf)
                    sgd.zero_grad()
                    F.cross_entropy(logits, y).backward()
                    sgd.step()
                move(module, before_batch, beta)
            move(module, before_sample, gamma)
            place = age if age < places else int(batch.noise["reservoir"][i] * (age + 1))
            memory[place : place + 1] = [current] if place < places else []
            age += 1
    return parameters(module), [int(index) for *_, index in memory]


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize(("beta", "gamma"), [(0.3, 0.5), (1.0, 0.5), (0.3, 1.0)])
def test_it_is_algorithm_1(mid_run, scenario, beta, gamma):
    """From an empty buffer until after it is full."""
    strategy, env, s, batches = mid_run(
        *TOY,
        f"scenario={scenario}",
        f"strategy.beta={beta}",
        f"strategy.gamma={gamma}",
        tasks=0,
    )
    expected, held = by_hand(env, batches[:4], beta=beta, gamma=gamma)
    with torch.no_grad():
        for batch in batches[:4]:
            s, _ = strategy.step(s, batch, env)
            s = env.commit(s)
    torch.testing.assert_close(s.theta.detach(), expected)
    assert s.memory["buffer_index"].tolist() == held
    assert int(s.memory["seen"].sum()) == 16


def test_without_meta_updates_it_is_sgd_over_the_sequence(mid_run):
    """beta = gamma = 1, in the middle of a stream: replayed samples come with their own task."""
    strategy, env, s, (batch, *_) = mid_run(
        *TOY[:-1],
        "training.batch_size=32",
        "training.epochs=1",
        "benchmark=permuted_digits",
        "benchmark.train_samples=64",
        "strategy.beta=1",
        tasks=1,
    )
    part = batch._replace(**{k: getattr(batch, k)[:1] for k in ("x", "y", "task", "index")})
    held = list(zip(s.memory["buffer_index"], s.memory["buffer_task"], strict=True))
    slots = (part.noise["draw"][0].double() * len(held)).long()
    sequence = [env.gather(held[i][0][None], int(held[i][1]), s.t) for i in slots]
    assert {int(one.task) for one in sequence} == {0}
    module = deepcopy(env.flat.module)
    sgd = torch.optim.SGD(module.parameters(), lr=env.optimizer.lr)
    for one in (*sequence[:3], part, *sequence[3:], part):
        sgd.zero_grad()
        F.cross_entropy(module(one.x, one.task), one.y).backward()
        sgd.step()
    with torch.no_grad():
        new, _ = strategy.step(s, part, env)
    torch.testing.assert_close(new.theta, parameters(module))


def test_a_step_without_a_sample_leaves_theta_as_it_is(mid_run):
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=0)
    one = batch._replace(**{k: getattr(batch, k)[:1] for k in ("x", "y", "task", "index")})
    one = one._replace(noise={name: values[:1] for name, values in batch.noise.items()})
    with torch.no_grad():
        replay = strategy.draw(s, one, env)
        assert replay.weight.tolist() == [0.0] * 6
        grad, _ = env.grad_and_value(strategy.loss)(s.theta.detach(), s, replay, env)
    assert not grad.any()


def test_batches_of_one_and_of_many_are_the_same_method(mid_run):
    """The incoming batch is a sequence: what matters is the order of its samples."""
    strategy, env, s, (batch, *_) = mid_run(*TOY, tasks=0)
    with torch.no_grad():
        together, _ = strategy.step(s, batch, env)
        for i in range(4):
            one = {k: getattr(batch, k)[i : i + 1] for k in ("x", "y", "task", "index")}
            noise = {name: values[i : i + 1] for name, values in batch.noise.items()}
            s, _ = strategy.step(s, batch._replace(**one, noise=noise), env)
    torch.testing.assert_close(s.theta.detach(), together.theta)
    assert torch.equal(s.memory["buffer_index"], together.memory["buffer_index"])


def test_the_time_of_a_step_is_that_between_two_looks_at_the_clock(prepared, monkeypatch):
    _, strategy, env = prepared(*TOY)
    clock = count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    assert strategy.seconds_of_one(env) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["training.iterations=7", "training.epochs=2"])
def test_it_says_what_a_run_takes_before_it_starts(prepared, counted_run, budget):
    """For each sample of the stream two batches of three old ones and itself."""
    toy = (*TOY, "benchmark.train_samples=50", budget)
    _, strategy, env = prepared(*toy)
    theta = env.flat.theta.detach().clone()
    (line,) = notes(strategy, env)
    assert torch.equal(env.flat.theta, theta) and env.meter.steps == 0
    assert f"strategy=mer takes {strategy.gradients(env)} SGD steps of one sample each" in line
    assert re.search(r"about \d+\.\d minutes, at \d+\.\d ms a step", line)
    *_, counts = counted_run(*toy)
    assert strategy.gradients(env) == sum(samples for _, samples in counts) * 2 * 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy.policy=ring",), "strategy.policy must be reservoir for strategy=mer, got ring"),
        (("strategy.weighting=task_share",), "strategy.weighting has no meaning for strategy=mer"),
        (("strategy.batches=0",), "strategy.batches must be at least 1, got 0"),
        (("strategy.beta=0",), r"strategy.beta must lie in \(0, 1\], got 0"),
        (("strategy.gamma=1.5",), r"strategy.gamma must lie in \(0, 1\], got 1.5"),
        (("optimizer=adam",), "strategy=mer takes plain SGD steps"),
        (("optimizer.momentum=0.9",), "strategy=mer takes plain SGD steps"),
        (("optimizer.clip_value=0.5",), "strategy=mer takes plain SGD steps"),
        (("optimizer.weight_decay=0.1",), "strategy=mer takes plain SGD steps"),
        (("model=reduced_resnet18", "model.width=2"), "strategy=mer needs a model without Batch"),
    ],
)
def test_what_cannot_be_is_refused(prepared, overrides, message):
    toy = [o for o in TOY if not o.startswith("model")] if "model" in overrides[0] else TOY
    with pytest.raises(UserError, match=message):
        prepared(*toy, *overrides)
