"""What frozen layers make of each sample, computed once: a run then trains what is above them.

So a further epoch costs what the layers above cost. The features are kept below data.root, in a
file whose name says of what they are: runs that differ in seed, strategy or optimizer share it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from cl_runner.config.schema import Config
from cl_runner.core import Stream, seed_for
from cl_runner.data.arrays import Damaged, check_free
from cl_runner.data.cache import locked
from cl_runner.data.datasets import CLASSES
from cl_runner.data.npz import members, save
from cl_runner.errors import check
from cl_runner.machine import energy
from cl_runner.nn.network import Network
from cl_runner.nn.networks import activations, build
from cl_runner.nn.on_features import fixed_stages, on_features
from cl_runner.strategies.base import Strategy
from cl_runner.training.env import Env
from cl_runner.training.extractor import Cost, Extractor, Features, OnThem, inputs_of
from cl_runner.training.flops import remembered

FOLDER = "features"  # below data.root
VERSION = 1  # of what a file holds and of how it is computed: another one makes all anew
KEYS = ("x_train", "x_test")  # of the rows that tasks have, [n, D] each
CHUNK_BYTES = 2**26  # of what all layers make of the images of a pass
LARGEST_CHUNK = 500  # images of a pass
AT_ONCE = 2**24  # bytes of images that are digested at once
MakeNet = Callable[[], nn.Module]
Tell = Callable[[str], None]
# Of the runs of this process, by what they are of, as long as one of them uses them.
_alive: WeakValueDictionary[str, Features] = WeakValueDictionary()


class Rows(NamedTuple):
    """The rows of a stream's data that any task has, sorted [n]."""

    train: Tensor
    test: Tensor


# Whether.


def obstacle(config: Config, strategy: Strategy) -> str:
    """Why a run cannot be on features, as far as its configuration tells; "": it can."""
    reasons = {
        "model.freeze names no part: set model.freeze=all_but_head": not config.model.freeze,
        f"training.augment={config.training.augment} shows a sample otherwise each time": (
            config.training.augment != "none"
        ),
        f"training.ssl={config.training.ssl} learns from the samples themselves": (
            config.training.ssl != "none"
        ),
        "eval.features=true looks at all layers": config.eval.features,
        f"strategy={strategy.name} needs the samples themselves, or all layers": (
            not strategy.takes_features()
        ),
    }
    return next((reason for reason, there in reasons.items() if there), "")


def in_stream(config: Config, stream: Stream) -> str:
    """Why samples of a stream have no features of their own; "": they have."""
    name = config.benchmark.name
    if stream.transform is not None:
        return f"each task of benchmark={name} changes the images in its own way"
    return "" if stream.pool is None else f"the tasks of benchmark={name} change the images"


def in_network(network: nn.Module, input_shape: tuple[int, int, int]) -> str:
    """Why a network has no features that stay; "": it has."""
    if not isinstance(network, Network) or type(network).forward is not Network.forward:
        return "the model does not show its layers: it is no cl_runner.nn.networks.Network"
    stages, _ = fixed_stages(network, input_shape)
    return "" if stages else "the first stage of the model is trained"


def may_be(config: Config, strategy: Strategy) -> bool:
    """Whether a run may be on features: the stream and the network have to say so, too."""
    return config.model.cache_features != "false" and not obstacle(config, strategy)


def resized_late(config: Config, strategy: Strategy) -> bool:
    """Whether images can be read as they are and brought to benchmark.resize by and by."""
    benchmark = config.benchmark
    whole = benchmark.resize is not None and benchmark.pad_to is None
    return whole and benchmark.dataset in CLASSES and may_be(config, strategy)


# The run.


