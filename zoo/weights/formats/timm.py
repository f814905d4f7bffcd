"""What a folder of timm states beside its tensors: ``config.json`` names the architecture and the pooling."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from zoo.errors import UserError

# Arguments of timm's models that change no output in evaluation, or that names and shapes of the tensors show.
HARMLESS_ARGUMENTS = {
    "attn_drop_rate", "checkpoint_path", "class_token", "depth", "drop_block_rate", "drop_path_rate", "drop_rate",
    "embed_dim", "global_pool", "img_size", "in_chans", "init_values", "ls_init_value", "num_classes",
    "patch_drop_rate", "patch_size", "pos_drop_rate", "pretrained", "proj_drop_rate", "reg_tokens", "weight_init",
    "zero_init_last",
}  # fmt: skip
AVERAGE_POOLING = ("avg", "fast", "fastavg", "")  # of feature maps; "" where there is no head


class TimmConfig(NamedTuple):
    """What ``config.json`` states.

    Args:
        architecture: name in timm's registry, without the tag of the weights.
        pooling: ``global_pool``, or None where it is not stated.
        arguments: ``model_args`` that are neither null nor without effect.
    """

    architecture: str
    pooling: str | None
    arguments: dict[str, Any]


def read_timm_config(config: Mapping[str, Any]) -> TimmConfig | None:
    """Return what a ``config.json`` of timm states; None for that of another library."""
    architecture = config.get("architecture") or (config.get("pretrained_cfg") or {}).get("architecture")
    if not isinstance(architecture, str):
        return None
    model_args = config.get("model_args") or {}
    pooling = config.get("global_pool", model_args.get("global_pool"))
    arguments = {}
    for name, value in model_args.items():
        if value is not None and name not in HARMLESS_ARGUMENTS:
            arguments[name] = value
    return TimmConfig(architecture.partition(".")[0], pooling, arguments)


def check_timm_config(
    source: str,
    timm: TimmConfig,
    network: str,
    names: str | None,
    example: str,
    poolings: Collection[str] = AVERAGE_POOLING,
    arguments: Collection[str] = (),
) -> None:
    """Raise UserError where timm's network computes something else with the same tensors.

    Args:
        source: of the weights.
        timm: what their ``config.json`` states.
        network: name of the class that is to load them.
        names: regular expression of the architectures that compute the same; None for none.
        example: such names in words.
        poolings: values of ``global_pool`` that compute the same.
        arguments: names of ``model_args`` that the network follows.
    """
    if names is None or re.fullmatch(names, timm.architecture) is None:
        raise UserError(
            f"{source} holds timm's {timm.architecture}, which computes something else than {network} or names its "
            f"parameters otherwise: {network} reads {example}"
        )
    if timm.pooling is not None and timm.pooling not in poolings:
        raise UserError(
            f"{source} holds a {timm.architecture} with global_pool={timm.pooling}, which {network} does not have"
        )
    unknown = [f"{name}={value}" for name, value in timm.arguments.items() if name not in arguments]
    if unknown:
        raise UserError(
            f"{source} holds a {timm.architecture} with {unknown[0]} (model_args), which {network} does not have"
        )
