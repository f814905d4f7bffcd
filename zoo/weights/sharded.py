"""Networks divided among processes, or without memory yet: filled and gathered one whole parameter at a time."""

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
    """Give parameters the random numbers that they would get in one process.

    For a divided parameter all are drawn, and this process's part is kept; for one without memory none are kept.
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
    """Give memory to a network built without, of a divided one to the parts that are here; tied parameters stay tied.

    Args:
        net: on the meta device.
        device: where to.
        dtype: of the parameters; null keeps theirs.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for name, old in list(net.named_parameters(remove_duplicate=False)):
        if old not in made:
            made[old] = nn.Parameter(torch.empty_like(old, device=device, dtype=dtype))
        owner, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(owner), leaf, made[old])
    assert not any(buffer.is_meta for buffer in net.buffers()), "a buffer would stay without memory"


class GatheredTensors(Mapping[str, Tensor]):
    """Tensors that are made whole when asked for, which all processes have to do, in order.

    The last one is kept, as several tensors of a file may be parts of it.

    Args:
        tensors: some of them divided.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.gathered = tensors, set[str]()
        self.is_sharded = any(isinstance(t, DTensor) for t in tensors.values())
        self._last = "", torch.empty(0)

    def __getitem__(self, name: str) -> Tensor:
        if self._last[0] != name:
            self._last = "", torch.empty(0)  # no two at a time
            self._last = name, full_tensor(self.tensors[name])
            self.gathered.add(name)
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def write_on_rank_zero(tensors: GatheredTensors, write: Callable[[], None]) -> None:
    """Let one process write, while all give it their parts; all return, or fail, together.

    Args:
        tensors: what is written; where nothing of it is divided, every process that calls writes.
        write: asks for all of them.
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
    for name in [name for name in tensors if name not in tensors.gathered]:  # no process waits for another in vain
        tensors[name]
    said = [None if problem is None else str(problem)]
    dist.broadcast_object_list(said)
    if problem is not None:
        raise problem
    if said[0] is not None:
        raise OSError(f"process 0 could not write: {said[0]}")
