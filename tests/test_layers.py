"""The floor plan: which room may import which; no circles; what must start fast has no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cl_runner"
ALLOWED = {  # each room with those from which it may import; `package`: its __init__
    "version": "",
    "errors": "",
    "core": "",
    "config": "errors",
    "machine": "errors",
    "functional": "core",
    "data": "errors core config machine",
    "nn": "errors functional config",
    "training": "errors core functional config data nn",
    "strategies": "errors core functional config nn training",
    "results": "errors functional config machine",
    "comparing": "errors functional config machine results version",
    "running": "errors core functional config machine data nn training strategies results comparing"
    " version",
    "exporting": "errors core config machine functional nn training strategies results running",
    "sweeping": "errors config machine data training strategies results comparing running",
    "advising": "config results",
    "cli": "errors config machine results advising running exporting sweeping version"
    " hydra_plugins",
    "testing": "errors core config running strategies training cli",
    "hydra_plugins": "errors config results",
    "api": "errors config machine results comparing exporting cli",
    "package": "errors results version api",
    "__main__": "cli",
}
LIGHT = (
    *("", "__main__", "errors", "version", "hydra_plugins.cl_runner_launcher"),
    *(f"config.{n}" for n in ("identity", "keys", "outline", "parse", "plugins", "schema")),
    *(f"config.{n}" for n in ("benchmarks", "loggers", "versions", "weights", "without_torch")),
    *(
        f"machine.{n}"
        for n in ("console", "cores_and_gpus", "locks", "ram", "reading", "screen", "signals")
    ),
    "machine.systems",
    *(f"results.{n}" for n in ("files", "names", "naming", "status", "titles")),
    *("comparing.cli", "comparing.terminal"),
    *(f"advising.{n}" for n in ("advice", "facts", "features", "predict", "similar", "tables")),
    *("advising.words", "cli.advise"),
    *(f"sweeping.{n}" for n in ("callback", "count", "folders", "merge")),
    *(f"cli.{n}" for n in ("app", "catalogue", "choices", "export", "failures", "messages")),
    *("cli.overview", "exporting.description"),
    *(f"cli.{n}" for n in ("renamed", "resume", "search_path", "several", "typed")),
)
# Needed by some runs only, and slow to import or not there: inside the function that uses them.
ON_DEMAND = {
    "torchvision",
    "timm",
    "pandas",
    "scipy",
    "matplotlib",
    "sklearn",
    "PIL",
    "rich",
    "filelock",
    "psutil",
    "safetensors",
    "tensorboard",
    "mlflow",
    "wandb",
    "onnx",
    "onnxscript",
    "onnxruntime",
}
HEAVY = ON_DEMAND | {"torch", "numpy"}  # not for `cl-run --help` and mistakes


def name_of(path: Path) -> str:
    """A module's name without `cl_runner.`; a package's is that of its folder, "" the whole."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "cl_runner" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "hydra_plugins").rglob("*.py"))]
MODULES = {name_of(path): path for path in FILES}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(module: str, *, at_import: bool = False, types: bool = False) -> set[str]:
    """The full names of what a module imports.

    at_import: without the imports inside functions. types: with those for types only.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        left_out = is_type_checking(node) and not types
        for child in node.orelse if left_out else ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return found


def own_modules(names: set[str]) -> set[str]:
    """Our modules among imported names: of `cl_runner.a.b.thing`, a.b."""
    modules = set()
    for name in names:
        parts = name.split(".")
        if parts[0] in ("cl_runner", "hydra_plugins"):
            parts = parts[1:] if parts[0] == "cl_runner" else parts
            ends = (".".join(parts[:end]) for end in range(len(parts), -1, -1))
            modules.add(next(end for end in ends if end in MODULES or not end))
    return modules


def room(module: str) -> str:
    return module.partition(".")[0] or "package"


def rooms_of(module: str) -> set[str]:
    """The other rooms from which a module imports, be it for types only."""
    return {room(other) for other in own_modules(imports(module, types=True))} - {room(module)}


PLAN = {name: set(rooms.split()) for name, rooms in ALLOWED.items()}


def test_the_plan_shows_every_room_and_goes_down_only() -> None:
    assert {room(module) for module in MODULES} == set(PLAN)
    assert set(TopologicalSorter(PLAN).static_order()) == set(PLAN)  # raises CycleError


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_the_rooms_below(module: str) -> None:
    assert rooms_of(module) <= PLAN[room(module)]


def test_every_arrow_of_the_plan_is_there() -> None:
    arrows: dict[str, set[str]] = {name: set() for name in PLAN}
    for module in MODULES:
        arrows[room(module)] |= rooms_of(module)
    assert arrows == PLAN


def test_no_two_modules_import_each_other() -> None:
    graph = {module: own_modules(imports(module)) - {module} for module in MODULES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(MODULES)


def test_every_room_says_in_one_sentence_what_it_is() -> None:
    for name in PLAN.keys() - {"package", "__main__", "errors", "version", "core", "hydra_plugins"}:
        sentence = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
        assert sentence, name
        assert sentence.partition("\n\n")[0].count("\n") == 0, name


@pytest.mark.parametrize("module", LIGHT)
def test_what_answers_at_once_imports_nothing_heavy(module: str) -> None:
    names = imports(module, at_import=True)
    assert not {name.partition(".")[0] for name in names} & HEAVY
    rooms = {name for name in own_modules(names) if MODULES[name].name == "__init__.py"}
    assert own_modules(names) - rooms <= set(LIGHT)
    assert not any(imports(name, at_import=True) for name in rooms - {"", *LIGHT})


@pytest.mark.parametrize("module", MODULES)
def test_what_few_runs_need_is_imported_on_demand(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(module, at_import=True)} & ON_DEMAND


def test_the_command_line_is_loaded_without_torch() -> None:
    code = f"import sys, cl_runner.cli.app; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert run.stdout.split() == []
