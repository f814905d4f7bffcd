"""Which classes a config, an option, a checkpoint or the metadata of a weights file may name: one place decides.

A class path is text of whoever wrote the file, and jsonargparse calls whatever it names. So it must name a class, and
one that belongs here: a public class of the packages in ``ROOMS``, or one of the user's own code, which is a module in
the working directory, a package given by ``--allow-import``, or an installed plugin. The only functions are those in
``FUNCTIONS`` and, in a config, those of the user's own code. What counts is the object that a path leads to, not its
spelling: ``zoo.models.mlp.torch.load`` is still ``torch.load``.

That the class suits the argument, at any depth, is checked by jsonargparse, which knows the type of each.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zoo.errors import UserError
from zoo.trust.own_code import defines, is_users_module, modules_in

Origin = Literal["config", "checkpoint"]

# Packages of which only the rooms below may be named.
FRAMEWORKS = ("zoo", "lightning", "torch", "torchvision", "torchmetrics")
PLUGINS = "zoo.commands"  # the entry point group of packages that add commands: their classes may be named, too


# The table ------------------------------------------------------------------------------------------------------------


class Room(NamedTuple):
    """A package whose public classes may be named.

    Args:
        package: the package; ``.*`` adds the modules in it, ``.**`` those at any depth.
        bases: class paths, of which each class must be a subclass of one.
        in_checkpoint: whether a checkpoint may name them, too. Of the trainer, callbacks and loggers zoo saves nothing.
    """

    package: str
    bases: tuple[str, ...]
    in_checkpoint: bool = True


MODULE = "torch.nn.Module"
OPTIM = ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler")
DATA = "lightning.LightningDataModule"
CALLBACK = "lightning.Callback"
METRIC = "torchmetrics.Metric"
PLUGIN_BASES = (
    "lightning.pytorch.plugins.Precision",
    "lightning.pytorch.plugins.CheckpointIO",
    "lightning.pytorch.plugins.LayerSync",
    "lightning.fabric.plugins.ClusterEnvironment",
)
THEME = "lightning.pytorch.callbacks.progress.rich_progress.RichProgressBarTheme"  # of RichProgressBar
# Transforms of torchvision's first version have no base class in common.
TRANSFORMS = ("Compose", "ToTensor", "PILToTensor", "ToPILImage", "Lambda", "RandomOrder", "RandomChoice")

ROOMS = (
    Room("zoo.models.**", (MODULE,)),
    Room("zoo.tasks.**", (MODULE, "zoo.tasks.adapter.NetAdapter")),
    Room("zoo.layers.**", (MODULE, "zoo.layers.InitRule")),
    Room("zoo.losses.**", (MODULE,)),
    Room("zoo.data.**", (DATA, MODULE)),
    Room("zoo.optim.**", (*OPTIM, "zoo.optim.ParamGroupRule")),
    Room("zoo.callbacks.**", (CALLBACK, "zoo.callbacks.Phase"), in_checkpoint=False),
    Room("zoo.metrics.**", (MODULE,), in_checkpoint=False),
    Room("torch.nn", (MODULE,)),
    Room("torch.optim", OPTIM),
    Room("torch.optim.lr_scheduler", OPTIM),
    Room("torch.optim.swa_utils", OPTIM),
    Room("torchvision.models.*", (MODULE,)),
    Room("torchvision.ops", (MODULE,)),
    Room("torchvision.transforms", (MODULE, *(f"torchvision.transforms.{name}" for name in TRANSFORMS))),
    Room("torchvision.transforms.v2", (MODULE,)),
    Room("torchmetrics", (METRIC, "torchmetrics.MetricCollection")),
    Room("torchmetrics.aggregation", (METRIC,)),
    Room("torchmetrics.classification", (METRIC,)),
    Room("torchmetrics.clustering", (METRIC,)),
    Room("torchmetrics.nominal", (METRIC,)),
    Room("torchmetrics.regression", (METRIC,)),
    Room("torchmetrics.retrieval", (METRIC,)),
    Room("torchmetrics.segmentation", (METRIC,)),
    Room("torchmetrics.wrappers", (METRIC,)),
    Room("lightning", ("lightning.LightningModule", DATA, CALLBACK), in_checkpoint=False),
    Room("lightning.pytorch.cli", ("lightning.pytorch.cli.ReduceLROnPlateau",)),
    Room("lightning.pytorch.callbacks", (CALLBACK,), in_checkpoint=False),
    Room("lightning.pytorch.callbacks.progress.rich_progress", (THEME,), in_checkpoint=False),
    Room("lightning.pytorch.loggers", ("lightning.pytorch.loggers.Logger",), in_checkpoint=False),
    Room("lightning.pytorch.strategies", ("lightning.pytorch.strategies.Strategy",), in_checkpoint=False),
    Room("lightning.pytorch.profilers", ("lightning.pytorch.profilers.Profiler",), in_checkpoint=False),
    Room("lightning.pytorch.plugins", PLUGIN_BASES, in_checkpoint=False),
    Room("lightning.pytorch.plugins.precision", PLUGIN_BASES, in_checkpoint=False),
    Room("lightning.pytorch.plugins.io", PLUGIN_BASES, in_checkpoint=False),
    Room("lightning.pytorch.plugins.environments", PLUGIN_BASES, in_checkpoint=False),
)

# Classes in those packages that are not accepted all the same: they build code, or read what pickle wrote.
REFUSED = {
    "torchvision.models.feature_extraction.DualGraphModule",
    "torch.nn.parallel.data_parallel.DataParallel",
    "lightning.pytorch.strategies.deepspeed.DeepSpeedStrategy",
    "lightning.pytorch.strategies.xla.XLAStrategy",
    "lightning.pytorch.strategies.single_xla.SingleDeviceXLAStrategy",
    "lightning.fabric.plugins.io.xla.XLACheckpointIO",
}

# Functions of torch.nn.functional, for arguments that take a callable: activations, and distances between vectors.
FUNCTIONS = (
    "celu",
    "cosine_similarity",
    "elu",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log_softmax",
    "logsigmoid",
    "mish",
    "pairwise_distance",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
)


# What is allowed in this process --------------------------------------------------------------------------------------


class RefusedClassPath(ImportError, ValueError):
    """A class path that may not be named. Both types, as jsonargparse reports either, depending on the argument."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"Importing '{path}' is not allowed: it {reason}")
        self.sentence = f"{path} {reason}"


