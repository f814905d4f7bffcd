"""The classes that a config or checkpoint may name without the user's own code: a table, and how it is read."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

# Packages of which only the classes below may be named.
FRAMEWORKS = ("zoo", "lightning", "torch", "torchvision", "torchmetrics")


class AllowedPackage(NamedTuple):
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

ALLOWED_PACKAGES = (
    AllowedPackage("zoo.models.**", (MODULE,)),
    AllowedPackage("zoo.tasks.**", (MODULE, "zoo.tasks.adapter.NetAdapter")),
    AllowedPackage("zoo.layers.**", (MODULE, "zoo.layers.InitRule")),
    AllowedPackage("zoo.losses.**", (MODULE,)),
    AllowedPackage("zoo.data.**", (DATA, MODULE)),
    AllowedPackage("zoo.optim.**", (*OPTIM, "zoo.optim.ParamGroupRule")),
    AllowedPackage("zoo.callbacks.**", (CALLBACK, "zoo.callbacks.Phase"), in_checkpoint=False),
    AllowedPackage("zoo.metrics.**", (MODULE,), in_checkpoint=False),
    AllowedPackage("torch.nn", (MODULE,)),
    AllowedPackage("torch.optim", OPTIM),
    AllowedPackage("torch.optim.lr_scheduler", OPTIM),
    AllowedPackage("torch.optim.swa_utils", OPTIM),
    AllowedPackage("torchvision.models.*", (MODULE,)),
    AllowedPackage("torchvision.ops", (MODULE,)),
    AllowedPackage("torchvision.transforms", (MODULE, *(f"torchvision.transforms.{name}" for name in TRANSFORMS))),
    AllowedPackage("torchvision.transforms.v2", (MODULE,)),
    AllowedPackage("torchmetrics", (METRIC, "torchmetrics.MetricCollection")),
    AllowedPackage("torchmetrics.aggregation", (METRIC,)),
    AllowedPackage("torchmetrics.classification", (METRIC,)),
    AllowedPackage("torchmetrics.clustering", (METRIC,)),
    AllowedPackage("torchmetrics.nominal", (METRIC,)),
    AllowedPackage("torchmetrics.regression", (METRIC,)),
    AllowedPackage("torchmetrics.retrieval", (METRIC,)),
    AllowedPackage("torchmetrics.segmentation", (METRIC,)),
    AllowedPackage("torchmetrics.wrappers", (METRIC,)),
    AllowedPackage("lightning", ("lightning.LightningModule", DATA, CALLBACK), in_checkpoint=False),
    AllowedPackage("lightning.pytorch.cli", ("lightning.pytorch.cli.ReduceLROnPlateau",)),
    AllowedPackage("lightning.pytorch.callbacks", (CALLBACK,), in_checkpoint=False),
    AllowedPackage("lightning.pytorch.callbacks.progress.rich_progress", (THEME,), in_checkpoint=False),
    AllowedPackage("lightning.pytorch.loggers", ("lightning.pytorch.loggers.Logger",), in_checkpoint=False),
    AllowedPackage("lightning.pytorch.strategies", ("lightning.pytorch.strategies.Strategy",), in_checkpoint=False),
    AllowedPackage("lightning.pytorch.profilers", ("lightning.pytorch.profilers.Profiler",), in_checkpoint=False),
    AllowedPackage("lightning.pytorch.plugins", PLUGIN_BASES, in_checkpoint=False),
    AllowedPackage("lightning.pytorch.plugins.precision", PLUGIN_BASES, in_checkpoint=False),
    AllowedPackage("lightning.pytorch.plugins.io", PLUGIN_BASES, in_checkpoint=False),
    AllowedPackage("lightning.pytorch.plugins.environments", PLUGIN_BASES, in_checkpoint=False),
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


def allowed_package_of(cls: type) -> AllowedPackage | None:
    """Return the entry that allows a class of a framework, or None."""
    name = cls.__name__
    if name.startswith("_") or f"{cls.__module__}.{cls.__qualname__}" in REFUSED:
        return None
    for entry in ALLOWED_PACKAGES:
        if _is_in(cls, entry) and issubclass(cls, bases_of(entry)):
            return entry
    return None


def _is_in(cls: type, entry: AllowedPackage) -> bool:
    package = entry.package.rstrip(".*")
    if package not in sys.modules:
        return False
    home = cls.__module__
    if entry.package.endswith(".**"):
        return f"{home}.".startswith(f"{package}.")
    if entry.package.endswith(".*"):
        return home.rpartition(".")[0] == package and "._" not in home
    return vars(sys.modules[package]).get(cls.__name__) is cls


@cache
def bases_of(entry: AllowedPackage) -> tuple[type, ...]:
    """Return the base classes of an entry."""
    found = []
    for path in entry.bases:
        module, _, name = path.rpartition(".")
        found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


def accepted_class_paths() -> Iterator[tuple[str, type, AllowedPackage]]:
    """Yield all classes that are allowed: the class path, the class, and its entry."""
    for entry in ALLOWED_PACKAGES:
        package = importlib.import_module(entry.package.rstrip(".*"))
        modules = [package]
        if entry.package.endswith(".**"):
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                modules.append(importlib.import_module(module.name))
        elif entry.package.endswith(".*"):
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                modules.append(importlib.import_module(module.name))
        for module in modules:
            for name, value in sorted(vars(module).items()):
                if not inspect.isclass(value) or not _is_in(value, entry):
                    continue
                with_base = issubclass(value, bases_of(entry))
                if with_base and allowed_package_of(value) is not None:
                    yield f"{module.__name__}.{name}", value, entry


@cache
def _listed_functions() -> tuple[Any, ...]:
    from torch.nn import functional

    return tuple(getattr(functional, name) for name in FUNCTIONS)


def is_listed_function(found: Any) -> bool:
    """Return whether an object is one of the functions that may be named."""
    return any(found is function for function in _listed_functions())
