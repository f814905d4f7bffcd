"""EfficientNet in files of timm and of EfficientNet-PyTorch: tables of parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.weights.files import write
from zoo.weights.renaming import invert, rename_keys

# Outside the blocks, which depend on the variant.
TIMM = {
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "conv_head": "features.8.0",
    "bn2": "features.8.1",
    "classifier": "classifier.1",
}
EFFICIENTNET_PYTORCH = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# Layers of a block, each with its norm: expansion, depthwise, projection. The first stage does not expand.
TIMM_BLOCK = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
TIMM_BLOCK_WITHOUT_EXPANSION = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
SQUEEZE_EXCITATION = ("se.conv_reduce", "se.conv_expand")


def convert_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of timm or EfficientNet-PyTorch to torchvision's, which are zoo's; keep those of torchvision."""
    if "_conv_stem.weight" in state:
        state = rename_keys(state, efficientnet_pytorch_names(state))
    if "conv_stem.weight" in state:
        state = rename_keys(state, timm_names(state))
    return state


def write_timm(path: Path, state: dict[str, Tensor], **metadata: Any) -> None:
    """Write a file that timm reads; ``metadata`` goes into its header."""
    table = invert(timm_names(state))
    write(path, rename_keys(state, table), **metadata)


def timm_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the table from timm's names to torchvision's for the blocks of a state dict with either names."""
    table = dict(TIMM)
    has_squeeze_excitation = any(".se." in key or ".fc1." in key for key in state)
    for stage, block in _blocks(state):
        layers = list(TIMM_BLOCK)
        if stage == 0:
            layers = list(TIMM_BLOCK_WITHOUT_EXPANSION)
        if has_squeeze_excitation:
            layers.insert(-1, SQUEEZE_EXCITATION)  # before the projection
        for i, (first, second) in enumerate(layers):
            ours = f"features.{stage + 1}.{block}.block.{i}"
            theirs = f"blocks.{stage}.{block}"
            inner = ("0", "1")
            if (first, second) == SQUEEZE_EXCITATION:
                inner = ("fc1", "fc2")
            table[f"{theirs}.{first}"] = f"{ours}.{inner[0]}"
            table[f"{theirs}.{second}"] = f"{ours}.{inner[1]}"
    return table


def _blocks(state: Mapping[str, Tensor]) -> set[tuple[int, int]]:
    """Return stage (from 0) and block of every block in a state dict."""
    # torchvision counts the stem as features.0, so its stages start at 1.
    first_stage = 0 if "conv_stem.weight" in state else 1
    blocks = set()
    for key in state:
        match = re.match(r"(?:blocks|features)\.(\d+)\.(\d+)\.(?:conv|block)", key)
        if match is not None:
            stage, block = match.groups()
            blocks.add((int(stage) - first_stage, int(block)))
    return blocks


def efficientnet_pytorch_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the table from EfficientNet-PyTorch's names to timm's; it numbers the blocks of all stages in one row.

    TensorFlow's weights were ported to EfficientNet-PyTorch.
    """
    table = dict(EFFICIENTNET_PYTORCH)
    num_blocks = sum(key.endswith("_project_conv.weight") for key in state)
    stage = -1
    block = 0
    previous_channels = None
    for i in range(num_blocks):
        theirs = f"_blocks.{i}"
        # All stages differ in channels, and the blocks of one stage do not.
        channels = len(state[f"{theirs}._project_conv.weight"])
        if channels == previous_channels:
            block += 1
        else:
            stage += 1
            block = 0
        previous_channels = channels
        expands = f"{theirs}._expand_conv.weight" in state
        for old, new in _block_names(expands).items():
            table[f"{theirs}.{old}"] = f"blocks.{stage}.{block}.{new}"
    return table


def _block_names(expands: bool) -> dict[str, str]:
    names = {
        "_se_reduce": "se.conv_reduce",
        "_se_expand": "se.conv_expand",
        "_depthwise_conv": "conv_dw",
    }
    if expands:
        names |= {
            "_expand_conv": "conv_pw",
            "_bn0": "bn1",
            "_bn1": "bn2",
            "_project_conv": "conv_pwl",
            "_bn2": "bn3",
        }
    else:
        names |= {
            "_bn1": "bn1",
            "_project_conv": "conv_pw",
            "_bn2": "bn2",
        }
    return names
