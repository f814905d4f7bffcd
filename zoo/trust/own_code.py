"""The user's own modules: which they are, and what a module's source defines, found without importing it."""

from __future__ import annotations

import ast
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def modules_in(folder: Path) -> list[str]:
    """Return the names of modules and packages in a folder that Python would import from there."""
    names = [path.stem for path in folder.glob("*.py")]
    names += [path.parent.name for path in folder.glob("*/*.py")]
    found = []
    for name in dict.fromkeys(names):
        if name.isidentifier() and is_imported_from(name, folder):
            found.append(name)
    return found


def is_imported_from(name: str, folder: Path) -> bool:
    """Return whether Python would import a module from a folder."""
    if name in sys.stdlib_module_names:
        return False
    spec = PathFinder.find_spec(name, [path for path in sys.path if path])
    if spec is None:
        return False
    places = [spec.origin, *(spec.submodule_search_locations or [])]
    return any(Path(place).resolve().is_relative_to(folder.resolve()) for place in places if place)


def is_users_module(name: str) -> bool:
    """Return whether a module that is imported already was neither installed nor comes with Python."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or name.partition(".")[0] in sys.stdlib_module_names:
        return name == "__main__"
    if file is None:  # a notebook, or built into Python
        return name == "__main__"
    return not any(Path(file).resolve().is_relative_to(folder) for folder in _installed())


def defines(module: str, name: str) -> bool | None:
    """Return whether the source of a module binds a name, by a class or function, an import or an assignment.

    Importing a module runs it, a script of the same folder for instance. Reading its source does not.

    Args:
        module: name of the module, with its packages.
        name: the name.

    Returns:
        None where there is no source to read: no such module, a compiled one, or one with a syntax error.
    """
    loaded = sys.modules.get(module)
    if loaded is not None:
        return hasattr(loaded, name)
    spec = _find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return any(bound in (name, "*", "__getattr__") for bound in _bound_names(tree.body))


def _bound_names(statements: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements at module level bind, also within ``if`` and ``try``."""
    for statement in statements:
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
            yield statement.name
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                yield alias.asname or alias.name
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id
        for block in ("body", "orelse", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try, ast.With)):
                yield from _bound_names(getattr(statement, block, []))
        for handler in getattr(statement, "handlers", []):
            yield from _bound_names(handler.body)


def _find_spec(module: str) -> ModuleSpec | None:
    """Return where a module is, without importing the packages that it is in."""
    places: Sequence[str] = [path for path in sys.path if path]
    spec = None
    prefix = ""
    for part in module.split("."):
        prefix = f"{prefix}.{part}".lstrip(".")
        spec = PathFinder.find_spec(prefix, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    return spec


@cache
def _installed() -> list[Path]:
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return [Path(folder).resolve() for folder in folders if folder]
