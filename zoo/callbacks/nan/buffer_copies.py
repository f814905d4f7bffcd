"""Copies of all buffers of a module, to repeat a training step from the state in which it began."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from zoo._torch import buffers


@dataclasses.dataclass
class _Buffer:
    """A buffer of a module, and its value at the start of the batch.

    Args:
        home: the dictionary that holds the buffer.
        name: its key.
        copy: a copy of the value; None where the buffer was None or has not been copied yet.
    """

    home: dict[str, Tensor | None]
    name: str
    copy: Tensor | None = None

    @property
    def value(self) -> Tensor | None:
        return self.home[self.name]

    def has_same_shape(self) -> bool:
        """Return whether buffer and copy exist and can be copied to each other in place."""
        value = self.value
        return value is not None and self.copy is not None and value.shape == self.copy.shape


class BufferCopies:
    """Copies of the buffers of a module.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.buffers: list[_Buffer] = []
        for part in module.modules():
            home = buffers(part)
            self.buffers += [_Buffer(home, name) for name in home]

    @torch.no_grad()
    def update(self) -> None:
        """Copy all buffers, into the existing copies where these fit."""
        copies: list[Tensor] = []
        values: list[Tensor] = []
        for buffer in self.buffers:
            value = buffer.value
            if value is None:
                buffer.copy = None
            elif buffer.copy is None or buffer.copy.shape != value.shape:
                buffer.copy = value.clone()
            else:
                copies.append(buffer.copy)
                values.append(value)
        if copies:
            torch._foreach_copy_(copies, values)

    @torch.no_grad()
    def restore(self) -> None:
        """Set all buffers to their copies, in place where the shapes agree."""
        for buffer in self.buffers:
            copy = buffer.copy
            if buffer.has_same_shape():
                buffer.value.copy_(copy)  # type: ignore[union-attr, arg-type]
            elif copy is None:
                buffer.home[buffer.name] = None
            else:
                buffer.home[buffer.name] = copy.clone()
