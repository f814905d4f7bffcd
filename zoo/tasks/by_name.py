"""Optimizers, schedules and losses by the name of their class, in Python as in a config: ``optimizer="SGD"``."""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from zoo import losses, optim


def optimizer_class(value: Any) -> Any:
    """Return the class of an optimizer that is given by name; anything else as it is."""
    return _class(value, "optimizer", Optimizer, optim, torch.optim)


def schedule_class(value: Any) -> Any:
    """Return the class of a learning rate schedule that is given by name; anything else as it is."""
    return _class(value, "lr_scheduler", LRScheduler, optim, lr_scheduler)


def loss_module(value: Any) -> Any:
    """Return a loss that is given by name, with its default arguments; anything else as it is."""
    cls = _class(value, "loss", nn.Module, losses, nn)
    return cls() if isinstance(value, str) else cls


def _class(value: Any, argument: str, base: type, *packages: ModuleType) -> Any:
    if not isinstance(value, str):
        return value
    known = []
    for package in packages:
        found = getattr(package, value, None)
        if isinstance(found, type) and issubclass(found, base):
            return found
        known += [name for name, item in vars(package).items() if isinstance(item, type) and issubclass(item, base)]
    near = [name for name in known if name.lower() == value.lower()] or difflib.get_close_matches(value, known, 1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{argument}={value!r}: there is no such class in {' or '.join(p.__name__ for p in packages)}{hint}"
    )
