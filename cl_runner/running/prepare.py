"""What a run needs before it begins: device, data, stream, network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from cl_runner import strategies
from cl_runner.config.outline import check_scenario
from cl_runner.config.schema import Benchmark, Config, Library, LoRA, Training
from cl_runner.core import Stream
from cl_runner.data import sources
from cl_runner.data.benchmarks import build_stream
from cl_runner.data.boundaries import ordered
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import resize
from cl_runner.errors import UserError, check
from cl_runner.machine import cores_and_gpus, energy, ram
from cl_runner.machine.precision import choose, keep_freed_memory
from cl_runner.nn.adapters import adapted
from cl_runner.nn.frozen import frozen
from cl_runner.nn.networks import build
from cl_runner.running import features, needs, pretraining, weights
from cl_runner.running.boundaries import check_boundaries
from cl_runner.running.footprint import check_bytes
from cl_runner.running.messages import print_and_log, say_once
from cl_runner.running.representation import check_shown
from cl_runner.strategies.base import Strategy
from cl_runner.strategies.parts.pretext import Pretext, assisted
from cl_runner.training import engines
from cl_runner.training.env import Env
from cl_runner.training.extractor import OnThem
from cl_runner.training.watch import Watch

log = logging.getLogger(__name__)
DEFAULT_THREADS = torch.get_num_threads()  # torch's own choice, whatever an earlier job set


def read(config: Config) -> Arrays:
    """The data set of a run, on the CPU; its images are resized on the run's device, or later.

    Raises UserError.
    """
    path = None if config.data.path is None else Path(config.data.path)
    say, benchmark = partial(print_and_log, config), config.benchmark
    if features.resized_late(config, strategy_of(config)):
        benchmark = replace(benchmark, resize=None)
    return sources.read(benchmark, Path(config.data.root), path, say, choose_device(config.device))


def strategy_of(config: Config) -> Strategy:
    """The strategy of a run, with its pretext task where that goes along. Raises UserError."""
    strategy = strategies.build(config.strategy, config.plugins)
    if config.training.ssl == "none" or not config.ssl.weight:
        return strategy
    return assisted(strategy, Pretext(config.training.ssl, config.ssl))


def prepare(config: Config, strategy: Strategy, arrays: Arrays | None = None) -> Env:
    """Device, data, stream and network of a run. Raises UserError for whatever does not fit.

    arrays: the data set, where several runs share it.
    """
    check_scenario(strategy.name, strategy.scenarios, config.scenario)
    single = (
        f"eval.online=true: strategy={strategy.name} predicts no batch of the stream as a whole"
    )
    check(strategy.whole_batches or not config.eval.online, f"{single} before it learns from it")
    unused = strategy.without_model()
    adapter = isinstance(config.adapter, LoRA)
    for key, asked in (
        ("model.weights", config.model.weights),
        ("training.ssl", pretraining.comes_before(config)),
        ("adapter", adapter),
        ("model.freeze", config.model.freeze),
    ):
        message = f"{key} has no meaning with {unused}, by which the network has no part in the run"
        check(not (asked and unused), message)
    check_boundaries(config, strategy)
    check_passes(config, strategy)
    device = choose_device(config.device)
    if device.type == "mps":
        check_single(config, strategy)
    free = ram.available(device)
    torch.set_num_threads(config.threads or DEFAULT_THREADS)
    precision = choose(config.precision, device)
    keep_freed_memory()
    data = read(config) if arrays is None else arrays
    shown = shown_to(config, strategy, data, device)
    stream, training, make_net = shown.stream, shown.training, shown.make_net
    data_needs = needs.of_data(stream, data if arrays is None else None, config.eval)
    parts = dict(data_needs)

    def network(env: Env) -> nn.Module:
        needs.require(parts | needs.of_network(config, strategy, env, make_net, free), free)
        return strategy.wrap(make_net, env)

    env = Env(
        stream=stream,
        make_net=network,
        precision=precision,
        budget=config.budget,
        optimizer=config.optimizer,
        training=training,
        seed=config.seed,
        online=config.eval.online,
    )
    env.on_features = shown.on_features
    if config.eval.features:
        check_shown(env)
    pretraining.check_pretext(config, env)
    if training.boundaries == "detected":
        env.watch = Watch(config.detector, stream)
    parts |= needs.of_parameters(config, env.flat.module, device)
    parts |= needs.of_strategy(strategy, env)  # with its checks against the stream
    check_bytes(config, strategy, env)
    parts |= needs.of_activations(config, strategy, env)
    needs.require(parts, free)
    if pretraining.comes_before(config):
        needs.require(data_needs | pretraining.memory(config, env), free)
    if shown.weights is not None:
        line = weights.told(build(shown.new, config.seed), shown.weights, config.model.weights_for)
        print_and_log(config, line, say_once)
    env.meter.count_energy(energy.reader(device, config.energy.watts))
    env.engine, reason = engines.choose(config.engine, strategy.one_graph, env)
    log.info("engine: %s (%s)", env.engine, reason)
    return env


class Shown(NamedTuple):
    """What a run is trained on, and what makes the network that it trains."""

    stream: Stream
    training: Training
    make_net: weights.MakeNet  # the configured network with its weights, adapters, frozen parts
    new: weights.MakeNet  # without any of them
    weights: weights.Tensors | None  # it starts from
    on_features: OnThem | None


def shown_to(config: Config, strategy: Strategy, arrays: Arrays, device: torch.device) -> Shown:
    """Stream and network of a run, on images or on what frozen layers make of them, computed once.

    Images that were read as they are (see `read`) are brought to their size by and by for that, or
    all at once where it turns out that it cannot be. Raises UserError.
    """
    stream = build_stream(
        config.benchmark,
        config.scenario,
        arrays,
        device,
        augmented=config.training.augment != "none",
        plugins=config.plugins,
        coloured=isinstance(config.model, Library),
    )
    size, late = config.benchmark.resize, features.resized_late(config, strategy)
    size = size if late and (size, size) != arrays.x_train.shape[2:] else None
    stream, training = in_time(stream, config)
    new, trained = weights.configured(config, stream, size)
    only = config.model.weights_for
    make_net = new if trained is None else weights.starting_from(new, trained, only)
    make_net = frozen(adapted(make_net, config.adapter), config.model.freeze)
    tell = partial(print_and_log, config, aloud=say_once)
    if isinstance(config.model, Library):
        tell(what_it_is_shown(config.model, config.benchmark, stream, size))
    found = features.on_them(config, strategy, stream, size, make_net, tell)
    if found is not None:
        return Shown(found[0], training, found[1].make_net, new, trained, found[1])
    if size is None:
        return Shown(stream, training, make_net, new, trained, None)
    x, x_test = (resize(v, size, device) for v in (arrays.x_train, arrays.x_test))
    return shown_to(config, strategy, arrays._replace(x_train=x, x_test=x_test), device)


def what_it_is_shown(model: Library, benchmark: Benchmark, stream: Stream, size: int | None) -> str:
    """The line on the inputs of a library's network."""
    channels, height, width = stream.input_shape
    height, width = size or height, size or width
    grey = " (grey images, three times)" if stream.x.shape[1] < channels else ""
    scaled = "in [0, 1]"
    if benchmark.mean is not None:
        mean, std = (", ".join(map(str, v or ())) for v in (benchmark.mean, benchmark.std))
        scaled = f"normalised by benchmark.mean=[{mean}] and benchmark.std=[{std}]"
    if benchmark.resize is not None:
        scaled += f", resized by benchmark.resize={benchmark.resize}"
    shown = f"{channels}x{height}x{width}{grey}"
    return f"model={model.name}: {model.arch} sees {shown}, {scaled}"


