"""EMA or raw weights: a checkpoint's ``state_dict`` holds the trained weights, its ``ema_params`` their averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from zoo.distributed import copy_into_shard

Weights = Literal["auto", "ema", "raw"]


def with_ema(checkpoint: Mapping[str, Any], weights: Weights = "auto") -> dict[str, Any]:
    """Return a shallow copy of a checkpoint with the chosen weights in ``state_dict`` and without ``ema_params``.

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
    chosen = {key: value for key, value in checkpoint.items() if key != "ema_params"}
    if weights != "raw" and averages and "state_dict" in checkpoint:
        raw = checkpoint["state_dict"]
        chosen["state_dict"] = {name: averages.get(name, tensor) for name, tensor in raw.items()}
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
