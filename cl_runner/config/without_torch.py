"""What a module of cl_runner defines that needs no torch, read from its source.

A module that imports torch takes a second or many to import. The parts of it that need none are run
here: constants, tables, and the fields and checks of classes; whatever needs a name that only torch
brings is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

FREE_OF_TORCH = (
    *("dataclasses", "typing", "cl_runner.errors"),
    *("cl_runner.config.benchmarks", "cl_runner.config.plugins", "cl_runner.config.schema"),
)


def source(module: str) -> Any:
    """The file of a module of cl_runner."""
    return files("cl_runner") / f"{module.partition('.')[2].replace('.', '/')}.py"


@cache
def names(module: str) -> dict[str, Any]:
    """What a module of cl_runner defines that needs no torch."""
    found: dict[str, Any] = {"__name__": module}
    for statement in statements(module):
        match statement:
            case ast.ImportFrom(module=str(other)) if not is_free(statement):
                theirs = names(other) if source(other).is_file() else {}
                wanted = {alias.asname or alias.name: alias.name for alias in statement.names}
                found |= {own: theirs[name] for own, name in wanted.items() if name in theirs}
            case _:
                code = compile(ast.Module([statement], []), module, "exec", dont_inherit=True)
                with suppress(NameError, AttributeError):  # it needs torch
                    exec(code, found)  # noqa: S102 - cl_runner's own source
    return found


def statements(module: str) -> Iterator[ast.stmt]:
    """A module's imports from cl_runner, constants, functions, classes without their methods.

    Types, which may be torch's, are left out where nothing reads them.
    """
    for node in ast.parse(source(module).read_text(encoding="utf-8")).body:
        match node:
            case ast.ImportFrom(module=str(other)) if other.startswith("cl_runner."):
                yield node
            case ast.ImportFrom() if is_free(node):
                yield node
            case ast.AnnAssign(value=ast.expr() as value):
                yield ast.copy_location(ast.Assign([node.target], value), node)
            case ast.Assign():
                yield node
            case ast.FunctionDef():
                yield without_annotations(node)
            case ast.ClassDef():
                methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
                left_out = [n for n in methods if n.name != "__post_init__"]
                node.body = [n for n in node.body if n not in left_out]
                yield node


def is_free(node: ast.ImportFrom) -> bool:
    """Whether what is imported from needs no torch, be it a module or one of its modules."""
    inner = {f"{node.module}.{alias.name}" for alias in node.names}
    return node.module in FREE_OF_TORCH or inner <= set(FREE_OF_TORCH)


def without_annotations(node: ast.FunctionDef) -> ast.FunctionDef:
    """A function without the types of its arguments."""
    arguments = node.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    node.returns = None
    return node