@dataclass(frozen=True)
class Allowed:
    """What may be named besides the rooms.

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
    """Let the parsers of this process accept class paths of the rooms, the working directory and further packages.

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
        allowed: what may be named besides the rooms; None is what this process allows.

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
    """Return what may be named besides the rooms, here and now."""
    of_call = _of_call.get()
    if of_call is not None:
        return of_call[0]
    return _of_process or Allowed(tuple(_packages()))


def _in_framework(path: str, module: str, name: str) -> Any:
    # A room is imported, and nothing else: what is not there by then is in none.
    in_room = False
    for room in ROOMS:
        package = room.package.rstrip(".*")
        if f"{module}.".startswith(f"{package}."):
            importlib.import_module(package)
            in_room = True
    if in_room and module.partition(".")[0] == "zoo":
        importlib.import_module(module)
    parent = sys.modules.get(module)
    if parent is None:
        if in_room and module.rpartition(".")[0] in sys.modules:
            raise RefusedClassPath(path, f"is in no module: {module} is none")
        raise RefusedClassPath(path, _not_in_room(path))
    if not in_room and not isinstance(vars(parent).get(name), type):
        raise RefusedClassPath(path, _not_in_room(path))
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
        if _is_listed_function(found):
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
    room = room_of(found)
    if room is None or home in REFUSED:
        package = home.partition(".")[0]
        if package in FRAMEWORKS:
            raise RefusedClassPath(path, _not_in_room(path))
        raise RefusedClassPath(path, f"is {home}, {_outside(package)}")
    if origin == "checkpoint" and not room.in_checkpoint:
        raise RefusedClassPath(path, "is not what a checkpoint of zoo names: it holds models, data, losses and metrics")


def _is_of_own_code(found: Any, allowed: Allowed) -> bool:
    module = getattr(found, "__module__", None) or ""
    if module.partition(".")[0] in FRAMEWORKS:  # --allow-import may name a part of one, such as torchvision.datasets
        return allowed.is_named(module)
    return allowed.is_own(module)


def room_of(cls: type) -> Room | None:
    """Return the room that a class of a framework is in, or None."""
    name = cls.__name__
    if name.startswith("_") or f"{cls.__module__}.{cls.__qualname__}" in REFUSED:
        return None
    for room in ROOMS:
        if _is_in(cls, room) and issubclass(cls, bases_of(room)):
            return room
    return None


def _is_in(cls: type, room: Room) -> bool:
    package = room.package.rstrip(".*")
    if package not in sys.modules:
        return False
    home = cls.__module__
    if room.package.endswith(".**"):
        return f"{home}.".startswith(f"{package}.")
    if room.package.endswith(".*"):
        return home.rpartition(".")[0] == package and "._" not in home
    return vars(sys.modules[package]).get(cls.__name__) is cls


@cache
def bases_of(room: Room) -> tuple[type, ...]:
    """Return the base classes of a room."""
    found = []
    for path in room.bases:
        module, _, name = path.rpartition(".")
        found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


def accepted_class_paths() -> Iterator[tuple[str, type, Room]]:
    """Yield all classes of the rooms: the class path, the class, and its room."""
    for room in ROOMS:
        package = importlib.import_module(room.package.rstrip(".*"))
        modules = [package]
        if room.package.endswith(".**"):
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                modules.append(importlib.import_module(module.name))
        elif room.package.endswith(".*"):
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                modules.append(importlib.import_module(module.name))
        for module in modules:
            for name, value in sorted(vars(module).items()):
                if not inspect.isclass(value) or not _is_in(value, room):
                    continue
                with_base = issubclass(value, bases_of(room))
                if with_base and room_of(value) is not None:
                    yield f"{module.__name__}.{name}", value, room


@cache
def _listed_functions() -> tuple[Any, ...]:
    from torch.nn import functional

    return tuple(getattr(functional, name) for name in FUNCTIONS)


def _is_listed_function(found: Any) -> bool:
    return any(found is function for function in _listed_functions())


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


def _not_in_room(path: str) -> str:
    package = path.partition(".")[0]
    rooms = dict.fromkeys(room.package.rstrip(".*") for room in ROOMS if room.package.partition(".")[0] == package)
    names = [name for name in rooms if name != package and name.count(".") < 3]
    return f"may not be named: of {package} only public classes of {', '.join(names)} may"
