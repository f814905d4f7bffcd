"""EMA or raw weights of a checkpoint.

One rule for the modules of zoo and of others: ``state_dict`` holds what the model is used with, so after training with
EMA the EMA weights, and ``raw_params`` the trained ones, from which a resumed run goes on. ``ema_params`` are the EMA
weights in the precision in which they are averaged; where both have the same one, the file holds the tensors once.
In files without ``raw_params``, of older versions of zoo and of sharded models, ``state_dict`` holds the trained
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from zoo.distributed import copy_into_shard

Weights = Literal["auto", "ema", "raw"]


def with_ema(checkpoint: Mapping[str, Any], weights: Weights = "auto") -> dict[str, Any]:
    """Return a shallow copy of a checkpoint with the chosen weights in ``state_dict``, and in no other place.

    The public way to other weights than those that ``load_from_checkpoint`` gives, for any module::

        checkpoint = torch.load("x.ckpt", weights_only=True)
        module.load_state_dict(with_ema(checkpoint, "raw")["state_dict"])

    Args:
        checkpoint: content of a file; the metadata of a sharded one has no ``state_dict``.
        weights: ``auto`` takes EMA weights where there are any, ``ema`` requires them, ``raw`` takes the trained ones.
    """
    if weights not in ("auto", "ema", "raw"):
        raise ValueError(f"weights must be auto, ema or raw, not {weights!r}")
    averages = checkpoint.get("ema_params", {})
    if weights == "ema" and not averages:
        raise ValueError(
            "weights='ema', but this checkpoint holds no EMA weights: it was saved without EMA or too early"
        )
    chosen = {key: value for key, value in checkpoint.items() if key not in ("ema_params", "raw_params")}
    if "state_dict" in checkpoint:
        others = checkpoint.get("raw_params", {}) if weights == "raw" else averages
        state = checkpoint["state_dict"]
        chosen["state_dict"] = {name: others.get(name, tensor) for name, tensor in state.items()}
    return chosen


def load_ema(module: nn.Module, averages: Mapping[str, Tensor]) -> None:
    """Copy EMA weights into the parameters of the same names, which may be sharded."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in averages:
            copy_into_shard(averages[name], parameter)


def use_ema(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Let a module that is being loaded get EMA weights, where its checkpoint has them.

    Call it in ``on_load_checkpoint``: it puts them into ``state_dict``, in place. Sharded weights are in the module by
    then, so there they are copied into its parameters.
    """
    if "state_dict" not in checkpoint:
        load_ema(module, checkpoint.get("ema_params", {}))
        return
    chosen = with_ema(checkpoint)
    checkpoint["state_dict"] = chosen["state_dict"]


def use_raw(checkpoint: dict[str, Any]) -> None:
    """Let a module that goes on training get the trained weights: call it in ``on_load_checkpoint``."""
    if "state_dict" in checkpoint:
        checkpoint["state_dict"] = with_ema(checkpoint, "raw")["state_dict"]
