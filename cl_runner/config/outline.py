"""A strategy's fields and checks, read from its source: mistakes are told before torch is there.

A strategy's module imports torch, which takes a second or many. What says whether its settings are
right needs none of it: the fields of the class, their defaults, and `__post_init__`. These parts of
the module are run here; whatever needs a name that only torch brings is left out. The real class
checks everything again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from omegaconf import DictConfig

from cl_runner.config.parse import parse, validate
from cl_runner.config.schema import Config, Split
from cl_runner.errors import UserError, check

FREE_OF_TORCH = ("dataclasses", "typing", "cl_runner.errors", "cl_runner.config.schema")


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
    if dataset in known["CLASSES"]:
        message = (
            f"data.path goes with your own data, such as benchmark=split_npz; {benchmark.name} is "
            "read from data.root"
        )
        check(path is None, message)
        tasks, classes = benchmark.num_tasks, len(known["CLASSES"][dataset])
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


def source(module: str) -> Any:
    """The file of a module of cl_runner."""
    return files("cl_runner") / f"{module.partition('.')[2].replace('.', '/')}.py"


@cache
def names(module: str) -> dict[str, Any]:
    """What a module of cl_runner defines that needs no torch."""
    found: dict[str, Any] = {"__name__": module}
    for statement in statements(module):
        match statement:
            case ast.ImportFrom(module=str(other)) if other not in FREE_OF_TORCH:
                theirs = names(other) if source(other).is_file() else {}
                wanted = {alias.asname or alias.name: alias.name for alias in statement.names}
                found |= {own: theirs[name] for own, name in wanted.items() if name in theirs}
            case _:
                code = compile(ast.Module([statement], []), module, "exec", dont_inherit=True)
                with suppress(NameError, AttributeError):  # it needs torch
                    exec(code, found)  # noqa: S102 - cl_runner's own source
    return found


def statements(module: str) -> Iterator[ast.stmt]:
    """A module's imports from cl_runner, constants, functions, classes without their methods."""
    for node in ast.parse(source(module).read_text(encoding="utf-8")).body:
        match node:
            case ast.ImportFrom(module=str(other)) if other in FREE_OF_TORCH:
                yield node
            case ast.ImportFrom(module=str(other)) if other.startswith("cl_runner."):
                yield node
            case ast.Assign() | ast.AnnAssign():
                yield node
            case ast.FunctionDef():
                yield without_annotations(node)
            case ast.ClassDef():
                methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
                left_out = [n for n in methods if n.name != "__post_init__"]
                node.body = [n for n in node.body if n not in left_out]
                yield node


def without_annotations(node: ast.FunctionDef) -> ast.FunctionDef:
    """A function whose types, which may be torch's, are left out."""
    arguments = node.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    node.returns = None
    return node


def checked(cfg: DictConfig) -> Config:
    """The configuration of a run, checked as far as that goes without torch. Raises UserError."""
    config = validate(cfg)
    check_strategy(config.strategy, config.scenario)
    check_data(config)
    return config
