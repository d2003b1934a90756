"""From YAML and the command line to checked dataclasses; every mistake is one line.

An unknown key, a wrong type or a value out of range is a UserError that names the key. No torch in
here, so that wrong input is answered at once; only a benchmark or model of the user's own packages
may import it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_runner.config.identity import of_run
from cl_runner.config.keys import RENAMED, renamed
from cl_runner.config.loggers import LOGGERS, Loggers
from cl_runner.config.plugins import BENCHMARK, MODEL, schema_of
from cl_runner.config.schema import (
    ADAPTERS,
    ALL_BUT_HEAD,
    OPTIMIZERS,
    SECTIONS,
    SSL,
    Budget,
    Checkpoint,
    Config,
    Data,
    Detector,
    Energy,
    Eval,
    Guard,
    Library,
    Top,
    Training,
)
from cl_runner.config.weights import pinned
from cl_runner.errors import UserError, check, one_of

FLOAT32_MAX = 3.4028234663852886e38  # tensors are of float32; this module is without torch
T = TypeVar("T")


def parse(schema: type[T], node: Mapping[str, Any], section: str) -> T:
    """The dataclass `schema` filled from one section of the configuration; "" is the top level.

    A field that ends in an underscore because Python reserves its name (`lambda_`) is written
    without it in the configuration. Raises UserError for an unknown key, a missing one, a wrong
    type, or a value that the schema's own checks refuse.
    """
    prefix = f"{section}." if section else ""
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    names = {name.rstrip("_"): name for name in fields}
    for key in node:
        check(
            str(key) in names,
            f"unknown key {prefix}{key}; known are {', '.join(sorted(names))}",
        )
    try:
        merged = deepcopy(blank(schema))  # type: ignore[arg-type]  # a class is hashable
    except OmegaConfBaseException as error:  # of a user's own class: ours are tested
        reason = str(error).splitlines()[0]
        message = f"the fields of {schema.__name__} cannot be read from YAML: {reason}"
        raise UserError(message) from None
    for key, value in node.items():
        field_ = fields[names[str(key)]]
        if isinstance(value, bool) and field_.type in ("str", str):
            value = str(value).lower()  # noqa: PLW2901 - YAML's true, where a word is meant
        try:  # one by one, to tell which key is wrong
            OmegaConf.update(merged, field_.name, value, merge=False)
        except (OmegaConfBaseException, OverflowError):
            raise UserError(not_of_type(f"{prefix}{key}", field_.type, value)) from None
        if not OmegaConf.is_missing(merged, field_.name):
            check_numbers(f"{prefix}{key}", merged[field_.name])
    missing = [key for key, name in names.items() if OmegaConf.is_missing(merged, name)]
    check(not missing, f"{prefix}{', '.join(missing)} must be set")
    result: T = OmegaConf.to_object(merged)  # type: ignore[assignment]
    return result


@cache
def blank(schema: type) -> DictConfig:
    """A form to be copied and filled: a dataclass's fields, which OmegaConf holds to a type."""
    form: DictConfig = OmegaConf.structured(schema)
    OmegaConf.set_readonly(form, False)  # the class is frozen
    return form


def check_numbers(key: str, value: Any) -> None:
    """Raise UserError for a number, or one in a list, that tensors of our types cannot hold."""
    for n in value if OmegaConf.is_list(value) else [value]:
        if isinstance(n, float):
            check(math.isfinite(n), f"{key} must be finite, got {value!r}")
            within = abs(n) <= FLOAT32_MAX
            check(
                within, f"{key} must lie within {FLOAT32_MAX:.1e} of 0, as float32, got {value!r}"
            )
        elif isinstance(n, int):
            check(abs(n) < 2**63, f"{key} must be less than 2^63, got {value!r}")


