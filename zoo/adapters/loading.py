"""Adapters in files: a checkpoint of ``zoo fit`` with ``lora``, applied to the base that it was trained on."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zoo.adapters.inject import add_adapter, merge_adapter, network, without_base
from zoo.adapters.record import AdapterRecord
from zoo.checkpoints import Checkpoint, Weights
from zoo.checkpoints.checkpoint import ADAPTER_KEY, state_differences
from zoo.errors import UserError


def load_adapter(module: nn.Module, path: str | Path, weights: Weights = "auto", merge: bool = True) -> AdapterRecord:
    """Give a module the adapter in a file.

    Args:
        module: the module, with the base weights that the adapter was trained on.
        path: checkpoint of a run with ``lora``.
        weights: ``auto`` takes EMA weights of the adapter if there are any.
        merge: add the updates to the weights, so that the network is a plain one again; else it stays trainable.

    Raises:
        UserError: it holds no adapter, or one of other base weights or another network.
    """
    checkpoint = Checkpoint(path)
    if not checkpoint.is_adapter:
        raise UserError(f"{path} holds no adapter: give a checkpoint of a run with lora")
    record = AdapterRecord.from_dict(checkpoint.metadata[ADAPTER_KEY], path)
    state = checkpoint.state_dict(weights)
    net = network(module)
    add_adapter(net, record, path)
    own = dict(without_base(module.state_dict(), module))
    if differences := state_differences(own, state):
        raise UserError(f"{path} is not an adapter of this {type(module).__name__}: {'; '.join(differences)}")
    module.load_state_dict(state, strict=False)
    if merge:
        merge_adapter(net)
    return record
