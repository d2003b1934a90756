"""Packages of the user's own: the strategies, benchmarks and models in them, and their YAML.

A file of such a package brings one thing, which has the name of the file:

- a strategy: one subclass of `Strategy`;
- a benchmark (`benchmark.kind`): one subclass of `Benchmark`, and a function `stream(config, data,
  scenario)` that returns a `Stream`;
- a model (`model.name`): one subclass of `Model`, and a function `build(config, input_shape,
  num_classes)` that returns an `nn.Module`.

A file with none of them is the user's own affair. `plugins` names packages, or single modules. Only
what it names is imported, and not before something is asked for that is none of ours. The YAML in
the package's folder conf/ is found without importing it. No torch in here.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from cl_runner.config.schema import Benchmark, Model
from cl_runner.config.without_torch import names
from cl_runner.errors import UserError, check, one_of

HINT = "is it in a package of yours? plugins=[...]"
Entry = tuple[type[Any], Callable[..., Any]]  # a dataclass, and the function that builds from it


class Kind(NamedTuple):
    """A kind of thing that a file of the user's may bring."""

    name: str  # as it is called in messages
    key: str  # of the configuration, which says the name of the file
    base: type
    function: str  # beside the class; "" if it needs none
    arguments: str  # of the function
    ours: Callable[[], Mapping[str, Any]]  # by names, which are taken


BENCHMARK = Kind(
    *("benchmark", "benchmark.kind", Benchmark, "stream", "config, data, scenario"),
    ours=lambda: known("cl_runner.data.benchmarks", "KINDS"),
)
MODEL = Kind(
    *("model", "model.name", Model, "build", "config, input_shape, num_classes"),
    ours=lambda: known("cl_runner.nn.networks", "MODELS"),
)


def known(module: str, table: str) -> Mapping[str, Entry]:
    """One of our tables, read without torch: the functions in it are not to be called."""
    found: Mapping[str, Entry] = names(module)[table]
    return found


def schema_of(kind: Kind, name: Any, packages: Sequence[str]) -> type[Any]:
    """The dataclass of a benchmark or model. Raises UserError as `theirs` does."""
    schema, _ = theirs(kind, name, packages) or kind.ours()[name]
    return schema


def theirs(kind: Kind, name: Any, packages: Sequence[str]) -> Entry | None:
    """What the packages have under a name; None if it is one of ours.

    Raises UserError for a name that nobody has, which says what there is; and for packages that
    cannot be used.
    """
    if isinstance(name, str) and name in kind.ours():
        return None
    found = brought(kind, packages)
    files = [m.__name__ for m in modules(packages) if last(m.__name__) == name]
    if files and name not in found:
        raise UserError(f"plugins: {files[0]} defines no {kind.name}: {wanted(kind)}")
    try:
        one_of(kind.key, name, (*kind.ours(), *found))
    except UserError as error:
        raise UserError(str(error) if packages else f"{error}; {HINT}") from None
    return found[name]


def wanted(kind: Kind) -> str:
    """What a file must have for the kind."""
    function = f", and a function {kind.function}({kind.arguments})" if kind.function else ""
    return f"it needs a subclass of {kind.base.__name__}{function}"


def brought(kind: Kind, packages: Sequence[str]) -> dict[str, Entry]:
    """All of a kind that packages bring, by their names. Imports all of their files.

    Raises UserError for a file with two, or without the function; and for a name that is taken.
    """
    found: dict[str, Entry] = {}
    for module in modules(packages):
        classes, name = defined(module, kind.base), last(module.__name__)
        if not classes:
            continue
        where = f"plugins: {module.__name__}"
        check(len(classes) == 1, f"{where} defines several {kinds(kind)}; a file holds one")
        taken = name in kind.ours()
        check(not taken, f"{where} has the name of a {kind.name} of cl_runner; rename the file")
        check(name not in found, f"plugins: two of the packages have a {kind.name} {name}")
        function = vars(module).get(kind.function, classes[0])
        complete = not kind.function or inspect.isfunction(function)
        check(complete, f"{where} is no whole {kind.name}: {wanted(kind)}")
        found[name] = classes[0], function
    return found