def on_them(
    config: Config,
    strategy: Strategy,
    stream: Stream,
    size: int | None,
    make_net: MakeNet,
    tell: Tell,
) -> tuple[Stream, OnThem] | None:
    """The stream of features in the place of images, and what is trained on it.

    size: what images are still to be brought to. None where the run is on the images themselves;
    tell: why, where frozen layers would make one expect otherwise. Raises UserError where
    model.cache_features=true cannot be.
    """
    asked, (channels, height, width) = config.model.cache_features, stream.input_shape
    shape = (channels, size or height, size or width)
    reason = obstacle(config, strategy) or in_stream(config, stream)
    if asked == "false" or (reason and asked == "auto" and not config.model.freeze):
        return None
    network = build(make_net, seed_for(config.seed, "init"))
    reason = reason or in_network(network, shape)
    check(not reason or asked == "auto", f"model.cache_features=true: {reason}")
    if reason:
        tell(f"features are not computed once (model.cache_features=auto): {reason}")
        return None
    assert isinstance(network, Network)
    stages, of_one = fixed_stages(network, shape)
    extractor = Extractor(inputs_of(stream, size), network.to(stream.x.device), stages)
    features = found(config, stream, extractor, shape, tell)
    above = on_features(make_net, stages, tuple(of_one))
    one = torch.ones(1, 1, 1, device=stream.x.device)
    images = stream.x[:0] if stream.given is None else stream.given
    shown = replace(stream, x=features.x, x_test=features.x_test, given=images, cache={})
    shown = replace(shown, scale=one, shift=None)
    return shown, OnThem(features, extractor, above)


def begun(env: Env) -> str | None:
    """Count what the features have cost, unless a run has; the line on them, None without any."""
    if env.on_features is None:
        return None
    features = env.on_features.features
    cost, features.cost = features.cost, None
    D, n = features.x.shape[-1], features.numbers
    what = f"trains on features that are computed once, {D:,} numbers of each of {n:,} samples"
    where = "kept nowhere" if features.file is None else f"kept in {features.file}"
    if cost is None:
        return f"{what}; they are there already, {where}"
    meter = env.meter
    meter.flops += cost.flops
    meter.evaluation_flops += cost.evaluation_flops
    meter.train_seconds += cost.train_seconds
    meter.evaluation_seconds += cost.evaluation_seconds
    if cost.joules is None:
        meter.count_energy(None)
    elif meter.energy_joules is not None:
        meter.energy_joules += cost.joules
    seconds = cost.train_seconds + cost.evaluation_seconds
    flops = cost.flops + cost.evaluation_flops
    return f"{what}; that took {seconds:.1f} s and {flops:.1e} FLOPs, and is counted; {where}"


# The features.


def found(
    config: Config,
    stream: Stream,
    extractor: Extractor,
    shape: tuple[int, int, int],
    tell: Tell,
) -> Features:
    """The features of a stream: of a run that has them, of their file, or computed and kept."""
    rows = rows_of(stream)
    key = digest(config, stream, extractor, rows)
    if (features := _alive.get(key)) is None:
        features = _alive[key] = of_file(key, config, stream, extractor, rows, shape, tell)
    return features


def rows_of(stream: Stream) -> Rows:
    """Which rows the tasks have, those for validation among the training rows."""
    train = torch.cat([part for task in stream for part in (task.train, task.validation)])
    return Rows(train.unique(), torch.cat([task.test for task in stream]).unique())


def of_file(
    key: str,
    config: Config,
    stream: Stream,
    extractor: Extractor,
    rows: Rows,
    shape: tuple[int, int, int],
    tell: Tell,
) -> Features:
    """The features from their file; computed where there is none, or one that is damaged."""
    folder = Path(config.data.root).expanduser() / FOLDER
    file = folder / f"{key}.npz"
    there = read(file, rows, tell)
    if there is not None:
        return assembled(*there, stream, rows, file, None)
    with locked(folder, key) as lasts:
        if lasts:  # another process may have made them meanwhile
            there = read(file, rows, lambda _: None)
            if there is not None:
                return assembled(*there, stream, rows, file, None)
        tell(f"computes features of {sum(map(len, rows)):,} samples, once for all runs like this")
        train, test, cost = computed(config, stream, extractor, rows, shape)
        if lasts:
            save(file, {"x_train": train.numpy(), "x_test": test.numpy()})
    kept = file if lasts and file.exists() else None
    return assembled(train, test, stream, rows, kept, cost)


def read(file: Path, rows: Rows, tell: Tell) -> tuple[Tensor, Tensor] | None:
    """The features [n, D] that a file holds; None where there is none, or tells, a damaged one."""
    if not file.exists():
        return None
    try:
        held = members(file, KEYS)
        values = [held.get(key) for key in KEYS]
        for value, own in zip(values, rows, strict=True):
            right = value is not None and value.ndim == 2 and len(value) == len(own)
            if not right or value.dtype != "float32":  # type: ignore[union-attr]
                raise Damaged(f"{file} holds something else than it was written with")
    except (Damaged, OSError) as error:
        tell(f"{error}: the features are computed again")
        return None
    train, test = (torch.from_numpy(value) for value in values)
    return train, test


