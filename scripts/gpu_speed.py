"""The part `speed` of check_gpu.py: steps by engine beside what the card could do, and stacks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gpu_report import Context, Piece, Settings

from cl_runner.config.versions import BASE
from cl_runner.data.npz import save

if TYPE_CHECKING:
    from gpu_courses import Course, Plan

    from cl_runner.config.schema import Config
    from cl_runner.running.tasks import Member

SYNTHETIC = "synthetic"  # the folder of random images
STRATEGIES = ("naive", "ewc", "er", "derpp")
STACKS = (1, 4, 16, 64, 256)
RUN = {"W1": 10 * 469, "online": 10 * 6000}  # steps of a whole run
# Bars, of the project's goals.
FLOOR, EAGER, SEEDS = 1.3, 3.0, 4.0


class Work(NamedTuple):
    """What is trained: the data set, further overrides, and those of a rehearsal."""

    data: str
    overrides: str
    tiny: str


MLP = "optimizer.lr=0.1 model.hidden_sizes"
RESNET = "model=reduced_resnet18 optimizer.lr=0.03"
TINY_RESNET = "model.width=2 training.batch_size=8"
WORKS = {
    "W1": Work(
        "mnist",
        f"{MLP}=[256,256] training.batch_size=128",
        "model.hidden_sizes=[16,16] training.batch_size=8",
    ),
    "online": Work("mnist", f"{MLP}=[100,100] training.batch_size=10", "model.hidden_sizes=[12]"),
    "resnet10": Work("cifar100", f"{RESNET} training.batch_size=10", TINY_RESNET),
    "resnet32": Work(
        "cifar100", f"{RESNET} training.batch_size=32 training.augment=crop_flip", TINY_RESNET
    ),
}
STREAMS = {  # of a data set: the benchmark, and that of an .npz file of the same shapes
    "mnist": ("benchmark=permuted_mnist", "benchmark=permuted_npz"),
    "cifar100": ("benchmark=split_cifar100", "benchmark=split_npz benchmark.num_tasks=10"),
}
SHAPES = {  # images of the training and the test set, their shape, classes
    "mnist": (60000, 10000, (28, 28), 10),
    "cifar100": (50000, 10000, (32, 32, 3), 100),
}
REPLAYED = {"W1": 128, "online": 10, "resnet10": 10, "resnet32": 32}


def pieces(settings: Settings) -> list[Piece]:
    """By value: the engines of the MLPs, of the residual networks, stacks; then compiled steps."""
    found = [Piece("rates of the card", 3, rates_told)]
    works = ("W1", "resnet10") if settings.tiny else tuple(WORKS)
    for work in works:
        few = settings.tiny and work != "W1"
        for strategy in ("er",) if few else STRATEGIES[:: 3 if settings.tiny else 1]:
            engines = partial(by_engine, work=work, strategy=strategy)
            found.append(Piece(f"{work} {strategy}", 1 if settings.tiny else 5, engines))
    for work in ("W1",) if settings.tiny else RUN:
        for size in STACKS[1:2] if settings.tiny else STACKS:
            stack = partial(in_stack, work=work, size=size)
            name = f"{work} stack of {size}"
            found.append(Piece(name, 1 if settings.tiny else 4 + size / 8, stack))
    found.append(Piece("from command to exit", 3 if settings.tiny else 8, one_step))
    if not settings.tiny:
        whole = partial(whole_runs, size=STACKS[-1])
        found.append(Piece(f"whole W1, {STACKS[-1]} seeds", 60, whole, turn=1, limit=400))
    for work in works:
        for strategy in ("naive",) if settings.tiny else STRATEGIES:
            compiled = partial(compiled_steps, work=work, strategy=strategy)
            seconds = 90 if "resnet" in work else 40
            found.append(Piece(f"{work} {strategy} compile", seconds, compiled, turn=2))
    return found


# Runs, ready to train.


def members(context: Context, work: str, strategy: str, seeds: int, *more: str) -> list[Member]:
    """Runs that differ in their seeds, ready to train. Composed once, and on the same arrays."""
    from cl_runner.config.parse import validate
    from cl_runner.running.prepare import prepare, read, strategy_of
    from cl_runner.running.tasks import Member

    node = composed(context, work, strategy, *more)
    found, arrays = [], None
    for seed in range(seeds):
        node.seed = seed
        config: Config = validate(node)
        if arrays is None:
            arrays = remembered(context, ("arrays", WORKS[work].data), partial(read, config))
        own = strategy_of(config)
        found.append(Member(own, prepare(config, own, arrays)))
    return found


def composed(context: Context, work: str, strategy: str, *more: str) -> Any:
    """The configuration of a run, not yet validated."""
    from hydra import compose, initialize_config_module

    own = WORKS[work]
    overrides = [f"strategy={strategy}", *stream(context, own.data), *own.overrides.split()]
    if strategy in {"er", "derpp"}:
        overrides += ["strategy.buffer_size=500", f"strategy.replay_batch_size={REPLAYED[work]}"]
    if strategy == "ewc":
        overrides += ["strategy.fisher_samples=1000"]
    if context.settings.tiny:
        overrides += own.tiny.split()
    device = f"device={context.settings.device}"
    with initialize_config_module("cl_runner.conf", **BASE):
        return compose("config", [*overrides, device, "verbose=false", *more])


def remembered(context: Context, key: Any, make: Callable[[], Any]) -> Any:
    """What `make` gives, the first time."""
    if key not in context.memo:
        context.memo[key] = make()
    return context.memo[key]


def stream(context: Context, data: str) -> list[str]:
    """The overrides of a stream of a data set; of random images where the set is not there."""
    from cl_runner.data.named import TORCHVISION

    real, synthetic = STREAMS[data]
    root = context.settings.data
    if (root / f"{data}.npz").exists() or (root / TORCHVISION[data][1]).is_dir():
        return [real, f"data.root={root}"]
    file = remembered(context, ("file", data), partial(random_images, context, data))
    return [*synthetic.split(), f"data.path={file}"]


def random_images(context: Context, data: str) -> Path:
    """An .npz file of random images of a data set's shapes; that they are random is a row."""
    train, test, shape, classes = SHAPES[data]
    if context.settings.tiny:
        train, test = 40 * classes, classes
    file = context.settings.out / SYNTHETIC / f"{data}.npz"
    if file.exists():  # an earlier process has made and told it
        return file
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, number in (("train", train), ("test", test)):
        arrays[f"x_{split}"] = generator.integers(0, 256, (number, *shape), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(number) % classes
    file.parent.mkdir(exist_ok=True)
    save(file, arrays)
    there = f"random images of its shapes, {data} is not in {context.settings.data}"
    context.emit(f"{data}: synthetic data", message=there)
    return file


# What is measured.


def by_engine(context: Context, work: str, strategy: str) -> None:
    """A step operation by operation and recorded, and the floor."""
    name = f"{work} {strategy}"
    plain = course(context, work, strategy, "eager")
    step(context, f"{name} eager", plain)
    recorded = course(context, work, strategy, "graph")
    step(context, f"{name} graph", recorded)
    context.memo[name] = recorded
    us, slow = median(recorded.micros), median(plain.micros)
    ratio = slow / us
    bar = f"at most {EAGER:g}"
    context.emit(f"{name} eager / graph", ratio, "", bar=bar, met=ratio <= EAGER)
    waits(context, f"{name} graph", recorded)
    floors(context, name, plain, us, judged="resnet" not in work)


def course(context: Context, work: str, strategy: str, engine: str) -> Course:
    """The steps of a run that is prepared for it."""
    from gpu_courses import alone, rehearsed

    by_hand = engine == "graph" and context.settings.device != "cuda"
    own = f"engine={'eager' if by_hand else engine}"
    (member,) = members(context, work, strategy, 1, own)
    return (rehearsed if by_hand else alone)(member, plan(context, work, engine))


def plan(context: Context, work: str, engine: str) -> Plan:
    """How many steps are watched; they are within one epoch."""
    from gpu_courses import Plan

    counted = engine == "eager"
    if context.settings.tiny:
        return Plan(warm=4, windows=2, window=3, traced=2, watched=4, counted=counted)
    if work == "resnet32":
        return Plan(warm=16, windows=3, window=15, traced=8, watched=70, counted=counted)
    return Plan(warm=40, windows=4, window=80, traced=15, watched=70, counted=counted)


def step(context: Context, name: str, found: Course) -> None:
    """Rows of a step: its time, its launches, how long it took until steps take their time."""
    micros = found.micros
    spread = f"{min(micros):.1f} to {max(micros):.1f}, {len(micros)} stretches of {found.window}"
    context.emit(f"{name} step", median(micros), "us", message=spread)
    launched = sum(found.launches.values())
    unit = "launches" if context.settings.device == "cuda" else "operations"
    each = ", ".join(f"{key} {n:.3g}" for key, n in sorted(found.launches.items()))
    if launched:
        context.emit(f"{name} launches per step", launched, unit, message=each)
    else:
        context.emit(f"{name} launches per step", state="failed", message="the profiler saw none")
    first = f"{found.first:.3f} s to the end of the first step, and to that of the third on the "
    first += f"task after it {found.again:.3f} s"
    context.emit(f"{name} until it is compiled or recorded", found.ready, "s", message=first)


def waits(context: Context, name: str, found: Course) -> None:
    """A row: how often the host waited for the GPU within the epoch."""
    if context.settings.device != "cuda":
        context.emit(f"{name} host waits", state="missing", message="only CUDA tells of them")
        return
    number, where = len(found.waits), ", ".join(dict.fromkeys(found.waits))
    message = f"in {found.steps} steps {where}"[:300]
    context.emit(f"{name} host waits", number, "", bar="none", met=not number, message=message)


def rates_told(context: Context) -> None:
    """Rows: what the card does in a second."""
    flops, moved = rates(context)
    context.emit("matrix product, float32", flops / 1e12, "TFLOP/s")
    context.emit("copy, read and written", moved / 1e9, "GB/s")


def rates(context: Context) -> tuple[float, float]:
    """FLOPs and bytes per second: of one big matrix product in float32, and of one big copy."""
    return remembered(context, "rates", partial(measured_rates, context.settings))


def measured_rates(settings: Settings) -> tuple[float, float]:
    """See `rates`."""
    import torch

    from cl_runner.machine.precision import choose
    from cl_runner.running.prepare import choose_device

    device = choose_device(settings.device)  # before the first product, which it affects
    choose("auto", device)
    size, number = (256, 2**22) if settings.device == "cpu" else (8192, 2**28)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    source, target = (torch.randn(number, device=device) for _ in range(2))
    product = median(times(lambda: torch.mm(a, b), device, 5))
    copied = median(times(lambda: target.copy_(source), device, 5))
    return 2 * size**3 / product, 2 * source.nbytes / copied


def times(function: Callable[[], Any], device: Any, repeat: int) -> list[float]:
    """Seconds that it takes, several times, after two that are not counted."""
    from gpu_courses import now

    found = []
    for i in range(repeat + 2):
        began = now(device)
        function()
        if i >= 2:
            found.append(now(device) - began)
    return found


def floors(context: Context, name: str, plain: Course, us: float, *, judged: bool) -> None:
    """Rows: what a step takes at least, by the card's rates and by its products alone.

    The first floor is the larger of the products' FLOPs at the rate of a big product and the bytes
    at the rate of a big copy: of the products' operands and results, the parameters, and what is as
    long as they. The second is the time of the same products of random numbers, one after another,
    recorded as a graph of their own, without anything that is done to single numbers.
    """
    products = plain.products
    assert products is not None
    flops, moved = rates(context)
    compute, memory = products.flops / flops, (products.bytes + plain.vectors) / moved
    floor = 1e6 * max(compute, memory)
    of = f"{products.flops:.3g} FLOP {1e6 * compute:.1f} us, bytes {1e6 * memory:.1f} us"
    context.emit(f"{name} floor by the card's rates", floor, "us", message=of)
    least = 1e6 * alone_in_a_graph(context, products)
    calls = f"{len(products.calls)} products"
    context.emit(f"{name} floor by its products alone", least, "us", message=calls)
    bar = f"at most {FLOOR:g}" if judged else ""
    for what, bound in (("card's rates", floor), ("products alone", least)):
        met = us / bound <= FLOOR if judged else None
        context.emit(f"{name} graph / floor, {what}", us / bound, "", bar=bar, met=met)


def alone_in_a_graph(context: Context, products: Any) -> float:
    """Seconds of a step's products, one after another in a graph."""
    import torch
    from gpu_courses import in_a_graph

    device = torch.device(context.settings.device)
    with torch.no_grad():
        replay = in_a_graph(products.again) if device.type == "cuda" else products.again
    many = 3 if context.settings.tiny else 50

    def several() -> None:
        for _ in range(many):
            replay()

    with torch.no_grad():
        return median(times(several, device, 5)) / many


def in_stack(context: Context, work: str, size: int) -> None:
    """Runs per minute of a stack of so many."""
    from gpu_courses import Plan, stacked

    alone = remembered(context, f"{work} naive", partial(course, context, work, "naive", "graph"))
    began = time.monotonic()
    engine = "graph" if context.settings.device == "cuda" else "eager"
    few = ("benchmark.num_tasks=2", f"engine={engine}")
    runs = members(context, work, "naive", size, *few)
    prepared = time.monotonic() - began
    if context.settings.tiny:
        plan = Plan(warm=4, windows=2, window=3, watched=2)
    else:
        plan = Plan(warm=8, windows=3, window=20, watched=40)
    found = stacked(runs, plan)
    us, single = median(found.micros), median(alone.micros)
    message = f"{us:.1f} us per step, {prepared:.1f} s to prepare, first step {found.first:.1f} s"
    name, rate = f"{work} stack of {size}", size * 60e6 / (RUN[work] * us)
    context.emit(f"{name}, training alone", rate, "runs per minute", message=message)
    judged = size == STACKS[-1] and work == "W1"
    bar = f"at most {SEEDS:g}" if judged else ""
    met = us / single <= SEEDS if judged else None
    context.emit(f"{name}, step / step of one run", us / single, "", bar=bar, met=met)
    waits(context, name, found)


def compiled_steps(context: Context, work: str, strategy: str) -> None:
    """A step by torch.compile."""
    step(context, f"{work} {strategy} compile", course(context, work, strategy, "compile"))


# The command itself.


def one_step(context: Context) -> None:
    """The seconds of a process that takes one step on each of two tasks of digits."""
    few = ("strategy=naive", "benchmark=permuted_digits", "benchmark.num_tasks=2")
    seconds = commanded(context, *few, "training.iterations=1")
    context.emit("command of two steps", seconds, "s")


def whole_runs(context: Context, size: int) -> None:
    """The seconds of the command for one run of W1 and for many, evaluation and files included."""
    seconds = []
    own = ["strategy=naive", *stream(context, "mnist"), *WORKS["W1"].overrides.split()]
    for number in (1, size):
        seeds = f"seeds=[{','.join(map(str, range(number)))}]"
        seconds.append(commanded(context, *own, "benchmark.num_tasks=10", seeds))
        context.emit(f"whole W1, {number} seeds", seconds[-1], "s")
    ratio = seconds[1] / seconds[0]
    bar = f"at most {SEEDS:g}"
    context.emit(f"whole W1, {size} seeds / 1", ratio, "", bar=bar, met=ratio <= SEEDS)


def commanded(context: Context, *overrides: str) -> float:
    """The seconds of `python -m cl_runner`. Raises RuntimeError if it fails."""
    settings = context.settings
    with tempfile.TemporaryDirectory() as folder:
        where = (f"hydra.run.dir={folder}/run", f"device={settings.device}", "verbose=false")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "cl_runner", *overrides, *where],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-250:]}")
    return seconds
