"""Each module imports only from the layers above its own; what must start fast imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cl_runner"
LAYERS = (  # from the top down; a module of a sub-package counts as that sub-package
    ("errors", "signals"),
    ("console", "locks", "reading", "free_memory"),
    ("config",),
    ("outline",),
    ("core", "kernels"),
    ("functional",),
    ("data",),
    ("nn",),
    ("costs",),
    ("env",),
    ("steps",),
    ("fit",),
    ("strategies",),
    ("engine",),
    ("blocks",),
    ("ensemble",),
    ("memory",),
    ("results",),
    ("status", "sharing"),
    ("compare",),
    ("frame",),
    ("checkpoint",),
    ("progress",),
    ("runner",),
    ("group",),
    ("catalogue", "typed", "naming", "sweep", "cli", "__main__"),
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
LIGHT = (
    *("__init__", "__main__", "errors", "signals", "console", "locks", "reading", "config"),
    *("naming", "status", "sharing"),
    *("sweep", "cli", "outline", "catalogue", "typed"),
    *("compare.cli", "compare.terminal"),
)
# Needed by some runs only, and slow to import or not there: inside the function that uses them.
ON_DEMAND = {
    "torchvision",
    "pandas",
    "scipy",
    "matplotlib",
    "sklearn",
    "PIL",
    "rich",
    "filelock",
    "psutil",
    "safetensors",
}
HEAVY = ON_DEMAND | {"torch", "numpy"}  # not for `cl-run --help` and mistakes
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(module: str, *, at_import: bool = False) -> set[str]:
    """The full names of what a module imports, for types only excepted.

    at_import: without the imports inside functions.
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
        children = node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)
        for child in children:
            visit(child)

    visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return found


def own_modules(names: set[str]) -> set[str]:
    """The modules of cl_runner among imported names: of `cl_runner.a.b.thing`, a.b."""
    modules = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "cl_runner" and len(parts) > 1:
            for end in range(len(parts), 1, -1):
                inner = ".".join(parts[1:end])
                if inner in MODULES or f"{inner}.__init__" in MODULES:
                    modules.add(inner if inner in MODULES else f"{inner}.__init__")
                    break
    return modules


def test_every_module_has_its_layer() -> None:
    assert {module.partition(".")[0] for module in MODULES} - {"__init__"} == set(LEVEL)
    assert own_modules(imports("env")) >= {"config", "core", "nn.flat", "data.augment"}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__"}))
def test_a_module_imports_only_from_above(module: str) -> None:
    layer = module.partition(".")[0]
    for other in own_modules(imports(module)):
        above = other.partition(".")[0]
        assert LEVEL[above] <= LEVEL[layer], f"{module} imports {other}"
        # Within one level only parts of the same package, or the command line's modules.
        assert LEVEL[above] < LEVEL[layer] or above == layer or layer in LAYERS[-1]


def test_no_two_modules_import_each_other() -> None:
    graph = {module: own_modules(imports(module)) - {module} for module in MODULES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("module", LIGHT)
def test_what_answers_at_once_imports_nothing_heavy(module: str) -> None:
    names = imports(module, at_import=True)
    assert not {name.partition(".")[0] for name in names} & HEAVY
    assert own_modules(names) <= set(LIGHT)


@pytest.mark.parametrize("module", MODULES)
def test_what_few_runs_need_is_imported_on_demand(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(module, at_import=True)} & ON_DEMAND


@pytest.mark.slow
def test_a_system_without_the_calls_of_unix_imports_everything() -> None:
    """Windows has neither these signals nor `resource`, and no numbers of users."""
    lines = [
        "import os, signal, sys",
        "import filelock, hydra, pandas, psutil, torch",  # what is not ours may use them
        "for name in ('SIGUSR2', 'SIGUSR1', 'SIGHUP'): delattr(signal, name)",
        "sys.modules |= {'resource': None}",
        "del os.getuid",
        *(f"import cl_runner.{name}" for name in sorted(MODULES)),
        "from cl_runner.signals import stoppable",
        "with stoppable() as stop: assert stop.asked is None",
        "from cl_runner import free_memory, sharing",
        "assert free_memory.available(torch.device('cpu')) > 0",
        "assert free_memory.address_space() is None",
    ]
    program = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_line_is_loaded_without_torch() -> None:
    code = f"import sys, cl_runner.cli; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert run.stdout.split() == []
