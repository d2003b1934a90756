"""A strategy's fields and checks, read from its source: mistakes are told before torch is there.

What says whether its settings are right needs no torch: the fields of the class, their defaults,
and `__post_init__` (see `without_torch`). The real class checks everything again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from omegaconf import DictConfig

from cl_runner.config.benchmarks import Sequence, Split
from cl_runner.config.parse import parse, validate
from cl_runner.config.plugins import BENCHMARK, MODEL
from cl_runner.config.schema import (
    ADAPTERS,
    OPTIMIZERS,
    SSL,
    Budget,
    Checkpoint,
    Config,
    Data,
    Detector,
    Energy,
    Eval,
    Guard,
    Training,
)
from cl_runner.config.without_torch import names, source
from cl_runner.errors import UserError, check, one_of


def check_strategy(node: Mapping[str, Any], scenario: str) -> None:
    """Raise UserError for what the strategy's class, or its scenarios, refuse without torch.

    A strategy that is none of cl_runner's is left to `strategies.build`.
    """
    cls = outline(str(node.get("name")))
    if cls is None:
        return
    try:
        parse(cls, node, "strategy")
    except UserError:
        raise
    except Exception:  # noqa: BLE001 - a check that needs torch: the real class makes it
        return
    check_scenario(str(node["name"]), cls.scenarios, scenario)


def check_data(config: Config) -> None:
    """Raise UserError for data that are not there, and for more tasks than a data set has classes.

    Of your own data only the path is looked at: reading them is `data.datasets.load`'s.
    """
    known, benchmark = names("cl_runner.data.datasets"), config.benchmark
    dataset, path = benchmark.dataset, config.data.path
    classes_of = known["CLASSES"] | known["EMBEDDED"]
    several = benchmark.datasets if isinstance(benchmark, Sequence) else []
    for one in several:
        one_of("benchmark.datasets", one, tuple(known["CLASSES"]))
    if several or dataset in classes_of:
        message = (
            "data.path goes with your own data, such as benchmark=split_npz; "
            f"{benchmark.name} needs none"
        )
        check(path is None, message)
    if dataset in classes_of:
        tasks, classes = benchmark.num_tasks, len(classes_of[dataset])
        enough = not isinstance(benchmark, Split) or tasks <= classes
        check(
            enough, f"benchmark.num_tasks={tasks} is more than the {classes} classes of {dataset}"
        )
    elif dataset in known["OWN"]:
        wanted = f"data.path must be {known['OWN'][dataset]}"
        check(path is not None, f"{wanted}: set it for benchmark={benchmark.name}")
        file = Path(path or "").expanduser()
        check(file.exists(), f"{wanted}; {file} does not exist")
        readable = dataset != "npz" or file.suffix == ".npz" or not file.is_file()
        check(readable or is_zipfile(file), f"{wanted}; {file} is another kind of file")


def check_scenario(name: str, scenarios: tuple[str, ...], scenario: str) -> None:
    """Raise UserError for a scenario in which a strategy is not defined."""
    supported = ", ".join(scenarios)
    message = f"strategy={name} does not support scenario={scenario}; it supports {supported}"
    check(scenario in scenarios, message)


def outline(name: str) -> Any:
    """The strategy's class without its methods; None if cl_runner has no such strategy."""
    if not name.isidentifier() or not source(f"cl_runner.strategies.{name}").is_file():
        return None
    module = names(f"cl_runner.strategies.{name}")
    base = names("cl_runner.strategies.base")["Strategy"]
    own = (c for c in module.values() if isinstance(c, type) and c.__module__ == module["__name__"])
    return next((c for c in own if issubclass(c, base) and c is not base), None)


def schemas(section: str) -> tuple[Any, ...]:
    """The classes that a section of the configuration may be of; "" is the top level.

    Of strategies there are none here: see `outline`.
    """
    return {
        "": (Config,),
        "benchmark": tuple(own for own, _ in BENCHMARK.ours().values()),
        "model": tuple(own for own, _ in MODEL.ours().values()),
        "adapter": tuple(ADAPTERS.values()),
        "optimizer": tuple(OPTIMIZERS.values()),
        "data": (Data,),
        "training": (Training,),
        "ssl": (SSL,),
        "detector": (Detector,),
        "budget": (Budget,),
        "guard": (Guard,),
        "eval": (Eval,),
        "energy": (Energy,),
        "checkpoint": (Checkpoint,),
    }.get(section, ())


def checked(cfg: DictConfig) -> Config:
    """The configuration of a run, checked as far as that goes without torch. Raises UserError."""
    config = validate(cfg)
    check_strategy(config.strategy, config.scenario)
    check_data(config)
    return config
