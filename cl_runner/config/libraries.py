"""The models of torchvision and timm: which there are, and what images their weights want.

A library is imported where one of its models is asked for, not before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from cl_runner.config.schema import DEFAULT, OWN_WEIGHTS, Library
from cl_runner.config.weights import WEIGHTS, pinned
from cl_runner.errors import UserError, check

INPUTS = ("mean", "std", "resize")  # keys of a benchmark that say what a network is shown
PIN = "#"  # between DEFAULT and the name that a library has for these weights
SPLIT = {"googlenet", "inception_v3"}  # torchvision's with more outputs than one, while they train
_kept: list[Any] = []  # a library of operators lives as long as its object


class Wants(NamedTuple):
    """The images that go with the default weights of an architecture."""

    size: int  # height and width, in pixels
    fixed: bool  # whether the architecture takes no other size
    mean: list[float]  # per channel, of inputs in [0, 1]
    std: list[float]
    tag: str  # what the library calls the weights; "": it has none


# The libraries.


def torchvision() -> Any:
    """The package torchvision, also where it was built for another torch.

    Its compiled operators cannot load then, and its import fails for want of the schemas of two of
    them, which nothing here calls. Defined by hand they let the import succeed.
    """
    try:
        import torchvision as found
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        library: Any = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        import torchvision as found
    return found


def timm() -> Any:
    """The package timm, which imports torchvision. Raises UserError where it is not installed."""
    torchvision()
    try:
        import timm as found
    except ModuleNotFoundError:
        raise UserError("model=timm needs timm: pip install 'cl_runner[timm]'") from None
    return found


@cache
def architectures(library: str) -> tuple[str, ...]:
    """The names of a library's networks for images."""
    if library == "timm":
        return tuple(timm().list_models())
    models = torchvision().models
    return tuple(models.list_models(module=models))


def check_arch(library: str, arch: str) -> None:
    """Raise UserError for a name that the library has not, with those that are like it.

    timm's may be followed by a dot and the name of weights.
    """
    known = architectures(library)
    name = arch.partition(".")[0] if library == "timm" else arch
    near = get_close_matches(name.lower(), known, n=3)
    question = f": did you mean {' or '.join(near)}?" if near else f", of which it has {len(known)}"
    check(name in known, f"model.arch={arch} is no network of {library}{question}")


@cache
def wants(library: str, arch: str) -> Wants:
    """The images that go with an architecture. Raises UserError for one that is not there."""
    check_arch(library, arch)
    try:
        return timms(arch) if library == "timm" else torchvisions(arch)
    except (RuntimeError, ValueError, KeyError) as error:  # of timm, for weights it has not
        reason = " ".join(str(error).split())
        raise UserError(f"model.arch={arch}: {library} knows no such weights ({reason})") from None


def torchvisions(arch: str) -> Wants:
    """`wants` of torchvision, by the transforms of its weights: the size after the crop."""
    import torch

    models = torchvision().models
    weights = models.get_model_weights(arch).DEFAULT
    made = weights.transforms()
    options = {"init_weights": False} if arch in SPLIT else {}
    with torch.device("meta"):
        network = models.get_model(arch, weights=None, **options)
    fixed = isinstance(getattr(network, "image_size", None), int) or arch == "maxvit_t"
    return Wants(made.crop_size[0], fixed, [*made.mean], [*made.std], weights.name)


def timms(arch: str) -> Wants:
    """`wants` of timm, by the configuration of its weights."""
    library = timm()
    found = library.get_pretrained_cfg(arch, allow_unregistered=False)
    data = library.data.resolve_data_config({}, pretrained_cfg=found.to_dict())
    fixed, there = bool(found.fixed_input_size), bool(found.url or found.hf_hub_id)
    mean, std = ([*map(float, data[key])] for key in ("mean", "std"))
    return Wants(data["input_size"][-1], fixed, mean, std, found.tag or "default" if there else "")