def assembled(
    train: Tensor,
    test: Tensor,
    stream: Stream,
    rows: Rows,
    file: Path | None,
    cost: Cost | None,
) -> Features:
    """Features [n, D] in the places of their rows, on the stream's device."""
    placed = []
    for values, own, images in ((train, rows.train, stream.x), (test, rows.test, stream.x_test)):
        values = values.to(images.device)[:, None, None]  # noqa: PLW2901 - [n, 1, 1, D]
        if len(own) < len(images):
            whole = torch.zeros(len(images), *values.shape[1:], device=images.device)
            whole[own] = values
            values = whole  # noqa: PLW2901
        placed.append(values.contiguous())
    return Features(placed[0], placed[1], len(train) + len(test), file, cost)


@torch.no_grad()
def computed(
    config: Config, stream: Stream, extractor: Extractor, rows: Rows, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Cost]:
    """The features [n, D] of training rows and test rows, on the host, and what they cost."""
    known: dict[int, int] = {}
    largest = 4 * sum(activations(extractor.network, shape))
    chunk = max(1, min(LARGEST_CHUNK, CHUNK_BYTES // largest))
    reader = energy.reader(stream.x.device, config.energy.watts)
    joules: list[float | None] = []
    parts, seconds, flops = [], [], []
    for own, images in ((rows.train, stream.x), (rows.test, stream.x_test)):
        started, spent = time.perf_counter(), 0
        made: list[Tensor] = []
        for index in own.split(chunk):
            values, cost = remembered(known, len(index), extractor, images[index])
            if not made:
                each = values[0].numel() * 4
                check_free(f"the features of {len(own)} samples", len(own) * each)
            made.append(values.flatten(1).cpu())
            spent += cost
        whole = torch.cat(made)
        finite = bool(whole.isfinite().all())
        check(finite, "the model's frozen layers make numbers of the samples that are not finite")
        seconds.append(time.perf_counter() - started)
        joules.append(None if reader is None else reader.spent(seconds[-1]))
        parts.append(whole)
        flops.append(spent)
    return parts[0], parts[1], Cost(seconds[0], seconds[1], flops[0], flops[1], joules[0])


# Of what they are.


def digest(config: Config, stream: Stream, extractor: Extractor, rows: Rows) -> str:
    """What features depend on, as the name of their file: layers, images, and how they are shown.

    That is the values and the code of the layers that stay, the images of the rows themselves, size
    and normalisation, and the precision of products.
    """
    own = blake2b(digest_size=16)
    inputs, network = extractor.inputs, extractor.network
    about = {k: v for k, v in vars(config.model).items() if k not in NOT_OF_THE_LAYERS}
    sizes = [*rows.train.shape, *rows.test.shape, *stream.x.shape[1:]]
    what = (VERSION, about, extractor.stages, inputs.size, sizes, config.precision, stream.x.dtype)
    own.update(repr(what).encode())
    for tensor in (inputs.scale, inputs.shift, *staying(network)):
        if tensor is not None:
            own.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for source in sorted(sources(network)):
        own.update(source.read_bytes())
    for index, images in zip(rows, (stream.x, stream.x_test), strict=True):
        step = max(1, AT_ONCE // max(1, images[0].nbytes))
        for part in index.split(step):
            own.update(images[part].cpu().contiguous().numpy().tobytes())
    return own.hexdigest()


NOT_OF_THE_LAYERS = {"weights", "weights_for", "freeze", "cache_features"}


def staying(network: nn.Module) -> Iterator[Tensor]:
    """The tensors that training does not change; BatchNorm's statistics above them, too."""
    yield from (p for p in network.parameters() if not p.requires_grad)
    yield from network.buffers()


def sources(network: nn.Module) -> set[Path]:
    """The files with the code of a network's layers, but for torch's own."""
    found = set()
    for layer in network.modules():
        for kind in type(layer).__mro__:
            if kind.__module__.partition(".")[0] not in ("torch", "builtins"):
                with suppress(TypeError, OSError):
                    found.add(Path(inspect.getfile(kind)))
    return {file for file in found if file.is_file()}
