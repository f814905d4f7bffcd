"""Several processes: which one prints and writes files, and the parts of sharded tensors."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from zoo.terminal import one_line

# What launchers set, in the order in which Lightning reads it.
_NODE_VARIABLES = ("NODE_RANK", "GROUP_RANK")
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def is_main_process() -> bool:
    """Return whether this process is the one that prints and writes files (global rank 0)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    # No process of another machine than the first is, whatever its rank there.
    for name in _NODE_VARIABLES:
        node = os.environ.get(name, "")
        if node.isdecimal() and int(node) > 0:
            return False
    for name in _RANK_VARIABLES:
        rank = os.environ.get(name, "")
        if rank.isdecimal():
            return int(rank) == 0
    return True


def say(text: str) -> None:
    """Print one line for the user on stderr, on the main process only."""
    if is_main_process():
        print(f"zoo: {one_line(text)}", file=sys.stderr)


# Sharded tensors --------------------------------------------------------------------------------------------------


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, sharing its memory; any other tensor as it is."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.detach()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered from all ranks, all of which have to call this; any other tensor as it is."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach()


def shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's shard of a full tensor, sharded as a parameter is; the tensor itself if that is not."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    # Without a source rank nothing is sent: every rank has the whole tensor.
    return local_part(distribute_tensor(whole.to(parameter.device), mesh, placements, src_data_rank=None))


@torch.no_grad()
def copy_into_shard(whole: Tensor, parameter: Tensor) -> None:
    """Copy a full tensor into a parameter; of a sharded one, into this rank's shard."""
    local_part(parameter).copy_(shard_like(whole, parameter))


def reshard(net: nn.Module) -> None:
    """Drop full weights that ``fully_shard`` keeps after a forward pass: they would outlive a change of the shards."""
    for part in net.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
