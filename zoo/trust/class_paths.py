"""Which classes a config, an option, a checkpoint or the metadata of a weights file may name: one place decides.

A class path is text of whoever wrote the file, and jsonargparse calls whatever it names. So it must name a class, and
one that belongs here: a public class of the packages in :mod:`zoo.trust.allowed_classes`, or one of the user's own
code, which is a module in the working directory, a package given by ``--allow-import``, or an installed plugin. The
only functions are those in ``FUNCTIONS`` there and, in a config, those of the user's own code. What counts is the
object that a path leads to, not its spelling: ``zoo.models.mlp.torch.load`` is still ``torch.load``.

That the class suits the argument, at any depth, is checked by jsonargparse, which knows the type of each.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from zoo.errors import UserError
from zoo.trust.allowed_classes import ALLOWED_PACKAGES, FRAMEWORKS, REFUSED, allowed_package_of, is_listed_function
from zoo.trust.own_code import defines, is_users_module, modules_in

Origin = Literal["config", "checkpoint"]

PLUGINS = "zoo.commands"  # the entry point group of packages that add commands: their classes may be named, too


# What is allowed in this process --------------------------------------------------------------------------------------


class RefusedClassPath(ImportError, ValueError):
    """A class path that may not be named. Both types, as jsonargparse reports either, depending on the argument."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"Importing '{path}' is not allowed: it {reason}")
        self.sentence = f"{path} {reason}"


@dataclass(frozen=True)
class Allowed:
    """What may be named besides the classes in the table.

    Args:
        own: packages and modules of the user.
    """

    own: tuple[str, ...] = ()

    def is_named(self, module: str) -> bool:
        """Return whether a module is among the packages of the user, or in one."""
        return any(f"{module}.".startswith(f"{name}.") for name in self.own)

    def is_own(self, module: str) -> bool:
        """Return whether a module is the user's: named, imported already but not installed, or of a plugin."""
        if self.is_named(module) or is_users_module(module):
            return True
        return module.partition(".")[0] in plugin_packages()


# Of the command line, for the whole process; and of a call in Python, for its duration.
_of_process: Allowed | None = None
# The working directory, where the last call put it on the path.
_on_path: str | None = None
_of_call: ContextVar[tuple[Allowed, Origin] | None] = ContextVar("class_paths", default=None)


def allow_in_process(extra: Iterable[str] = ()) -> Allowed:
    """Let the parsers of this process accept class paths of the table, the working directory and further packages.

    Args:
        extra: further packages; those in the environment variable ``ZOO_ALLOW_IMPORT`` are added.
    """
    global _of_process, _on_path
    here = Path.cwd()
    if _on_path in sys.path and _on_path != str(here):
        sys.path.remove(_on_path)  # modules of a folder that was left would hide those here
    if str(here) not in sys.path:
        sys.path.append(str(here))  # last: a file here must not hide an installed package
        _on_path = str(here)
    _of_process = Allowed((*modules_in(here), *_packages(extra)))
    _install_gate()
    return _of_process


def _packages(extra: Iterable[str] = ()) -> list[str]:
    """Return packages that an option or the environment allows."""
    names = []
    for name in (*extra, *os.environ.get("ZOO_ALLOW_IMPORT", "").split(",")):
        if not name:
            continue
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--allow-import takes a package name such as my_package, got {name!r}")
        names.append(name)
    return names


@contextmanager
def checked(origin: Origin, *classes: type) -> Iterator[None]:
    """Check the class paths that are built in this block, in any process.

    Args:
        origin: where they come from.
        classes: their packages count as the user's own.
    """
    _install_gate()
    own = tuple(cls.__module__.partition(".")[0] for cls in classes)
    own = tuple(name for name in own if name not in FRAMEWORKS)
    own += current().own
    token = _of_call.set((Allowed(own), origin))
    try:
        yield
    finally:
        _of_call.reset(token)


def _install_gate() -> None:
    from zoo._lightning import set_import_gate

    set_import_gate(_gate)


def _gate(path: str) -> Any:
    """Return the object of a class path that jsonargparse is about to import; None leaves that to jsonargparse."""
    of_call = _of_call.get()
    if of_call is not None:
        return resolve(path, of_call[1], of_call[0])
    if _of_process is not None:
        return resolve(path, "config", _of_process)
    return None


# The decision ---------------------------------------------------------------------------------------------------------


