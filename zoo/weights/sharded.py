"""Networks that are sharded over processes or on the meta device: filled and gathered one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zoo._torch import TorchDispatchMode
from zoo.distributed import copy_into_shard, full_tensor


class UnshardedInit(TorchDispatchMode):
    """Initialize parameters with the random numbers that they would get in one process.

    For a sharded parameter all are sampled, and this process's shard is kept; on the meta device none are kept.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target: Any = args[0] if args else None
        random = torch.Tag.nondeterministic_seeded in func.tags and isinstance(target, Tensor)
        if not random or not (target.is_meta or isinstance(target, DTensor)):
            return func(*args, **(kwargs or {}))
        whole = torch.empty(target.shape, dtype=target.dtype, device="cpu")
        func(whole, *args[1:], **(kwargs or {}))
        if not target.is_meta:
            copy_into_shard(whole, target)
        return target


def materialize(net: nn.Module, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
    """Move a network from the meta device to memory, of a sharded one the local shards; tied parameters stay tied.

    Args:
        net: on the meta device.
        device: where to.
        dtype: of the parameters; null keeps theirs.
    """
    allocated: dict[nn.Parameter, nn.Parameter] = {}
    for name, old in list(net.named_parameters(remove_duplicate=False)):
        if old not in allocated:
            allocated[old] = nn.Parameter(torch.empty_like(old, device=device, dtype=dtype))
        owner, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(owner), leaf, allocated[old])
    assert not any(buffer.is_meta for buffer in net.buffers()), "a buffer would stay without memory"


class GatheredTensors(Mapping[str, Tensor]):
    """Tensors that are gathered from all processes when they are asked for, which all have to do in the same order.

    The last one is kept, as several tensors of a file may be parts of it.

    Args:
        tensors: some of them sharded.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.gathered: set[str] = set()
        self.is_sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
        self._last_name = ""
        self._last = torch.empty(0)

    def __getitem__(self, name: str) -> Tensor:
        if self._last_name != name:
            self._last = torch.empty(0)  # freed first, as no two are to be in memory
            self._last = full_tensor(self.tensors[name])
            self._last_name = name
            self.gathered.add(name)
        return self._last

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def write_on_rank_zero(tensors: GatheredTensors, write: Callable[[], None]) -> None:
    """Let the first process write, while all send it their shards; all return, or raise, together.

    Args:
        tensors: what is written; if none is sharded, every process that calls writes.
        write: writes them, and asks for each.
    """
    if not tensors.is_sharded:
        write()
        return
    problem: Exception | None = None
    try:
        if dist.get_rank() == 0:
            write()
    except Exception as error:
        problem = error
    # Whatever happened, all processes gather all tensors, so that none waits for another in vain.
    for name in tensors:
        if name not in tensors.gathered:
            tensors[name]
    message = [None if problem is None else str(problem)]
    dist.broadcast_object_list(message)
    if problem is not None:
        raise problem
    if message[0] is not None:
        raise OSError(f"process 0 could not write: {message[0]}")
