"""Execute the shapes in zoo's annotations: jaxtyping and beartype check every call of a function that states one.

jaxtyping's own import hook wraps constructors too, and Lightning's ``save_hyperparameters`` looks through the frames of
these for arguments; here a constructor stays as it is.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped

# As for a type checker, an int may stand where a float is expected.
TYPECHECKER = beartype(conf=BeartypeConf(is_pep484_tower=True))


def has_shapes(function: Any) -> bool:
    """Whether a plain function annotates an argument or its result with the shape of a tensor."""
    if not isinstance(function, FunctionType) or function.__name__ == "__init__":
        return False
    return any("[Tensor," in str(hint) for hint in function.__annotations__.values())


def checked(member: Any) -> Any:
    """Wrap a function, static method or class method that states shapes; return None for anything else."""
    if isinstance(member, (staticmethod, classmethod)):
        inner = checked(member.__func__)
        return None if inner is None else type(member)(inner)
    return with_checks(member) if has_shapes(member) else None


def with_checks(function: Any) -> Any:
    """Wrap a function; where it refuses the given shapes by an error of its own, that error is the one raised."""
    strict = torch.compiler.disable(jaxtyped(typechecker=TYPECHECKER)(function))  # torch 2.9 cannot trace the checks

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            return strict(*args, **kwargs)
        except TypeCheckError as mismatch:
            try:
                function(*args, **kwargs)
            except ValueError:
                raise
            except Exception:  # called a second time with arguments that the first call has changed
                raise mismatch from None
            raise

    return call


def check_module(module: ModuleType) -> None:
    """Wrap the functions and methods that a module defines, right after it was executed."""
    owners: list[Any] = [module]
    for member in vars(module).values():
        if inspect.isclass(member) and member.__module__ == module.__name__:
            owners.append(member)
    for owner in owners:
        for name, member in list(vars(owner).items()):
            if getattr(member, "__module__", None) != module.__name__:
                continue
            if (replacement := checked(member)) is not None:
                setattr(owner, name, replacement)


class CheckedLoader(importlib.machinery.SourceFileLoader):
    """Load a module of zoo from source, then wrap its functions."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_module(module)


class ShapeCheckFinder(importlib.abc.MetaPathFinder):
    """Find modules of zoo and give them the loader that wraps."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname.partition(".")[0] != "zoo":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        spec.loader = CheckedLoader(fullname, spec.loader.path)
        return spec


def install_import_hook() -> None:
    """Check all shapes of zoo in this process; call it before zoo is imported."""
    imported = [name for name in sys.modules if name == "zoo" or name.startswith("zoo.")]
    assert not imported, f"imported before their shapes could be checked: {imported}"
    sys.meta_path.insert(0, ShapeCheckFinder())
