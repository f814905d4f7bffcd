"""VGG's published weights: torchvision's files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.weights.formats.image import ImageFormat, State, infer_head

WIDENING = 8  # channels of the last stage, as a multiple of those of the first


class VGGFormat(ImageFormat):
    """Adapter for VGG.

    Args:
        depths: number of convolutions of each stage, by depth.
    """

    input_conv = "features.0.weight"

    def __init__(self, depths: Mapping[int, tuple[int, ...]]) -> None:
        self.depths = depths
        self.enums = tuple(f"VGG{depth}{norm}_Weights" for depth in depths for norm in ("", "_BN"))

    def enum(self, arguments: Mapping[str, Any]) -> str:
        norm = "_BN" if arguments["batch_norm"] else ""
        return f"VGG{arguments['depth']}{norm}_Weights"

    def infer_from_shapes(self, state: State) -> dict[str, Any]:
        width, in_channels, _, _ = state[self.input_conv].shape
        arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "width": width,
            "batch_norm": any(key.endswith("running_mean") for key in state),
        }
        kernels = [key for key, tensor in state.items() if key.startswith("features.") and tensor.ndim == 4]
        for depth, stages in self.depths.items():
            if sum(stages) == len(kernels):
                arguments["depth"] = depth
        first = state.get("classifier.0.weight")
        if first is not None and first.ndim == 2:
            hidden, in_features = first.shape
            positions = in_features // (WIDENING * width)
            arguments["hidden"] = hidden
            arguments["pool"] = max(1, math.isqrt(positions))
        return arguments | infer_head(state, "classifier.6")
