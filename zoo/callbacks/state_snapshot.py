"""A copy of mutable state in memory, to try something on a model and leave no trace."""

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


class StateSnapshot:
    """Copies of mutable state, put back in place by `restore`: who shares an object goes on sharing it."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}
        self.undo: list[Callable[[], Any]] = []

    def add(self, value: Any, deep: bool = True) -> None:
        """Remembers `value`; if not `deep`, of what it holds only the random generators are copied."""
        if id(value) in self.seen:
            return
        self.seen[id(value)] = value
        if isinstance(value, torch.Generator):
            self.undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self.undo.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            self.undo.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif isinstance(value, np.random.RandomState):
            self.undo.append(partial(value.set_state, value.get_state()))
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

    def _add_items(self, container: Any, items: Any, refill: Callable[[Any], None], members: Any, deep: bool) -> None:
        def put_back() -> None:
            container.clear()
            refill(items)

        self.undo.append(put_back)
        for item in list(members):
            if deep or isinstance(item, torch.Generator | random.Random | np.random.Generator | np.random.RandomState):
                self.add(item)

    def _add_tensor(self, tensor: Tensor) -> None:
        # nobody can write an expanded tensor in place
        if not any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
            self.undo.append(partial(tensor.detach().copy_, tensor.detach().clone()))
        if tensor.is_leaf and tensor.requires_grad:
            self.add(tensor.grad)
            self.undo.append(partial(setattr, tensor, "grad", tensor.grad))

    def restore(self) -> None:
        with torch.no_grad():
            for undo in self.undo:
                undo()