@cache
def default_weights(library: str, arch: str) -> Mapping[str, Any]:
    """The tensors of an architecture's default weights, by name, from the library's own cache.

    It downloads them into it where they are not there. Raises UserError where that fails.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each new attempt
    try:
        found: Mapping[str, Any] = downloaded(library, arch)
    except Exception as error:  # noqa: BLE001 - of networks, of disks, of the library
        reason = " ".join(str(error).split())[:120]
        message = f"model.weights={DEFAULT}: {library} cannot get those of {arch} ({reason})"
        raise UserError(f"{message}; without a network, {OWN_WEIGHTS}") from None
    return found


def downloaded(library: str, arch: str) -> Mapping[str, Any]:
    """The same, raising what the library raises."""
    if library == "timm":
        network = timm().create_model(arch, pretrained=True)
        tensors: Mapping[str, Any] = network.state_dict()
        return tensors
    weights = torchvision().models.get_model_weights(arch).DEFAULT
    found: Mapping[str, Any] = weights.get_state_dict(progress=False, check_hash=True)
    return found


# What a run makes of it.


def pin_of(model: Library) -> str:
    """`model.weights` of such a model with what it is known by: see `config.weights.pinned`.

    DEFAULT is followed by what the library calls these weights. Raises UserError where it has none,
    or others than those that are named.
    """
    name, _, known = str(model.weights).partition(PIN)
    if name != DEFAULT:
        return pinned(str(model.weights))
    tag = wants(model.name, model.arch).tag
    where = f"model.weights={DEFAULT}: {model.name}"
    check(bool(tag), f"{where} has none for model.arch={model.arch}; {OWN_WEIGHTS}")
    check(known in ("", tag), f"{where}'s are now {tag}, not {known}")
    return f"{DEFAULT}{PIN}{tag}"


def suited(benchmark: Mapping[str, Any], model: Library) -> dict[str, Any]:
    """A benchmark's keys with those that a model of a library wants, where nobody has set others.

    Normalisation and size go with the weights: with those of a run they are that run's. Without
    weights only a size is wanted, and that where the architecture takes no other.
    """
    check_arch(model.name, model.arch)
    asked = wants(model.name, model.arch)
    if model.weights is None:
        wanted: dict[str, Any] = {"resize": asked.size} if asked.fixed else {}
    else:
        wanted = {"mean": asked.mean, "std": asked.std, "resize": asked.size}
        wanted = of_run(Path(model.weights.partition(PIN)[0]).expanduser()) or wanted
    usual = as_packaged(str(benchmark.get("name")))
    own = {key for key in INPUTS if benchmark.get(key) not in (None, usual.get(key))}
    own |= {"resize"} if benchmark.get("pad_to") is not None else set()
    return {**benchmark, **{key: v for key, v in wanted.items() if key not in own}}


def of_run(path: Path) -> dict[str, Any]:
    """What a run's network was shown, by its config.yaml; empty for a file of any other origin."""
    folder = path if path.is_dir() else path.parent
    config = folder / "config.yaml"
    if not config.is_file() or (path != folder and path.name != WEIGHTS):
        return {}
    try:
        node = OmegaConf.to_container(OmegaConf.load(config))
    except Exception as error:  # noqa: BLE001 - of YAML, of OmegaConf, of the disk
        raise UserError(f"model.weights: cannot read {config}: {type(error).__name__}") from None
    benchmark = node.get("benchmark") if isinstance(node, dict) else None
    return {key: benchmark[key] for key in INPUTS if key in benchmark} if benchmark else {}


@cache
def as_packaged(benchmark: str) -> Mapping[str, Any]:
    """A benchmark's YAML as the package has it; empty for one of the user's own."""
    file = files("cl_runner.conf") / "benchmark" / f"{benchmark}.yaml"
    if not benchmark.isidentifier() or not file.is_file():
        return {}
    found: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(file.read_text("utf-8")))  # type: ignore[assignment]
    return found