def check_passes(config: Config, strategy: Strategy) -> None:
    """Raise UserError for several steps on each batch where they would not be just that."""
    training = config.training
    where = f"training.passes={training.passes} does not go with"
    check(
        training.passes == 1 or not strategy.shown_once,
        f"{where} strategy={strategy.name}, {strategy.shown_once}: use training.passes=1",
    )
    check(
        config.benchmark.boundaries == "sharp" or (training.iterations or 0) % training.passes == 0,
        f"{where} training.iterations={training.iterations} on a stream whose length it gives "
        f"(benchmark.boundaries={config.benchmark.boundaries}): use a multiple of it",
    )


def in_time(stream: Stream, config: Config) -> tuple[Stream, Training]:
    """The stream with its boundaries, and how it is trained on: one in an order of time, once."""
    training = config.training
    if config.benchmark.boundaries == "sharp":
        return stream, training
    lengths = [
        training.epochs * len(task.train)
        if training.iterations is None
        else training.iterations // training.passes * training.batch_size
        for task in stream
    ]
    once = replace(training, epochs=1, iterations=None)
    return ordered(stream, config.benchmark, lengths, config.seed), once


def choose_device(name: str) -> torch.device:
    """The device that `device=` names; `auto` is CUDA where there is a usable one, never MPS."""
    if name == "mps":
        there = torch.backends.mps.is_available()
        check(there, "device=mps: torch finds no Apple GPU; use device=cpu or device=auto")
        return torch.device("mps")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "device=cuda: torch finds no usable CUDA GPU; use device=cpu or device=auto"
        )
    device = torch.device("cuda" if available and name != "cpu" else "cpu")
    if device.type == "cuda":
        # The same command gives the same numbers: no algorithm that depends on timing.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return device


def check_single(config: Config, strategy: Strategy) -> None:
    """Raise UserError for what needs double precision, which a device like MPS has not."""
    needs_double = {
        f"strategy={strategy.name}": strategy.float64,
        "strategy.curvature=kron": config.strategy.get("curvature") == "kron",
        f"benchmark={config.benchmark.name}": config.benchmark.chosen,
        "eval.calibration=true": config.eval.calibration,
        "eval.features=true": config.eval.features,
    }
    for what, needed in needs_double.items():
        check(not needed, f"{what} computes in float64, which device=mps has not; use device=cpu")


def lacking(error: BaseException, device: str) -> str | None:
    """What to tell if an error means that torch has no such operation on MPS; None if not."""
    if device != "mps" or not isinstance(error, NotImplementedError):
        return None
    reason = " ".join(str(error).split()).partition(". ")[0]
    return (
        f"device=mps: torch lacks an operation there that this run needs ({reason}); use "
        "device=cpu, or set PYTORCH_ENABLE_MPS_FALLBACK=1"
    )


@contextmanager
def free_gpu(device: str) -> Iterator[None]:
    """Use the least busy GPU inside the block, if there are several."""
    number = torch.cuda.device_count() if device != "cpu" else 0
    if number < 2:
        yield
        return
    with cores_and_gpus.gpu(number, free=cores_and_gpus.free_memory()) as index:
        torch.cuda.set_device(index)
        log.info("GPU %d of %d", index, number)
        yield