def not_of_type(key: str, wanted: Any, value: Any) -> str:
    """What to say about a value of another type than the key has."""
    name = str(getattr(wanted, "__name__", wanted)).replace(" | None", ", or null")
    if name.startswith("list["):
        kind, _, rest = name.removeprefix("list[").partition("]")
        one = 1 if value is None else value
        how = "" if isinstance(one, list | dict) else f", such as '{key}=[{one}]'"
        return f"{key} must be a list of {kind}{rest}{how}, got {value!r}"
    if isinstance(value, list):
        several = ",".join(map(str, value))
        how = f"; several are a sweep: -m {key}={several}" if several else ""
        return f"{key} must be {name}, got {value!r}{how}"
    return f"{key} must be {name}, got {value!r}"


def whole(model: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model`: what it freezes as a list, also where that is one word."""
    freeze = model.get("freeze")
    return {**model, **({"freeze": [freeze]} if freeze == ALL_BUT_HEAD else {})}


def validate(cfg: DictConfig) -> Config:
    """The typed configuration of a run. Raises UserError.

    Imports the packages that `plugins` names if the benchmark or the model is none of ours.
    """
    try:
        node: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from None
    # The configuration of a run without them has neither detector, adapter nor ssl.
    node = {"detector": {}, "ssl": {}, "adapter": {"name": "none"}} | node
    loggers = loggers_of(node.pop("logger", None))
    known = {f.name for f in dataclasses.fields(Config)} - {"resolved", "logger"}
    for key in node:
        check(key not in RENAMED, renamed(str(key)))
        check(key in known, f"unknown key {key}; known are {', '.join(sorted(known))}")
    for section in SECTIONS:
        check(isinstance(node.get(section), dict), f"{section} must be a group of keys")
    top = parse(Top, {k: v for k, v in node.items() if k not in SECTIONS}, "")
    benchmark = schema_of(BENCHMARK, node["benchmark"].get("kind"), top.plugins)
    model = schema_of(MODEL, node["model"].get("name"), top.plugins)
    node["model"] = whole(node["model"])
    own_model = parse(model, node["model"], "model")
    own_model.check_common()
    if isinstance(own_model, Library):
        from cl_runner.config import libraries  # it may import torch, and asks for OmegaConf's YAML

        node["benchmark"] = libraries.suited(node["benchmark"], own_model)
    if own_model.weights is not None:
        library = isinstance(own_model, Library)
        name = libraries.pin_of(own_model) if library else pinned(own_model.weights)
        node["model"]["weights"] = name
    one_of("adapter.name", node["adapter"].get("name"), tuple(ADAPTERS))
    one_of("optimizer.name", node["optimizer"].get("name"), tuple(OPTIMIZERS))
    return Config(
        **dataclasses.asdict(top),
        data=parse(Data, node["data"], "data"),
        benchmark=parse(benchmark, node["benchmark"], "benchmark"),
        model=own_model,
        adapter=parse(ADAPTERS[node["adapter"]["name"]], node["adapter"], "adapter"),
        optimizer=parse(OPTIMIZERS[node["optimizer"]["name"]], node["optimizer"], "optimizer"),
        training=parse(Training, node["training"], "training"),
        ssl=parse(SSL, node["ssl"], "ssl"),
        detector=parse(Detector, node["detector"], "detector"),
        budget=parse(Budget, node["budget"], "budget"),
        guard=parse(Guard, node["guard"], "guard"),
        eval=parse(Eval, node["eval"], "eval"),
        energy=parse(Energy, node["energy"], "energy"),
        checkpoint=parse(Checkpoint, node["checkpoint"], "checkpoint"),
        strategy=node["strategy"],
        logger=loggers,
        resolved=of_run(node),
    )


def loggers_of(node: Any) -> Loggers:
    """The loggers of a run, by name. Raises UserError, also where a library is not installed."""
    check(node is None or isinstance(node, dict), "logger must be a group of keys")
    for name, own in (node or {}).items():
        one_of("logger", str(name), tuple(LOGGERS))
        check(isinstance(own, dict), f"logger.{name} must be a group of keys")
    return {name: parse(LOGGERS[name], own, f"logger.{name}") for name, own in (node or {}).items()}
