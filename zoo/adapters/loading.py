"""Adapters in files, for the base that they were trained on: checkpoints of ``zoo fit`` with ``lora``, or PEFT's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from zoo.adapters.inject import add_adapter, merge_adapter, network, without_base
from zoo.adapters.peft_files import is_peft_folder, read_peft
from zoo.adapters.record import AdapterRecord
from zoo.checkpoints import Checkpoint, Weights
from zoo.checkpoints.checkpoint import ADAPTER_KEY, state_differences
from zoo.errors import UserError


def load_adapter(module: nn.Module, path: str | Path, weights: Weights = "auto", merge: bool = True) -> AdapterRecord:
    """Give a module the adapter in a file.

    Args:
        module: the module, with the base weights that the adapter was trained on.
        path: checkpoint of a run with ``lora``, or a folder of PEFT.
        weights: ``auto`` takes EMA weights of the adapter if there are any.
        merge: add the updates to the weights, so that the network is a plain one again; else it stays trainable.

    Raises:
        UserError: it holds no adapter, or one of other base weights or another network.
    """
    net = network(module)
    path = Path(path)
    if is_peft_folder(path):
        record, state = read_peft(net, path)
        module = net  # PEFT's files hold nothing of what is around the network
    else:
        record, state = _read_checkpoint(path, weights)
    add_adapter(net, record, path)
    own = dict(without_base(module.state_dict(), module))
    if differences := state_differences(own, state):
        raise UserError(f"{path} is not an adapter of this {type(net).__name__}: {'; '.join(differences)}")
    module.load_state_dict(state, strict=False)
    if merge:
        merge_adapter(net)
    return record


def _read_checkpoint(path: Path, weights: Weights) -> tuple[AdapterRecord, dict[str, Tensor]]:
    checkpoint = Checkpoint(path)
    if not checkpoint.is_adapter:
        raise UserError(f"{path} holds no adapter: give a checkpoint of a run with lora, or a folder of PEFT")
    record = AdapterRecord.from_dict(checkpoint.metadata[ADAPTER_KEY], path)
    return record, checkpoint.state_dict(weights)
