"""EfficientNet's published weights: files of torchvision, timm and EfficientNet-PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.weights.files import write
from zoo.weights.formats.image import ImageFormat, State, infer_head
from zoo.weights.formats.timm import read_timm_config
from zoo.weights.renaming import invert, rename_keys

TF_NORM_EPS = 1e-3  # of TensorFlow's batch normalization
TORCH_NORM_EPS = 1e-5

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


class EfficientNetFormat(ImageFormat):
    """Adapter for EfficientNet.

    Weights that were trained with TensorFlow have the names and shapes of the others, but another epsilon and padding:
    only the name of the architecture in ``config.json`` distinguishes them.

    Args:
        shapes: channels of the last stage and number of blocks of each stage, by variant.
        defaults: from a variant to its epsilon and padding.
    """

    formats = ("torchvision", "timm")
    input_conv = "features.0.0.weight"
    timm_names = r"(tf_)?efficientnet_(b[0-7](_ap|_ns)?|lite0)"
    timm_example = "efficientnet_b0 to efficientnet_b7, efficientnet_lite0, and those with tf_ before it"
    timm_arguments = ("bn_eps", "pad_type")

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, list[int]]],
        defaults: Callable[[str], tuple[float, str]],
    ) -> None:
        self.shapes = shapes
        self.defaults = defaults
        self.enums = tuple(f"EfficientNet_{variant.capitalize()}_Weights" for variant in shapes)

    def enum(self, arguments: Mapping[str, Any]) -> str:
        return f"EfficientNet_{arguments['variant'].capitalize()}_Weights"

    def convert(self, state: State) -> State:
        if "_conv_stem.weight" in state:
            state = rename_keys(state, efficientnet_pytorch_names(state))
        if "conv_stem.weight" in state:
            state = rename_keys(state, timm_names(state))
        return state

    def infer_from_shapes(self, state: State) -> dict[str, Any]:
        kernel = state[self.input_conv]
        arguments = {"in_channels": kernel.shape[1], **infer_head(state, "classifier.1")}
        variant = self.infer_variant(state)
        if variant is not None:
            arguments["variant"] = variant
        return arguments

    def infer_variant(self, state: State) -> str | None:
        """Return the variant that a state dict has by its width, blocks and squeeze-excitation, or None."""
        last = state.get("features.8.0.weight")
        if last is None:
            return None
        num_blocks = []
        for i in range(1, 8):
            blocks = {key.split(".")[2] for key in state if key.startswith(f"features.{i}.")}
            num_blocks.append(len(blocks))
        is_lite = not any(".fc1." in key for key in state)
        for variant, shape in self.shapes.items():
            if is_lite == (variant == "lite0") and shape == (last.shape[1], num_blocks):
                return variant
        return None

    def arguments_of_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        timm = read_timm_config(config)
        if timm is None:
            return {}
        from_tensorflow = timm.architecture.startswith("tf_")
        eps = TF_NORM_EPS if from_tensorflow else TORCH_NORM_EPS
        pad_type = "same" if from_tensorflow else ""
        padding = "same" if timm.arguments.get("pad_type", pad_type) == "same" else "symmetric"
        return {"norm_eps": timm.arguments.get("bn_eps", eps), "padding": padding}

    def hidden_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        eps = arguments.get("norm_eps")
        padding = arguments.get("padding")
        if arguments.get("variant") is not None:
            default_eps, default_padding = self.defaults(arguments["variant"])
            eps = eps or default_eps
            padding = padding or default_padding
        hidden = {"norm_eps": eps, "padding": padding}
        return {name: value for name, value in hidden.items() if value is not None}

    def write(self, path: Path, state: State, format: str, metadata: dict[str, Any]) -> None:
        if format == "timm":
            state = rename_keys(state, invert(timm_names(state)))
        write(path, state, **metadata)


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
