"""An estimate of memory before it is asked for: a model whose sizes cannot be meant is refused, not allocated.

``vocab_size: 1000000000`` in a config or a checkpoint would otherwise end the process, or the machine's other ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.errors import UserError
from zoo.trust.reading import limit

# Functions that layers allocate their parameters and buffers with.
FACTORIES = frozenset(
    (torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.logspace, torch.ones, torch.rand,
     torch.randint, torch.randn, torch.tril_indices, torch.triu_indices, torch.zeros)
)  # fmt: skip
SPARE = 2**30  # bytes that a model may have beside what its checkpoint holds, such as a teacher
MAX_TENSORS = 20_000  # of a model; large published ones have some thousand
FACTOR = 4  # double precision where the file has single, and room for initial values


class MemoryBudget(TorchFunctionMode):
    """Refuses tensors beyond a number of bytes that are made within this context, by computing their size first.

    A depth that cannot be meant is refused by the number of tensors, those on the meta device included.

    Args:
        bytes: of all tensors together.
        why: what the number is compared with, for the error.

    Raises:
        UserError: a tensor would exceed it.
    """

    def __init__(self, bytes: int, why: str) -> None:
        super().__init__()
        self.bytes = limit(bytes)
        self.why = why
        self.used = 0
        self.tensors = 0
        self.max_tensors = limit(MAX_TENSORS)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            self._count_tensor()
            if str(kwargs.get("device")) != "meta":
                self._count(func, args, kwargs)
        return func(*args, **kwargs)

    def _count_tensor(self) -> None:
        self.tensors += 1
        if self.tensors > self.max_tensors:
            raise UserError(
                f"the model would have more than {self.max_tensors:,} tensors: a depth of it is not meant so, or "
                "ZOO_READ_LIMIT raises the bound"
            )

    def _count(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        alone = {
            name: value for name, value in kwargs.items() if name not in ("device", "generator", "pin_memory", "out")
        }
        try:
            tensor = func(*args, **alone, device="meta")
        except RuntimeError as error:
            if "overflow" in str(error) or "too large" in str(error):
                raise UserError(
                    f"the model would have a tensor of more numbers than can be counted: {self.why}"
                ) from None
            return
        except (TypeError, ValueError):
            return  # the call itself says what is wrong
        self.used += tensor.numel() * tensor.element_size()
        if self.used > self.bytes:
            shape = "x".join(map(str, tensor.shape))
            raise UserError(
                f"the model would need {self.used / 1e9:,.1f} GB at least, with a tensor of {shape}, but {self.why}; "
                "a size of it is not meant so, or ZOO_READ_LIMIT raises the bound"
            )


def check_fits(net: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Raise an error for a network on the meta device whose parameters need more memory than the machine has.

    Args:
        net: the network.
        dtype: that its parameters will have; None keeps theirs.

    Raises:
        UserError: in one line.
    """
    needed = 0
    for parameter in net.parameters():
        size = parameter.element_size() if dtype is None else dtype.itemsize
        needed += parameter.numel() * size
    total = limit(_memory())
    if needed > total:
        raise UserError(
            f"the model would need {needed / 1e9:,.1f} GB, but the machine has {total / 1e9:,.1f} GB; "
            "a size of it is not meant so, or ZOO_READ_LIMIT raises the bound"
        )


def budget_of_machine() -> MemoryBudget:
    """Return a budget of the memory that the machine has."""
    total = _memory()
    return MemoryBudget(total, f"the machine has {total / 1e9:,.1f} GB")


def budget_of_checkpoint(content: Mapping[str, Any]) -> MemoryBudget:
    """Return a budget for the model of a checkpoint: some times of what the tensors in the file need."""
    held = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in _tensors(content))
    return MemoryBudget(FACTOR * held + SPARE, f"its checkpoint holds {held / 1e9:,.1f} GB")


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return 2**40
