"""What benchmark_speed.py measures within a process: steps, Fishers, replay, stacks of runs.

Training steps alone, on real MNIST: no start-up, no evaluation, no files. What is compared takes
turns; a figure is the median of the turns, a ratio the median of the turns' ratios.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lean_steps
import torch
from hydra import compose, initialize_config_module

from cl_runner import strategies
from cl_runner.config.parse import validate
from cl_runner.config.versions import BASE
from cl_runner.functional.importance import LABEL_RULES
from cl_runner.running.boundaries import Detecting
from cl_runner.running.prepare import prepare
from cl_runner.running.stacked import StackedStep, stack
from cl_runner.running.tasks import (
    Member,
    begin_task,
    end_task,
    initial_state,
    length,
    train_task,
)
from cl_runner.running.together import stacked_batches
from cl_runner.strategies.parts.importance import fisher_diagonal, kronecker_factors
from cl_runner.training.batches import Source
from cl_runner.training.engines import stepper
from cl_runner.training.fit import Alone, take_steps

SETTINGS = {  # overrides, steps of a whole run
    "W1": (
        "model.hidden_sizes=[256,256] training.batch_size=128 optimizer.lr=0.1",
        10 * 469,
    ),
    "online": (
        "model.hidden_sizes=[100,100] training.batch_size=10 optimizer.lr=0.1",
        10 * 6000,
    ),
}
PERMUTED = "benchmark=permuted_mnist benchmark.num_tasks=10"
REPLAY = (
    "strategy.buffer_size=500 strategy.replay_batch_size=32 benchmark=split_mnist "
    "training.batch_size=32 model.hidden_sizes=[256,256] optimizer=sgd optimizer.lr=0.1"
)
Turn = Callable[[], float]  # the seconds that one turn of something took


def member(data: Path, threads: int, *overrides: str) -> Member:
    """A run, ready to train."""
    with initialize_config_module("cl_runner.conf", **BASE):
        common = [f"data.root={data}", f"threads={threads}", "device=cpu", "verbose=false"]
        config = validate(compose("config", overrides=[*common, *overrides]))
    strategy = strategies.build(config.strategy)
    return Member(strategy, prepare(config, strategy))


def alone(m: Member, task: int, steps: int, before: int = 1) -> Turn:
    """Turns of so many steps on a task, after `before` steps on each task before it, and one."""
    strategy, env = m
    s = initial_state(strategy, env)
    for t in range(task + 1):
        s, progress = begin_task(strategy, s, env.stream[t], env)
        source = Source(env, s, t, *progress.samples, strategy)
        take = stepper(strategy, env, "eager")
        with torch.no_grad():
            for batch in source.epoch(0, before if t < task else 1):
                s, _ = take(s, batch)
        if t < task:
            s = end_task(strategy, s, env.stream[t], env)
    epoch = iter(())

    def turn() -> float:
        nonlocal s, epoch
        taken, seconds = 0, 0.0
        while taken < steps:
            begun = time.perf_counter()
            with torch.no_grad():
                for batch in epoch:
                    s, _ = take(s, batch)
                    taken += 1
                    if taken == steps:
                        break
                else:
                    epoch = source.epoch(0, len(source.index) // env.training.batch_size)
            seconds += time.perf_counter() - begun
        return seconds

    return turn


def first_task(m: Member) -> Callable[[bool], float]:
    """Turns of the steps of a whole first task, with what is asked for beside them and without.

    That is `eval.online`, or a detector of borders. In the processor's seconds. Both go on in the
    same memory, because where it lies makes a difference of 2 %.
    """
    strategy, env = m
    s, progress = begin_task(strategy, initial_state(strategy, env), env.stream[0], env)
    plan = length(strategy, env, progress, 0)
    env.meter.begin(0, plan.epochs, plan.steps)
    online = env.online

    def turn(asked: bool) -> float:
        nonlocal s
        begun = time.process_time()
        env.online = online and asked
        if env.watch is not None and asked:
            steps: Alone = Detecting(s, env, strategy, env.watch, progress, 0)
        else:
            steps = Alone(s, env, strategy, progress, 0)
        with torch.no_grad():
            take_steps(steps, plan, 0, None)
        steps.online()  # of none, where that is off
        s = steps.s
        return time.process_time() - begun

    return turn


def together(members: list[Member], steps: int) -> Turn:
    """Turns of so many steps of a stack on the first task."""
    begun = [begin_task(m.strategy, initial_state(*m), m.env.stream[0], m.env) for m in members]
    sources = [
        Source(m.env, s, 0, *own.samples, m.strategy)
        for m, (s, own) in zip(members, begun, strict=True)
    ]
    step = StackedStep(members)
    step.begin(stack([s for s, _ in begun]))
    whole = len(sources[0].index) // members[0].env.training.batch_size
    with torch.no_grad():
        step(next(stacked_batches(sources, 0, 1)))
    epoch = iter(())

    def turn() -> float:
        nonlocal epoch
        taken, start = 0, time.perf_counter()
        with torch.no_grad():
            while taken < steps:
                for batch in epoch:
                    step(batch)
                    taken += 1
                    if taken == steps:
                        break
                else:
                    epoch = stacked_batches(sources, 0, whole)
        return time.perf_counter() - start

    return turn


def turns(things: dict[str, Turn], repeat: int) -> dict[str, list[float]]:
    """Let each take its turns, one after another."""
    for turn in things.values():
        turn()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(repeat):
        for name, turn in things.items():
            seconds[name].append(turn())
    return seconds


def ratio(a: list[float], b: list[float]) -> float:
    """The median of the ratios, pair by pair."""
    return median(x / y for x, y in zip(a, b, strict=True))


def step_costs(data: Path, threads: int, repeat: int) -> None:
    """EWC and replay late in a run against early, EWC against naive, and Fishers against epochs."""
    w1 = SETTINGS["W1"][0].split()
    ewc = ("strategy=ewc", "strategy.fisher_samples=1000", *PERMUTED.split(), *w1)
    naive = ("strategy=naive", *PERMUTED.split(), *w1)
    n = 200
    things = {
        "naive, task 2": alone(member(data, threads, *naive), 1, n),
        "EWC, task 2": alone(member(data, threads, *ewc), 1, n),
        "EWC, task 10": alone(member(data, threads, *ewc), 9, n),
        "replay, task 2": alone(member(data, threads, "strategy=er", *REPLAY.split()), 1, n),
        "replay, task 5": alone(member(data, threads, "strategy=er", *REPLAY.split()), 4, n),
    }
    seconds = turns(things, 3 * repeat)
    for name, values in seconds.items():
        print(f"steps: {name:15} {median(values) / n * 1e6:7.0f} us")
    for a, b in (("EWC, task 2", "naive, task 2"), ("EWC, task 10", "EWC, task 2")):
        print(f"steps: {a} / {b}: {ratio(seconds[a], seconds[b]):.2f}")
    a, b = "replay, task 5", "replay, task 2"
    print(f"steps: {a} / {b}: {ratio(seconds[a], seconds[b]):.2f}")
    online_costs(data, threads, repeat)
    fishers(data, threads, repeat)
    closed_forms(data, threads, repeat)


def online_costs(data: Path, threads: int, repeat: int) -> None:
    """What `eval.online` and detectors of borders add to the steps of a task; nothing, to compare.

    Each turn is one task without, two with and one without.
    """
    detected = "training.boundaries=detected"
    asked = {
        "nothing": (),
        "eval.online": ("eval.online=true",),
        "page_hinkley": (detected,),
        "adwin": (detected, "detector.name=adwin"),
    }
    for size, n in ((10, 200), (128, 40)):
        w1 = (*SETTINGS["W1"][0].split(), f"training.batch_size={size}")
        own = ("strategy=naive", *PERMUTED.split(), *w1, f"benchmark.train_samples={n * size}")
        for name, more in asked.items():
            turn = first_task(member(data, threads, *own, *more))
            turn(False), turn(True)  # warm
            plain, ratios = [], []
            for _ in range(20 * repeat):
                a, b, c, d = turn(False), turn(True), turn(True), turn(False)
                plain.append((a + d) / 2)
                ratios.append((b + c) / (a + d))
            ratios, q = sorted(ratios), len(ratios) // 4
            print(
                f"online: batches of {size}, {median(plain) / n * 1e6:4.0f} us a step: {name:12} "
                f"{median(ratios):.3f} (quartiles {ratios[q]:.3f} to {ratios[3 * q]:.3f}), "
                f"n = {len(ratios)}",
                flush=True,
            )


def fishers(data: Path, threads: int, repeat: int) -> None:
    """The Fisher of all 60,000 samples by each rule, against an epoch of naive steps.

    Its Kronecker factors against its diagonal.
    """
    m = member(data, threads, "strategy=naive", *PERMUTED.split(), *SETTINGS["W1"][0].split())
    s = initial_state(*m)._replace(t=torch.zeros((), dtype=torch.int64))

    def fisher(of: Callable[..., object], rule: str) -> Turn:
        def turn() -> float:
            begun = time.perf_counter()
            with torch.no_grad():
                of(s, m.env.stream[0], m.env, labels=rule, samples=None)
            return time.perf_counter() - begun

        return turn

    things = {"epoch": alone(m, 0, 469)}
    for rule in LABEL_RULES:
        things |= {
            rule: fisher(fisher_diagonal, rule),
            f"{rule}, kron": fisher(kronecker_factors, rule),
        }
    seconds = turns(things, repeat)
    for rule in LABEL_RULES:
        kron = seconds[f"{rule}, kron"]
        print(
            f"Fisher: {rule:9} {median(seconds[rule]):5.2f} s, "
            f"{ratio(seconds[rule], seconds['epoch']):.2f} epochs; "
            f"Kronecker factors {ratio(kron, seconds[rule]):.2f} times that "
            f"({min(kron) / min(seconds[rule]):.2f} by the fastest), n = {len(kron)}"
        )


def closed_forms(data: Path, threads: int, repeat: int) -> None:
    """What learners in closed form take for a task of Split MNIST, in epochs of naive's steps.

    The first task, solution included, with 2,048 random units; in the processor's seconds, each
    between two of naive's.
    """

    def task(*overrides: str) -> Turn:
        strategy, env = member(data, threads, "benchmark=split_mnist", *overrides)
        s = initial_state(strategy, env)

        def turn() -> float:
            nonlocal s
            begun = time.process_time()
            s = train_task(strategy, s, env.stream[0], env)
            return time.process_time() - begun

        return turn

    naive = task("strategy=naive", "training.epochs=1")
    naive()  # warm
    for name in ("ncm", "slda", "ridge"):
        turn = task(f"strategy={name}", "strategy.features=2048")
        turn()
        own = sorted(2 * turn() / (before + naive()) for before in (naive() for _ in range(repeat)))
        print(
            f"closed form: {name:5} {median(own):.2f} epochs of naive "
            f"({own[0]:.2f} to {own[-1]:.2f}), n = {len(own)}",
            flush=True,
        )


def replay_costs(data: Path, threads: int, repeat: int) -> None:
    """Steps of five replay methods against those of lean_steps.py, with their batches.

    In the third task of five, the buffer full: a quarter to all of what it holds is of the first
    two, so that A-GEM finds a whole batch there.
    """
    n, before, task = 50, 300, 2
    for name in lean_steps.STEPS:
        m = member(data, threads, f"strategy={name}", *REPLAY.split())
        torch.manual_seed(0)
        things = {
            "by hand": lean_steps.alone(name, data, task, n, before),
            "ours": alone(m, task, n, before=before),
        }
        seconds = turns(things, 6 * repeat)
        hand, ours = seconds["by hand"], seconds["ours"]
        ratios = sorted(a / b for a, b in zip(ours, hand, strict=True))
        print(
            f"replay: {name:6} {median(hand) / n * 1e3:.3f} ms by hand "
            f"({min(hand) / n * 1e3:.3f} to {max(hand) / n * 1e3:.3f}), "
            f"{median(ours) / n * 1e3:.3f} ms ours "
            f"({min(ours) / n * 1e3:.3f} to {max(ours) / n * 1e3:.3f}), "
            f"ratio {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), n = {len(ratios)}",
            flush=True,
        )


def stacks(data: Path, threads: int, repeat: int, sizes: list[int]) -> None:
    """Runs per minute of stacks, of single runs one after another, and of processes."""
    for name, (setting, steps_of_run) in SETTINGS.items():
        overrides = ("strategy=naive", *PERMUTED.split(), *setting.split())
        n = 100 if name == "W1" else 400

        def made(seed: int, overrides: tuple[str, ...] = overrides) -> Member:
            return member(data, threads, *overrides, f"seed={seed}")

        things = {"alone": alone(made(0), 0, n)}
        for size in sizes:
            things[f"{size}"] = together([made(seed) for seed in range(size)], n)
        seconds = turns(things, repeat)
        base = 60 * n / steps_of_run
        print(f"{name}: alone {base / median(seconds['alone']):8.2f} runs per minute", end="")
        print(f" ({median(seconds['alone']) / n * 1e6:.0f} us per step)")
        for size in sizes:
            gain = size / ratio(seconds[f"{size}"], seconds["alone"])
            rate = size * base / median(seconds[f"{size}"])
            print(f"{name}: {size:3} stacked {rate:8.2f} runs per minute, {gain:.2f} times alone")
        rate = processes(data, threads, name, repeat)
        gain = rate / (base / median(seconds["alone"]))
        print(f"{name}: {threads} processes of one thread {rate:8.2f} runs per minute, {gain:.2f}")
        sys.stdout.flush()


def processes(data: Path, workers: int, name: str, repeat: int) -> float:
    """Runs per minute of so many processes of one thread at the same time."""
    command = [sys.executable, __file__, str(data), name, str(repeat)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    return sum(float(json.loads(p.communicate()[0])) for p in running)


def main(arguments: list[str]) -> None:
    """One of several processes that run alone, at the same time: print runs per minute."""
    data, name, repeat = Path(arguments[0]), arguments[1], int(arguments[2])
    setting, steps_of_run = SETTINGS[name]
    overrides: tuple[Any, ...] = ("strategy=naive", *PERMUTED.split(), *setting.split())
    n = 400 if name == "W1" else 1600
    seconds = turns({"alone": alone(member(data, 1, *overrides), 0, n)}, repeat)["alone"]
    print(json.dumps(60 * n / steps_of_run / median(seconds)))


if __name__ == "__main__":
    main(sys.argv[1:])
