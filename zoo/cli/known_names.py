"""Names that may be meant by a misspelt one: classes, their arguments, and the options of a parser."""

from __future__ import annotations

import inspect
from typing import Any

import lightning as L
import torch
from jsonargparse import ArgumentParser
from torch import nn

from zoo._torch import LOSS
from zoo.trust.class_paths import resolve


def class_names(key: str) -> set[str]:
    """Return short names of the classes that a key of a config takes.

    Args:
        key: the key; if it is unknown, the names of all classes are returned.
    """
    from torch.optim.lr_scheduler import LRScheduler

    import zoo.callbacks
    import zoo.data
    import zoo.data.augment
    import zoo.losses
    import zoo.models

    # The base class, and the package of zoo that exports such classes.
    bases: dict[str, tuple[type, Any]] = {
        "model": (L.LightningModule, zoo.models),
        "data": (L.LightningDataModule, zoo.data),
        "augment": (zoo.data.augment.Augmentation, zoo.data.augment),
        "callbacks": (L.Callback, zoo.callbacks),
        "optimizer": (torch.optim.Optimizer, None),
        "lr_scheduler": (LRScheduler, None),
        "loss": (LOSS, zoo.losses),
    }
    last_part = key.rpartition(".")[2]
    chosen = list(bases.values())
    if last_part in bases:
        chosen = [bases[last_part]]
    names = set()
    for base, package in chosen:
        # Losses of zoo need not have the base class of torch's.
        exported_base = nn.Module if base is LOSS else base
        for name in getattr(package, "__all__", ()):
            exported = getattr(package, name)
            if inspect.isclass(exported) and issubclass(exported, exported_base):
                names.add(name)
        names |= subclass_names(base)
    return names


def subclass_names(base: type) -> set[str]:
    """Return the names of all public subclasses of a class that are imported, at any depth."""
    names = set()
    for child in base.__subclasses__():
        if not child.__name__.startswith("_"):
            names.add(child.__name__)
        names |= subclass_names(child)
    return names


def argument_names(owner: str | type) -> list[str]:
    """Return the names of the arguments that a class takes on the command line, those of its base classes too.

    Args:
        owner: the class, or its class path.
    """
    try:
        cls = resolve(owner) if isinstance(owner, str) else owner
        return ArgumentParser(exit_on_error=False).add_class_arguments(cls, fail_untyped=False)
    except (ImportError, AttributeError, ValueError):
        return []


def sections_with(option: str) -> list[str]:
    """Return the options of that name in other sections, such as ``--data.batch_size``."""
    from zoo.data.base import DataModule
    from zoo.tasks import Task

    # What every model and every dataset has.
    sections = {"model": Task, "data": DataModule, "trainer": L.Trainer}
    found = []
    for section, owner in sections.items():
        if option in argument_names(owner):
            found.append(f"--{section}.{option}")
    return found


def option_names(parser: Any) -> set[str]:
    """Return all keys of a parser with their sections, and the arguments of all models and datasets."""
    import zoo.data
    import zoo.models

    names: set[str] = set()
    if parser is not None:
        names = set(parser.get_defaults(skip_validation=True).keys(branches=True))
        names.add("print_config")
    names |= {name.partition(".")[0] for name in names}
    for section, package in (("model", zoo.models), ("data", zoo.data)):
        for base in _base_classes(package):
            for argument in inspect.signature(base).parameters:
                names.add(f"{section}.{argument}")
    return names


def _base_classes(package: Any) -> set[type]:
    """Return the classes that a package exports and their bases, as far as they have a constructor of their own."""
    classes = set()
    for name in package.__all__:
        for base in inspect.getmro(getattr(package, name)):
            if "__init__" in vars(base) and base is not object:
                classes.add(base)
    return classes