def check_files(all_kinds: Sequence[Kind], packages: Sequence[str]) -> None:
    """Raise UserError for a package that brings nothing, and for a file that brings two things."""
    for kind in all_kinds:
        brought(kind, packages)
    for package in packages:
        brings = False
        for module in modules([package]):
            here = [kind.name for kind in all_kinds if defined(module, kind.base)]
            both = f"plugins: {module.__name__} defines a {' and a '.join(here)}; a file holds one"
            check(len(here) < 2, both)
            brings |= bool(here)
        nothing = ", ".join(f"no {kind.name}" for kind in all_kinds)
        bases = ", ".join(kind.base.__name__ for kind in all_kinds)
        check(brings, f"plugins: {package} defines {nothing} (a subclass of {bases})")


def kinds(kind: Kind) -> str:
    """The plural."""
    return f"{kind.name[:-1]}ies" if kind.name.endswith("y") else f"{kind.name}s"


def last(module: str) -> str:
    """A module's name without that of its package."""
    return module.rpartition(".")[2]


def defined(module: ModuleType, base: type) -> list[type[Any]]:
    """The subclasses of `base` that a module defines, not those that it imports."""
    return [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and c.__module__ == module.__name__ and issubclass(c, base)
    ]


# Files.


def modules(packages: Iterable[str]) -> list[ModuleType]:
    """The packages, imported, and all the modules in them. Raises UserError."""
    found = []
    for package in dict.fromkeys(packages):
        module = imported(package)
        inner = pkgutil.iter_modules(getattr(module, "__path__", ()))
        found += [module, *(imported(f"{package}.{m.name}") for m in inner if m.name != "conf")]
    return found


def imported(name: str) -> ModuleType:
    """A module of the user's. Raises UserError where it is missing or fails."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{name}.".startswith(f"{absent}."):  # or what it lies in
            raise UserError(missing(name)) from None
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        spot = place(error, [name.partition(".")[0]])
        if spot is not None and not isinstance(error, SyntaxError):  # which says where it is
            reason = f"{spot.line}: {reason}"
        raise UserError(f"plugins: {name} cannot be imported ({reason})") from error


def missing(name: str) -> str:
    """What to say of a package that is not there."""
    hint = "install it, or put the folder that holds it on PYTHONPATH"
    return f"plugins: there is no package {name}; {hint}"


def folders(package: str) -> list[Path]:
    """The folders of a package, without importing it; of a single module its file.

    Raises UserError if there is none.
    """
    top, *inner = package.split(".")
    spec = find_spec(top) if all(part.isidentifier() for part in (top, *inner)) else None
    if spec is None:
        raise UserError(missing(package))
    if spec.submodule_search_locations is None:
        return [Path(spec.origin or "")]
    return [Path(folder).joinpath(*inner) for folder in spec.submodule_search_locations]


def yaml_folders(packages: Iterable[str]) -> list[Path]:
    """The folders conf/ of packages, of those that have one. Raises UserError."""
    candidates = (folder / "conf" for package in packages for folder in folders(package))
    return [folder.absolute() for folder in dict.fromkeys(candidates) if folder.is_dir()]


# Errors.

OURS = Path(__file__).parents[1]
FRAME = re.compile(r'^ *File "(.+)", line (\d+), in (.+)$', re.MULTILINE)


class Place(NamedTuple):
    """The last line of the user's that an error passed."""

    line: str  # "my_lib/halfway.py line 23, in end_task"
    raised: bool  # there, or in a library that was called; not in cl_runner, called from there


def place(error: BaseException, packages: Sequence[str]) -> Place | None:
    """Where in the user's packages an error was raised; None if no file of theirs was involved.

    The traceback of an error from a worker process is text, and so the text is what is read here.
    """
    roots = {path: path.parent for package in packages for path in folders(package)}
    found = None
    for file, number, function in FRAME.findall(remote(error) or local(error)):
        path = Path(file)
        root = next((r for r in roots if path == r or r in path.parents), None)
        if root is not None:
            within = "" if function == "<module>" else f", in {function}"
            line = f"{path.relative_to(roots[root]).as_posix()} line {number}{within}"
            found = Place(line, raised=True)
        elif found is not None and OURS in path.parents:
            found = found._replace(raised=False)
    return found


def local(error: BaseException) -> str:
    """The traceback of an error, as text."""
    return "".join(traceback.format_tb(error.__traceback__))


def remote(error: BaseException) -> str:
    """The traceback that an error had in the worker process that it comes from; else ""."""
    cause = error.__cause__
    return str(cause) if type(cause).__name__ == "_RemoteTraceback" else ""