def resolve(path: str, origin: Origin = "config", allowed: Allowed | None = None) -> Any:
    """Return the class, or one of the few functions, that a class path names.

    Args:
        path: such as ``torch.nn.Linear``.
        origin: where it comes from; a checkpoint may name less.
        allowed: what may be named besides the classes in the table; None is what this process allows.

    Raises:
        RefusedClassPath: it may not be named.
        ImportError: there is no such module.
        AttributeError: the module has no such name.
    """
    if allowed is None:
        allowed = current()
    module, _, name = path.rpartition(".")
    package = path.partition(".")[0]
    if package in FRAMEWORKS and not allowed.is_named(module):
        found = _in_framework(path, module, name)
    elif allowed.is_own(module):
        found = _in_own_code(path, module, name, origin)
    else:
        raise RefusedClassPath(path, f"is {_outside(package)}")
    _check(path, found, origin, allowed)
    return found


def refusal(path: str, origin: Origin = "checkpoint") -> str | None:
    """Return why a class path may not be named, or None; nothing of the user's own code is imported.

    Args:
        path: the class path.
        origin: where it comes from.
    """
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        return "is no class path"
    allowed = current()
    if module.partition(".")[0] not in FRAMEWORKS and allowed.is_own(module):
        return None if defines(module, name) else f"is not defined in {module}"
    try:
        resolve(path, origin, allowed)
    except RefusedClassPath as error:
        return error.sentence.removeprefix(f"{path} ")
    except (ImportError, AttributeError):
        return "does not exist"
    return None


def current() -> Allowed:
    """Return what may be named besides the classes in the table, here and now."""
    of_call = _of_call.get()
    if of_call is not None:
        return of_call[0]
    return _of_process or Allowed(tuple(_packages()))


def _in_framework(path: str, module: str, name: str) -> Any:
    # A package of the table is imported, and nothing else: what is not there by then is not in it.
    in_table = False
    for entry in ALLOWED_PACKAGES:
        package = entry.package.rstrip(".*")
        if f"{module}.".startswith(f"{package}."):
            importlib.import_module(package)
            in_table = True
    if in_table and module.partition(".")[0] == "zoo":
        importlib.import_module(module)
    parent = sys.modules.get(module)
    if parent is None:
        if in_table and module.rpartition(".")[0] in sys.modules:
            raise RefusedClassPath(path, f"is in no module: {module} is none")
        raise RefusedClassPath(path, _not_allowed(path))
    if not in_table and not isinstance(vars(parent).get(name), type):
        raise RefusedClassPath(path, _not_allowed(path))
    return getattr(parent, name)


def _in_own_code(path: str, module: str, name: str, origin: Origin) -> Any:
    known = defines(module, name)
    if known is None and origin == "checkpoint":
        raise RefusedClassPath(path, f"cannot be looked up without running it: {module} has no readable source")
    if known is False:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def _check(path: str, found: Any, origin: Origin, allowed: Allowed) -> None:
    """Raise an error unless an object is a class, or function, that may be named."""
    if not isinstance(found, type):
        if is_listed_function(found):
            return
        if origin == "config" and inspect.isfunction(found) and _is_of_own_code(found, allowed):
            return
        kind = "function" if callable(found) else type(found).__name__
        raise RefusedClassPath(path, f"is a {kind}, and only classes are built")
    home = f"{found.__module__}.{found.__qualname__}"
    if "." in found.__qualname__:
        raise RefusedClassPath(path, "is no class of a module")
    if _is_of_own_code(found, allowed):
        return
    entry = allowed_package_of(found)
    if entry is None or home in REFUSED:
        package = home.partition(".")[0]
        if package in FRAMEWORKS:
            raise RefusedClassPath(path, _not_allowed(path))
        raise RefusedClassPath(path, f"is {home}, {_outside(package)}")
    if origin == "checkpoint" and not entry.in_checkpoint:
        raise RefusedClassPath(path, "is not what a checkpoint of zoo names: it holds models, data, losses and metrics")


def _is_of_own_code(found: Any, allowed: Allowed) -> bool:
    module = getattr(found, "__module__", None) or ""
    if module.partition(".")[0] in FRAMEWORKS:  # --allow-import may name a part of one, such as torchvision.datasets
        return allowed.is_named(module)
    return allowed.is_own(module)


@cache
def plugin_packages() -> frozenset[str]:
    """Return the packages that add commands to zoo."""
    return frozenset(entry.value.partition(":")[0].partition(".")[0] for entry in entry_points(group=PLUGINS))


# Reasons --------------------------------------------------------------------------------------------------------------


def _outside(package: str) -> str:
    frameworks = ", ".join(FRAMEWORKS)
    if _of_process is None:
        return f"outside {frameworks} and your imported modules; allow it with the variable ZOO_ALLOW_IMPORT={package}"
    return f"outside {frameworks} and this folder; allow it with --allow-import {package}"


def _not_allowed(path: str) -> str:
    package = path.partition(".")[0]
    names = []
    for entry in ALLOWED_PACKAGES:
        name = entry.package.rstrip(".*")
        if name.startswith(f"{package}.") and name.count(".") < 3 and name not in names:
            names.append(name)
    return f"may not be named: of {package} only public classes of {', '.join(names)} may"
