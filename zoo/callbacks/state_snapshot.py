"""In-memory snapshot of mutable state: modules, optimizers, random generators, loaders."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

GENERATORS = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
)


class StateSnapshot:
    """Snapshot of mutable objects, restored in place: objects that share state keep sharing it."""

    def __init__(self) -> None:
        # The objects are kept alive, so that no id is used twice.
        self.seen: dict[int, Any] = {}
        self.undo: list[Callable[[], Any]] = []

    def add(self, value: Any, deep: bool = True) -> None:
        """Add an object to the snapshot; one that is in it already, or is immutable, is ignored.

        Args:
            value: the object.
            deep: whether to add the members of a container, too; otherwise only its random generators.
        """
        if id(value) in self.seen:
            return
        self.seen[id(value)] = value
        if isinstance(value, GENERATORS):
            self.undo.append(_restore_generator(value))
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, nn.Module | Optimizer | GradScaler):
            self.add(vars(value))
        elif isinstance(value, dict):
            self._add_items(value, dict(value), value.update, value.values(), deep)
        elif isinstance(value, set):
            self._add_items(value, set(value), value.update, (), deep)
        elif isinstance(value, list | deque):
            self._add_items(value, list(value), value.extend, value, deep)

    def _add_items(
        self,
        container: Any,
        items: Any,
        refill: Callable[[Any], None],
        members: Iterable[Any],
        deep: bool,
    ) -> None:
        """Add a container.

        Args:
            container: the container.
            items: a copy of its items.
            refill: puts them into the container.
            members: objects in it that may be mutable.
            deep: whether to add all of them.
        """

        def restore() -> None:
            container.clear()
            refill(items)

        self.undo.append(restore)
        for member in list(members):
            if deep or isinstance(member, GENERATORS):
                self.add(member)

    def _add_tensor(self, tensor: Tensor) -> None:
        strides = zip(tensor.stride(), tensor.shape, strict=True)
        is_expanded = any(stride == 0 and size > 1 for stride, size in strides)
        # An expanded tensor cannot be written to in place.
        if not is_expanded:
            copy = tensor.detach().clone()
            self.undo.append(partial(tensor.detach().copy_, copy))
        if tensor.is_leaf and tensor.requires_grad:
            self.add(tensor.grad)
            self.undo.append(partial(setattr, tensor, "grad", tensor.grad))

    def restore(self) -> None:
        """Restore all objects; a snapshot can be restored several times."""
        with torch.no_grad():
            for undo in self.undo:
                undo()


def _restore_generator(generator: Any) -> Callable[[], Any]:
    """Return a function that restores the present state of a random generator."""
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
    return partial(generator.set_state, generator.get_state())
